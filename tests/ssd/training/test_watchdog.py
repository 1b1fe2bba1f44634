import signal
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from ssd.config import MINUTES_A_YEAR
from ssd.training.watchdog import Watchdog

pytestmark = pytest.mark.unit

HANGING = """
import ctypes, threading, time
from datetime import timedelta
from ssd.training import watchdog
watchdog.GRACE = timedelta(seconds=0.3)

def where_it_hangs():
    {hang}

with watchdog.Watchdog(timedelta(seconds=0.5)) as dog:
    for _ in range(4):  # longer than the limit, but never without a sign of life for so long
        time.sleep(0.2)
        dog.alive()
    print("alive", flush=True)
    where_it_hangs()
"""


@pytest.mark.parametrize("hang", ["time.sleep(60)", "ctypes.PyDLL(None).sleep(60)  # holds Python's lock"])
def test_a_process_that_hangs_prints_its_stacks_and_ends(hang: str):
    start = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", HANGING.format(hang=hang)], capture_output=True, text=True, check=False
    )
    assert result.stdout == "alive\n"
    assert "where_it_hangs" in result.stderr
    assert result.returncode == -signal.SIGALRM
    assert time.monotonic() - start < 60


def test_nothing_happens_after_it_is_closed():
    code = HANGING.partition("    print")[0].format(hang="pass") + "time.sleep(1.5)\nprint('still here')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "still here\n"


def test_the_longest_timeout_and_none_are_waits_that_the_clocks_can_count():
    longest = timedelta(minutes=MINUTES_A_YEAR)
    with Watchdog(longest) as dog:
        dog.alive()
        dog.alive(extra=longest)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > longest.total_seconds()
    with Watchdog(None) as dog:
        dog.alive(extra=longest)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
