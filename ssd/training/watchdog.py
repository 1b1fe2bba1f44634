"""No silent wait: a process that makes no progress shows where it stands and ends."""

import faulthandler
import signal
from datetime import timedelta
from types import TracebackType
from typing import Self

GRACE = timedelta(seconds=5)  # between the stacks and the end: every rank gets to print its own

_STANDARD_ERROR = 2


class Watchdog:
    """Prints all threads' stacks when `alive` was not called again for `timeout`, and then kills the process.

    It watches from the first call on: how long a start may take is for the data to say. No timeout: never.
    Both are the kernel's and C's work: a rank that hangs with Python's lock held is found as well.
    """

    def __init__(self, timeout: timedelta | None) -> None:
        self._timeout = timeout

    def alive(self, extra: timedelta = timedelta(0)) -> None:
        """Start waiting anew. extra: how much longer the next thing may take."""
        if self._timeout is None:
            return
        seconds = (self._timeout + extra).total_seconds()
        faulthandler.dump_traceback_later(seconds, file=_STANDARD_ERROR)
        signal.setitimer(signal.ITIMER_REAL, seconds + GRACE.total_seconds())

    def __enter__(self) -> Self:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
