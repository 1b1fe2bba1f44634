"""One training step. Nothing in it waits for the device, and every shape is static."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD

from ssd.batches import TrainBatch
from ssd.loss import MultiBoxLoss
from ssd.runtime import Runtime
from ssd.training.guard import FiniteGuard
from ssd.training.optimizer import set_learning_rate


@dataclass(frozen=True)
class TrainStep:
    """Forward, loss, backward, optimizer step; where a gradient is not finite, as if it had not been.

    model: the network as it is trained (compiled, in DDP). scaler: enabled for fp16 alone.
    """

    model: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    guard: FiniteGuard
    runtime: Runtime
    loss: MultiBoxLoss

    def __call__(self, batch: TrainBatch, step: int, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Take the step that follows `step` earlier ones.

        Returns the loss's parts on this rank, localisation and confidence (2, float32), and whether the step
        was taken (bool, the same on all ranks), both still on the device.
        """
        set_learning_rate(self.optimizer, learning_rate)
        buffers = list(self.model.buffers())
        buffers_before = [buffer.clone() for buffer in buffers]
        with self.runtime.autocast():
            offsets, logits = self.model(self.runtime.arrange(batch.images))
        localization, confidence = self.loss.parts(offsets, logits, batch.target_offsets, batch.labels)
        self.scaler.scale(_spreading(localization + confidence)).backward()

        # The sum of magnitudes: a value that is not finite makes it so, in a fifth of the largest one's time.
        skipped = ~torch.isfinite(get_total_norm(self._gradients(), norm_type=1.0))
        # A fused optimizer leaves parameters and momentum alone where this is 1. A loss scaler sets its own.
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]  # read by SGD.step
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        _restore(buffers, buffers_before, skipped)

        parts = torch.stack([localization.detach(), confidence.detach()])
        # Overflow under a loss scaler is how it finds its scale; a bad step is one whose loss isn't finite.
        bad = ~torch.isfinite(parts).all() if self.scaler.is_enabled() else skipped
        self.guard.note(step, parts, bad)
        return parts, ~skipped

    def _gradients(self) -> list[Tensor]:
        """List the gradients, still multiplied by the loss scale."""
        return [
            p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]


def _spreading(loss: Tensor) -> Tensor:
    """Return the loss such that one that is not finite makes every gradient NaN, on all ranks.

    An infinite loss may have finite gradients, on one rank alone: replicas would part. A NaN factor reaches
    every gradient, and every rank through the sum over ranks; a factor of 1 changes no bit.
    """
    return loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))


def _restore(buffers: Sequence[Tensor], before: Sequence[Tensor], skipped: Tensor) -> None:
    """Give buffers (BatchNorm's statistics) their old values if the step was skipped."""
    for buffer, old in zip(buffers, before, strict=True):
        buffer.copy_(torch.where(skipped, old, buffer))
