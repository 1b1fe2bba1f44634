"""Noticing a loss or gradient that is not finite, without the host waiting for the device in any step."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from ssd.errors import UserError


class NonFiniteError(UserError):
    """Training met a loss or gradient that is not finite; the message names the step and its images."""


@dataclass(frozen=True)
class BadStep:
    """The first bad step that a rank saw: optimizer steps done before it, the loss's parts on that rank."""

    step: int
    localization: float
    confidence: float

    def __str__(self) -> str:
        return f"localisation {self.localization}, confidence {self.confidence}"


class FiniteGuard:
    """Keeps the first bad step on the device: `look` in every step queues work only, `read` waits."""

    def __init__(self, device: torch.device) -> None:
        self._first = torch.full((), -1.0, dtype=torch.float64, device=device)
        self._parts = torch.zeros(2, dtype=torch.float64, device=device)

    def look(self, step: int, parts: Tensor, gradients: Sequence[Tensor]) -> None:
        """Remember the step if it is the first with a part of the loss or a gradient that is not finite.

        parts: 2, localisation and confidence. gradients: none under a loss scaler, which handles overflow.
        """
        finite = torch.isfinite(parts).all()
        if gradients:
            finite = finite & torch.isfinite(get_total_norm(gradients, norm_type=float("inf")))
        first = ~finite & (self._first < 0)
        self._parts.copy_(torch.where(first, parts.double(), self._parts))
        self._first.copy_(torch.where(first, float(step), self._first))

    def read(self) -> BadStep | None:
        """Wait for the device and return the first bad step, if any."""
        step, localization, confidence = torch.cat([self._first.view(1), self._parts]).tolist()
        return BadStep(int(step), localization, confidence) if step >= 0 else None
