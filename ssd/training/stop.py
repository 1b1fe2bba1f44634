"""Ending a run early when a signal asks for it, and telling whoever starts it again.

SIGTERM, SIGUSR1 or SIGINT to any rank: before training it ends the process at once; from then on it is noted,
all ranks agree on a step, save and exit with status 75. Rank 0 leaves a file `preempted` in the run's folder,
since torchrun turns every failure's status into 1.
"""

import ctypes
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ssd.distributed import Ranks

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
FILE = "preempted"
READING_TIMEOUT = timedelta(minutes=5)


class Preempted(SystemExit):
    """The run was asked to end and everything is saved; the exit status says so."""

    def __init__(self) -> None:
        super().__init__(STATUS)


class StopSignals:
    """Receives the signals while it is open."""

    def __init__(self, folder: Path, is_main: bool) -> None:
        self._folder, self._is_main = folder, is_main
        self._noting = False
        self.received = 0
        """Number of the first signal noted, 0 before."""

    def note_only(self) -> None:
        """From now on a signal is noted, and training ends where all ranks agree."""
        self._noting = True

    def leave(self, step: int | None, number: int) -> Preempted:
        """Leave the file behind and return what to raise. step: optimizer steps saved, None if not begun."""
        if self._is_main:
            content = {"step": step, "signal": signal.Signals(number).name, **_torchrun()}
            path = self._folder / FILE
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                temporary = path.with_name(path.name + ".tmp")
                temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
                temporary.replace(path)
            except OSError as error:
                print(f"{path} can't be written ({error.strerror}): launchers won't know", file=sys.stderr)
        return Preempted()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # A second one changes nothing: torchrun passes on what its ranks have had from the terminal already.
        if self._noting:
            self.received = self.received or number
        elif number == signal.SIGTERM:
            # torchrun sends it when another rank fails too: that is to be started again, not to be left.
            raise Preempted
        else:
            raise self.leave(None, number)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_if_preempted(folder: Path, ranks: Ranks) -> None:
    """Raise Preempted on all ranks that the torchrun they were preempted under starts again; else forget it.

    torchrun restarts a rank that exits with 75 like one that crashed, if it has restarts left. Any other
    start is meant to go on.
    """
    if ranks.on_main(lambda: _same_torchrun(folder / FILE), READING_TIMEOUT):
        raise Preempted
    if ranks.is_main:
        (folder / FILE).unlink(missing_ok=True)


def _same_torchrun(path: Path) -> bool:
    try:
        left = json.loads(path.read_text(encoding="utf-8"))
        now = _torchrun()
        return bool(left["torchrun"] == now["torchrun"] and now["restarts"] > left["restarts"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none there, or not written by us
        return False


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when torchrun dies: a rank left behind would train on beside the next one.

    On Linux alone; elsewhere, and in a process that no torchrun started, it does nothing.
    """
    if sys.platform == "linux" and _torchrun()["torchrun"]:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)


def _torchrun() -> dict[str, Any]:
    """Say which torchrun started this process and how often it had restarted its workers by then."""
    return {
        "torchrun": os.environ.get("TORCHELASTIC_RUN_ID", ""),
        "restarts": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
    }
