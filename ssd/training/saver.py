"""Checkpoints written beside training, on rank 0: the state is copied at once, the disk works meanwhile."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ssd.checkpoint import keep_newest, step_file, write


class CheckpointSaver:
    """Writes one checkpoint at a time in the background.

    What goes wrong is not raised in that thread but kept, and `take_failure` tells it to whoever asks.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._failure: str | None = None

    def save(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        """Begin to write a checkpoint once the one before is done; `state` must not change any more."""
        self.wait()
        self._writing = self._thread.submit(self._write, step, state, is_best)

    def wait(self) -> None:
        """Wait until what was begun is on disk or has failed."""
        if self._writing is None:
            return
        try:
            self._writing.result()
        except Exception as error:  # told by whoever asks, on all ranks
            reason = (error.strerror if isinstance(error, OSError) else None) or repr(error)
            self._failure = f"{self._folder}: {reason}"
        self._writing = None

    def take_failure(self) -> str | None:
        """Return what went wrong since the last time, without waiting for a write that goes on."""
        if self._writing is not None and self._writing.done():
            self.wait()
        failure, self._failure = self._failure, None
        return failure

    def _write(self, step: int, state: dict[str, Any], is_best: bool) -> None:
        # best.pt first: should the process die between the two, the step's older file still lacks the
        # numbers, and the evaluation is done again.
        path = step_file(self._folder, step)
        if is_best:
            write(path.with_name("best.pt"), state)
        write(path, state)
        keep_newest(self._folder, self._keep)


def host_copy(value: Any) -> Any:
    """Copy tensors, in lists and dicts of any depth, to the host: training goes on changing them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: host_copy(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [host_copy(entry) for entry in value]
    return value
