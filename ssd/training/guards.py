"""Guards of a run against non-finite steps, replicas out of sync and hanging processes."""

import faulthandler
import json
import math
import os
import signal
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ssd.batches import TrainLoader
from ssd.config import OnNonfinite, TrainingConfig
from ssd.distributed import Ranks
from ssd.errors import UserError

# Far below what fp16 training needs; reached only if gradients overflow in step after step.
SMALLEST_LOSS_SCALE = 2.0**-10
NAMED_IMAGES = 8  # in a message; the file it names lists all
GRACE = timedelta(seconds=5)  # between printing stacks and exiting, so that every rank can print its own

_STANDARD_ERROR = 2


@dataclass(frozen=True)
class BadSteps:
    """The bad steps of a rank since the last check.

    first: optimizer steps before the first bad one. parts: this rank's localisation and confidence loss.
    """

    count: int
    first: int
    parts: list[float]


class FiniteGuard:
    """Counts bad steps on the device: `note`, called in every step, only queues work; `read` waits for it."""

    def __init__(self, device: torch.device) -> None:
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._first = torch.zeros((), dtype=torch.int64, device=device)
        self._parts = torch.zeros(2, device=device)

    def note(self, step: int, parts: Tensor, bad: Tensor) -> None:
        """Count a step if it is bad. parts: localisation and confidence (2). bad: a bool on the device."""
        is_first = bad & (self._count == 0)
        self._first.masked_fill_(is_first, step)
        self._parts.copy_(torch.where(is_first, parts, self._parts))
        self._count += bad

    def read(self) -> BadSteps | None:
        """Wait for the device, return the bad steps since the last call, and reset the count."""
        count = int(self._count)
        if not count:
            return None
        self._count.zero_()
        return BadSteps(count, int(self._first), self._parts.tolist())


class NonFinitePolicy:
    """Reports steps that were not taken and decides whether training continues (training.on_nonfinite).

    count: of the whole run, including earlier starts.
    """

    def __init__(self, config: TrainingConfig, folder: Path, ranks: Ranks) -> None:
        self._config, self._folder, self._ranks = config, folder, ranks
        self.count = 0

    def check(self, guard: FiniteGuard, loader: TrainLoader) -> str | None:
        """Return a line about all ranks' bad steps since the last check, or None. Every rank calls this.

        The content of the first bad step is written to the run's folder. Raises UserError on all ranks if
        training must not continue.
        """
        met = {rank: bad for rank, bad in enumerate(self._ranks.gather(guard.read())) if bad}
        if not met:
            return None
        self.count += max(bad.count for bad in met.values())
        step = min(bad.first for bad in met.values())
        first = {rank: bad for rank, bad in met.items() if bad.first == step}
        # If one rank's loss isn't finite, all ranks' gradients are NaN, but only that rank is the cause.
        culprits = {rank: bad for rank, bad in first.items() if not math.isfinite(sum(bad.parts))} or first
        losses = "; ".join(
            f"rank {rank}: localisation {bad.parts[0]}, confidence {bad.parts[1]}"
            for rank, bad in culprits.items()
        )
        images = loader.contents(step)
        share = len(images) // self._ranks.world_size
        ids = [str(image["image_id"]) for rank in culprits for image in images[rank * share :][:share]]
        written = self._write_down(step, losses, images) if self._ranks.is_main else ""
        message = (
            f"loss or gradient not finite in the step after {step}, which was not taken ({losses}; "
            f"first image ids {', '.join(ids[:NAMED_IMAGES])}{written})"
        )
        fix = "Look at these boxes, or give a lower optimizer.learning_rate or more schedule.warmup_steps"
        if self._config.on_nonfinite is OnNonfinite.stop:
            raise UserError(f"{message}. Nothing was saved since. {fix}")
        if self.count > self._config.nonfinite_limit:
            limit = f"training.nonfinite_limit={self._config.nonfinite_limit}"
            raise UserError(f"{message}. {self.count} such steps are more than {limit}. {fix}")
        return message

    def _write_down(self, step: int, losses: str, images: list[dict[str, Any]]) -> str:
        path = self._folder / "nonfinite" / f"step_{step:08d}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"step": step, "losses": losses, "images": images}, indent=1)
            path.write_text(content + "\n", encoding="utf-8")
        except OSError as error:  # the message about the step matters more
            return f"; their boxes could not be written to {path}: {error.strerror}"
        return f"; their boxes are in {path}"


def check_loss_scale(scaler: torch.amp.GradScaler) -> None:
    """Raise UserError if gradients overflow in fp16 in step after step."""
    if scaler.is_enabled() and scaler.get_scale() < SMALLEST_LOSS_SCALE:
        raise UserError(
            f"gradients overflow in fp16 step after step (loss scale {scaler.get_scale()}); "
            "give runtime.precision=bf16 or a lower optimizer.learning_rate"
        )


def compare_replicas(network: nn.Module, optimizer: SGD, ranks: Ranks) -> None:
    """Raise UserError on all ranks unless parameters and momenta are bit-identical on all of them.

    BatchNorm statistics differ by design: each rank computes them from its own images (RECIPE 9). This waits
    for the device.
    """
    differing = None
    for name, parameter in network.named_parameters():
        momentum = optimizer.state.get(parameter, {}).get("momentum_buffer")
        for own, what in ((parameter.detach(), name), (momentum, f"{name} (momentum)")):
            if own is not None:
                main = own.clone(memory_format=torch.contiguous_format)
                ranks.take_main([main])
                if differing is None and not torch.equal(own.view(torch.int32), main.view(torch.int32)):
                    differing = what
    told = [f"{name} of rank {rank}" for rank, name in enumerate(ranks.gather(differing)) if name]
    if told:
        raise UserError(
            f"the replicas are out of sync: {', '.join(told)} differs from rank 0's. "
            "A GPU, memory or network is faulty; replace it, then start again from the newest checkpoint"
        )


class Watchdog:
    """Prints the stacks of all threads if `alive` isn't called for `timeout`, then kills the process.

    It starts with the first call, because the time for start-up depends on the data. None: no timeout.
    Time while the process is stopped (SIGSTOP, a paused container) doesn't count. A thread does the counting,
    so a call that never releases Python's lock stops it too; only the other ranks' watchdogs find such a
    hang.
    """

    def __init__(self, timeout: timedelta | None) -> None:
        self._timeout = timeout
        self._counted_s, self._limit_s = 0.0, math.inf  # written by the thread only, and by `alive` only
        self._closed = Event()

    def alive(self, extra: timedelta = timedelta(0)) -> None:
        """Restart the timeout. extra: additional time allowed for what comes next."""
        if self._timeout is not None:
            self._allowed = self._timeout + extra
            self._limit_s = self._counted_s + self._allowed.total_seconds()

    def __enter__(self) -> Self:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
        if self._timeout is not None:
            Thread(target=self._watch, args=[self._timeout], daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()

    def _watch(self, timeout: timedelta) -> None:
        tick_s = min(1.0, timeout.total_seconds() / 10)
        before = time.monotonic()
        while not self._closed.wait(tick_s):
            now = time.monotonic()
            self._counted_s += min(now - before, 2 * tick_s)
            before = now
            if self._counted_s >= self._limit_s:
                os.write(_STANDARD_ERROR, f"Timeout ({self._allowed})!\n".encode())
                faulthandler.dump_traceback(_STANDARD_ERROR)
                if not self._closed.wait(GRACE.total_seconds()) and self._counted_s >= self._limit_s:
                    os.kill(os.getpid(), signal.SIGALRM)
