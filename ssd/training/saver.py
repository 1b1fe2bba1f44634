"""A run's checkpoints, written beside training: the state is copied at once, the disk works meanwhile."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from ssd.checkpoint import CheckpointError, keep_newest, step_file, write
from ssd.config import CheckpointConfig, OnError
from ssd.training.saved_run import SavedRun
from ssd.training.session import Session


class CheckpointSaver:
    """Saves a run: every rank calls, rank 0 writes, one checkpoint at a time.

    What goes wrong is not raised in the writing thread but kept, until all ranks are told of it (`check`).
    """

    def __init__(self, config: CheckpointConfig, session: Session) -> None:
        self._config, self._session = config, session
        self._folder = session.folder / "checkpoints"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failure: str | None = None
        self.step: int | None = None
        """The step that was saved last, or is being saved; None where that is known to have failed."""
        self.best: dict[str, Any] | None = None
        """AP and step of the evaluation that best.pt is of; known where it is written, on rank 0."""

    def resume(self, saved: SavedRun) -> None:
        """Go on after a checkpoint that is on disk."""
        self.step, self.best = saved.step, saved.best

    def save(self, saved: SavedRun) -> None:
        """Copy a run and begin to write it; as best.pt too where its numbers are the best so far."""
        self.step = saved.step
        if not self._session.ranks.is_main:
            return
        self.wait()
        ap = saved.numbers["AP"] if saved.numbers else None
        is_best = ap is not None and (self.best is None or ap > self.best["AP"])
        best = {"AP": ap, "step": saved.step} if is_best else self.best
        state = host_copy(replace(saved, best=best).as_plain())
        self._writing = self._thread.submit(self._write, saved.step, state, is_best)

    def wait(self) -> None:
        """Wait until what was begun is on disk or has failed."""
        if self._writing is None:
            return
        try:
            self._writing.result()
        except Exception as error:  # told by `check`, on all ranks
            reason = (error.strerror if isinstance(error, OSError) else None) or repr(error)
            self._failure = f"{self._folder}: {reason}"
        self._writing = None

    def check(self) -> None:
        """Tell all ranks what went wrong since the last time, without waiting for a write that goes on.

        Raises CheckpointError on all of them where checkpoint.on_error=fail.
        """
        for failure in self._failures():
            if self._config.on_error is OnError["fail"]:
                raise CheckpointError(f"{failure}; checkpoint.on_error=continue would train on without")
            self._session.console.say(f"{failure}; training goes on (checkpoint.on_error=continue)")

    def finish(self) -> None:
        """Wait for the last checkpoint; raise CheckpointError on all ranks where it isn't on disk."""
        self.wait()
        self._session.watchdog.alive()
        for failure in self._failures():
            raise CheckpointError(f"{failure}; the steps since the checkpoint before are lost")

    def close(self) -> None:
        """Let what was begun be finished, whatever ends the run; the rank that wrote says what went wrong."""
        self.wait()
        self._thread.shutdown()
        if self._failure:
            self._session.console.say(f"{self._failure}; the steps since the checkpoint before are lost")

    def _failures(self) -> list[str]:
        if self._writing is not None and self._writing.done():
            self.wait()
        own, self._failure = self._failure, None
        failures = [failure for failure in self._session.ranks.gather(own) if failure]
        if failures:
            self.step = None
        return failures

    def _write(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        # best.pt first: should the process die between the two, the step's older file still lacks the
        # numbers, and the evaluation is done again.
        path = step_file(self._folder, step)
        if is_best:
            write(path.with_name("best.pt"), state)
            self.best = state["best"]
        write(path, state)
        keep_newest(self._folder, self._config.keep)


def host_copy(value: Any) -> Any:
    """Copy tensors, in lists and dicts of any depth, to the host: training goes on changing them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [host_copy(entry) for entry in value]
    return value
