"""A run's checkpoints, written beside training: the state is copied at once, the disk works meanwhile."""

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
    """Saves a run: every rank calls, rank 0 writes, one checkpoint at a time.

    needed: tells of a step whether a rollback could need its checkpoint; the newest such one stays. What goes
    wrong is not raised in the writing thread but kept, until all ranks are told of it (`check`).
    """

    def __init__(self, config: CheckpointConfig, session: Session, needed: Callable[[int], bool]) -> None:
        self._config, self._session, self._needed = config, session, needed
        self._folder = session.folder / "checkpoints"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failure: str | None = None
        self.step: int | None = None
        """The step that was saved last, or is being saved; None where that is known to have failed."""
        self.best: dict[str, Any] | None = None
        """AP and step of the evaluation that best.pt is of, None without that file; right on rank 0 alone."""

    def save(self, run: SavedRun) -> None:
        """Copy a run and begin to write it; as best.pt too where it has another best than that file."""
        self.step = run.step
        if self._session.ranks.is_main:
            self.wait()
            state = _host_copy(run.as_plain())
            self._writing = self._thread.submit(self._write, run.step, state, run.best != self.best)

    def wait(self) -> None:
        """Wait until what was begun is on disk or has failed."""
        writing, self._writing = self._writing, None
        error = writing.exception() if writing else None
        if error:  # told by `check`, on all ranks
            reason = (error.strerror if isinstance(error, OSError) else None) or repr(error)
            self._failure = f"{self._folder}: {reason}"
        if not (self._folder / "best.pt").exists():
            self.best = None  # it was damaged or removed: the next evaluation writes it again

    def check(self, final: bool = False) -> None:
        """Tell all ranks what went wrong since the last time, without waiting for a write that goes on.

        final: no later checkpoint follows, so the last one is waited for. Raises CheckpointError on all ranks
        where it isn't on disk then and, with checkpoint.on_error=fail, at any failure; in any case where the
        run's folder was moved or removed.
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
        """Let what was begun be finished, whatever ends the run; the rank that wrote says what went wrong."""
        self.wait()
        self._thread.shutdown()
        if self._failure:
            self._session.console.say(f"{self._failure}; {LOST}")

    def _write(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        # best.pt first: should the process die between the two, the step's older file still lacks the
        # numbers, and the evaluation is done again.
        if is_best:
            write(self._folder / "best.pt", {key: state[key] for key in DETECTOR})
            self.best = state["best"]
        write(step_file(self._folder, step), state)
        keep_newest(self._folder, self._config.keep, step_file(self._folder, step), self._needed)


def _host_copy(value: Any) -> Any:
    """Copy tensors, in lists and dicts of any depth, to the host: training goes on changing them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _host_copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_host_copy(entry) for entry in value]
    return value
