"""The process that reads pictures on trial (data.trial_decoding): started, asked, replaced when lost."""

import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Self

Result = tuple[int, int] | str
"""Of one file: (width, height), or what the decoders say where DALI can't read it."""

READY = "ready"
"""What the process says when it is up."""

START_TIMEOUT_S = 300.0
GROUP_TIMEOUT_S = 300.0
"""A group of files that takes longer, from whatever disk, hangs."""


class _LostError(Exception):
    """The process is gone or hangs; the message ends the sentence “the decoder …”."""


class TrialProcess:
    """Reads picture files in another process: a crash or a hang is the result of the file that led to it."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._untouched = True

    def read(self, groups: Sequence[Sequence[str]], decode: bool) -> Iterator[list[Result]]:
        """Yield the results of each group of paths. decode: whole files, not their headers alone.

        A file is accused only if it is the first that a new process reads: a damaged one may leave the memory
        in such a state that the next one leads to the crash.
        """
        waiting = deque(groups)
        while waiting:
            try:
                self._send((list(waiting), decode, self._threads))
                for _ in range(len(waiting)):
                    results = self._receive()
                    self._untouched = False
                    waiting.popleft()
                    yield results
            except _LostError as lost:
                untouched = self._untouched
                self._stop()
                if len(waiting[0]) > 1:  # one of them did it
                    singles = [[path] for path in waiting.popleft()]
                    yield [result for (result,) in self.read(singles, decode)]
                elif untouched:
                    waiting.popleft()
                    yield [f"the decoder {lost}"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        # That one must import what this one does, from the same places; -P passes over a user's own `data`.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "data.trial_decoding", str(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": path},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._connection = ours
        self._untouched = True
        try:
            started = ours.poll(START_TIMEOUT_S) and ours.recv() == READY
        except EOFError:
            started = False
        if not started:
            self._stop()
            raise RuntimeError(
                "the process that reads pictures on trial did not start; its error stands above"
            )
        return ours

    def _send(self, request: object) -> None:
        connection = self._connection or self._start()
        try:
            connection.send(request)
        except BrokenPipeError as error:
            raise _LostError(self._end()) from error

    def _receive(self) -> list[Result]:
        assert self._connection is not None
        try:
            if not self._connection.poll(GROUP_TIMEOUT_S):
                raise _LostError(f"has not come to an end after {GROUP_TIMEOUT_S:g} s")
            results = self._connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise _LostError(self._end()) from error
        if isinstance(results, str):
            raise RuntimeError(f"reading pictures on trial failed:\n{results}")
        return list(results)

    def _end(self) -> str:
        """Say how the process ended."""
        assert self._process is not None
        status = self._process.wait()
        return f"crashes ({signal.Signals(-status).name if status < 0 else f'exit status {status}'})"

    def _stop(self) -> None:
        if self._process is not None and self._connection is not None:
            self._process.kill()
            self._process.wait()
            self._connection.close()
        self._process = self._connection = None
