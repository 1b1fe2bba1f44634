"""What is counted between two log records: losses on the device, times on the host."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class LossMeter:
    """Sums the loss's parts of the steps taken, on the device; only reading makes the host wait for them.

    Its state goes into checkpoints, so that a resumed run writes the records of an uninterrupted one.
    """

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(3, device=device)  # localisation, confidence, steps

    def add(self, parts: Tensor, taken: Tensor) -> None:
        """Count one step. parts: 2, localisation and confidence. taken: a bool on the device."""
        counted = torch.cat([parts, torch.ones_like(parts[:1])])
        self._sums += torch.where(taken, counted, 0.0)

    def read(self) -> list[float]:
        """Wait for the device and return the sums of both parts and the number of steps they are over."""
        sums: list[float] = self._sums.tolist()
        return sums

    def reset(self) -> None:
        """Start a new interval."""
        self._sums.zero_()

    def restore(self, sums: list[float]) -> None:
        """Go on in the middle of an interval."""
        self._sums.copy_(torch.tensor(sums))


class Stopwatch:
    """Time of an interval of training and how much of it went into waiting for data."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new interval; what came before (an evaluation, say) isn't counted."""
        self._start = time.perf_counter()
        self._waited = 0.0
        self.steps = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data, and one step."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self.steps += 1

    def read(self) -> tuple[float, float]:
        """Return seconds a step and the share of them that went into waiting for data."""
        elapsed = time.perf_counter() - self._start
        return elapsed / max(self.steps, 1), self._waited / elapsed if elapsed else 0.0
