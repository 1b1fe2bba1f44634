"""One training step. Nothing in it waits for the device, and every shape is static."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ssd.batches import TrainBatch
from ssd.loss import MultiBoxLoss
from ssd.runtime import Runtime
from ssd.training.guard import FiniteGuard
from ssd.training.optimizer import set_learning_rate


@dataclass(frozen=True)
class TrainStep:
    """Forward, loss, backward, optimizer step.

    model: the network as it is trained (compiled, in DDP). scaler: enabled for fp16 alone.
    """

    model: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    guard: FiniteGuard
    runtime: Runtime
    loss: MultiBoxLoss

    def __call__(self, batch: TrainBatch, step: int, learning_rate: float) -> Tensor:
        """Take the step that follows `step` earlier ones.

        Returns the loss's parts on this rank, localisation and confidence (2, float32), still on the device.
        """
        set_learning_rate(self.optimizer, learning_rate)
        with self.runtime.autocast():
            offsets, logits = self.model(self.runtime.arrange(batch.images))
        localization, confidence = self.loss.parts(offsets, logits, batch.target_offsets, batch.labels)
        self.scaler.scale(localization + confidence).backward()

        parts = torch.stack([localization.detach(), confidence.detach()])
        self.guard.look(step, parts, self._unscaled_gradients())
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return parts

    def _unscaled_gradients(self) -> list[Tensor]:
        """List the gradients, or none where a loss scaler may make them overflow and then skips the step."""
        if self.scaler.is_enabled():
            return []
        return [
            p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
