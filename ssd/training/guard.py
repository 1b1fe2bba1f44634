"""Noticing steps that could not be taken, without the host waiting for the device in any step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BadSteps:
    """What a rank saw since it last looked: how many bad steps, and of the first of them two things.

    step: optimizer steps before it. localization, confidence: the loss's parts on that rank.
    """

    count: int
    step: int
    localization: float
    confidence: float

    @property
    def has_finite_loss(self) -> bool:
        """Tell whether that rank's own loss was finite, so that its gradients or another's were not."""
        return math.isfinite(self.localization + self.confidence)


class FiniteGuard:
    """Keeps count of bad steps on the device: `note` in every step queues work only, `read` waits."""

    def __init__(self, device: torch.device) -> None:
        # Count, first step, and the loss's parts there.
        self._seen = torch.zeros(4, dtype=torch.float64, device=device)

    def note(self, step: int, parts: Tensor, bad: Tensor) -> None:
        """Count a step if it is bad. parts: 2, localisation and confidence. bad: a bool on the device."""
        seen = torch.cat([self._seen[:1], torch.full_like(self._seen[:1], step), parts.double()])
        self._seen[1:] = torch.where(bad & (self._seen[0] == 0), seen[1:], self._seen[1:])
        self._seen[0] += bad

    def read(self) -> BadSteps | None:
        """Wait for the device, return what was seen since the last reading, and start anew."""
        count, step, localization, confidence = self._seen.tolist()
        self._seen.zero_()
        return BadSteps(int(count), int(step), localization, confidence) if count else None
