"""A run's checkpoints: the state is copied at once, then written to disk while training continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from ssd.checkpoint import CheckpointError, keep_newest, step_file, write
from ssd.config import CheckpointConfig, OnError
from ssd.training.session import Session
from ssd.training.state import DETECTOR, SavedRun

LOST = "the steps since the checkpoint before are lost"


class CheckpointSaver:
    """Saves a run. Every rank calls it, rank 0 writes, one checkpoint at a time.

    needed: tells whether a rollback could need a step's checkpoint; the newest of these is always kept. An
    error in the writing thread is stored until `check` tells all ranks.
    """

    def __init__(self, config: CheckpointConfig, session: Session, needed: Callable[[int], bool]) -> None:
        self._config, self._session, self._needed = config, session, needed
        self._folder = session.folder / "checkpoints"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failure: str | None = None
        self.step: int | None = None
        """The step saved last or being saved; None before any, or once its write is known to have failed."""
        self.best: dict[str, Any] | None = None
        """AP and step of the evaluation behind best.pt, None without that file; correct on rank 0 only."""

    def save(self, run: SavedRun) -> None:
        """Copy a run's state and start writing it, also as best.pt if its best evaluation is a new one."""
        self.step = run.step
        if self._session.ranks.is_main:
            self.wait()
            state = _host_copy(run.as_plain())
            self._writing = self._thread.submit(self._write, run.step, state, run.best != self.best)

    def wait(self) -> None:
        """Wait until the checkpoint being written is on disk or has failed."""
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None
        if error:  # `check` tells all ranks
            reason = (error.strerror if isinstance(error, OSError) else None) or repr(error)
            self._failure = f"{self._folder}: {reason}"
        if not (self._folder / "best.pt").exists():
            self.best = None  # it was damaged or removed: the next evaluation writes it again

    def check(self, final: bool = False) -> None:
        """Tell all ranks what went wrong since the last check, without waiting for a write in progress.

        final: no later checkpoint follows, so wait for the last one. Raises CheckpointError on all ranks if
        the run's folder was moved or removed, if a write failed with checkpoint.on_error=fail, or if it
        failed with final.
        """
        if final or (self._writing and self._writing.done()):
            self.wait()
            self._session.watchdog.alive()
        of_ranks = self._session.ranks.gather((self._failure, self._session.lost_folder()))
        (failure, lost), self._failure = of_ranks[0], None
        if lost:
            fix = "move it back, or give another name=…"
            raise CheckpointError(f"{self._session.folder} was moved or removed; {LOST}; {fix}")
        if failure:
            self.step = None
            if final or self._config.on_error is OnError["fail"]:
                fix = "make room; checkpoint.on_error=continue trains on without all but the last"
                raise CheckpointError(f"{failure}; {LOST}; {fix}")
            self._session.console.say(f"{failure}; training goes on (checkpoint.on_error=continue)")

    def close(self) -> None:
        """Finish the write in progress, whatever ended the run; rank 0 says what went wrong."""
        self.wait()
        self._thread.shutdown()
        if self._failure:
            self._session.console.say(f"{self._failure}; {LOST}")

    def _write(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        # best.pt first: if the process dies between the two writes, the step's older file still lacks the
        # numbers, so the evaluation is repeated.
        if is_best:
            write(self._folder / "best.pt", {key: state[key] for key in DETECTOR})
            self.best = state["best"]
        write(step_file(self._folder, step), state)
        keep_newest(self._folder, self._config.keep, step_file(self._folder, step), self._needed)


def _host_copy(value: Any) -> Any:
    """Copy all tensors in nested lists and dicts to the host, since training continues to change them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _host_copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_host_copy(entry) for entry in value]
    return value
