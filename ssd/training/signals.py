"""End a run early when a signal asks for it, and tell the launcher to start it again.

Before training, any of SIGNALS to any rank ends the process at once. During training it is only recorded; the
trainer's loop checks for it, all ranks save the same step and exit with status 75. Rank 0 leaves a file
`preempted` in the run's folder, because torchrun turns every failure status into 1.
"""

import ctypes
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

from ssd.distributed import Ranks

# The signals that torchrun forwards by default, and the one that schedulers send shortly before a time limit.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again later
PREEMPTED_FILE = "preempted"
NOTHING_DONE = "before it took a step: nothing was done yet, nothing is lost"


class Preempted(SystemExit):
    """A signal ended the run and everything is saved. The exit status says so; `told` says where."""

    def __init__(self, *told: str) -> None:
        super().__init__(STATUS)
        self.told = told


class StopSignals:
    """Receives the signals while open, except those that the process was started to ignore (nohup)."""

    def __init__(self, folder: Path, is_main: bool) -> None:
        self._folder, self._is_main = folder, is_main
        self._noting = False
        self.received = 0
        """Number of the first signal recorded, 0 if none."""

    def note_only(self) -> None:
        """From now on only record signals in `received`."""
        self._noting = True

    def leave(self, step: int | None, number: int, saved: str = NOTHING_DONE) -> NoReturn:
        """Write the `preempted` file, raise Preempted. step: optimizer steps saved, None before training."""
        content = {"step": step, "signal": signal.Signals(number).name}
        if self._is_main:
            path = self._folder / PREEMPTED_FILE
            try:
                path.write_text(json.dumps(content) + "\n", encoding="utf-8")
            except OSError as error:
                message = f"{path} can't be written ({error.strerror}): launchers won't know"
                with suppress(OSError):  # the terminal may be gone
                    print(message, file=sys.stderr)
        raise Preempted(f"stopped by {content['signal']} {saved}")

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        # A second signal changes nothing: torchrun forwards signals that ranks already got from the terminal.
        if self._noting:
            self.received = self.received or number
        elif number == signal.SIGTERM:
            # torchrun also sends it when another rank fails; then the run must restart, so no file is left.
            raise Preempted(f"stopped by SIGTERM {NOTHING_DONE}")
        else:
            self.leave(None, number)

    def __enter__(self) -> Self:
        heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_if_preempted(folder: Path, ranks: Ranks) -> None:
    """Raise Preempted on all ranks if torchrun restarts a preempted run; otherwise remove the file.

    torchrun restarts a rank that exits with 75 as if it had crashed. Any other start is meant to continue,
    and its first attempt removes the file. The torchrun of each machine counts its own restarts.
    """
    path = folder / PREEMPTED_FILE
    restarts = ranks.highest(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if ranks.highest(int(ranks.is_main and path.exists())) and restarts:
        raise Preempted(f"it was preempted ({path}), which a restart by the same torchrun doesn't change")
    if ranks.is_main:
        path.unlink(missing_ok=True)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when torchrun dies: an orphaned rank would disturb the next launch."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGTERM)
