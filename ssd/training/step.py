"""One training step. Nothing in it waits for the device, and every shape is static."""

from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm
from torch.optim import SGD

from ssd.batches import TrainBatch
from ssd.config import RuntimeConfig
from ssd.distributed import Ranks
from ssd.loss import MultiBoxLoss
from ssd.runtime import Runtime
from ssd.training.guards import FiniteGuard


@dataclass(frozen=True)
class TrainStep:
    """Forward, loss, backward, optimizer step; where a gradient is not finite, as if it had not been.

    model: the network as `compile_and_share` returns it. scaler: enabled for fp16 alone.
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
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = learning_rate
        statistics_before = [_flat(buffers) for buffers in self._statistics]
        with self.runtime.autocast():
            offsets, logits = self.model(self.runtime.arrange(batch.images))
        localization, confidence = self.loss.parts(offsets, logits, batch.target_offsets, batch.labels)
        loss = localization + confidence
        # An infinite loss may have finite gradients, on one rank alone: replicas would get out of sync. A NaN
        # factor reaches every gradient, and every rank through the sum over ranks; 1 changes no bit.
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        self.scaler.scale(loss).backward()

        # The sum of magnitudes: a value that is not finite makes it so, in a fifth of the largest one's time.
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        skipped = ~torch.isfinite(get_total_norm(gradients, norm_type=1.0))
        # A fused optimizer leaves parameters and momentum alone where this is 1. A loss scaler sets its own.
        self.optimizer.found_inf = skipped.float()  # type: ignore[attr-defined]  # read by SGD.step
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        for buffers, before in zip(self._statistics, statistics_before, strict=True):
            kept = torch.where(skipped, before, _flat(buffers)).split([each.numel() for each in buffers])
            torch._foreach_copy_(
                buffers, [part.view_as(own) for part, own in zip(kept, buffers, strict=True)]
            )

        parts = torch.stack([localization.detach(), confidence.detach()])
        # Overflow under a loss scaler is how it finds its scale; a bad step is one whose loss isn't finite.
        bad = ~torch.isfinite(parts).all() if self.scaler.is_enabled() else skipped
        self.guard.note(step, parts, bad)
        return parts, ~skipped

    @cached_property
    def _statistics(self) -> list[list[Tensor]]:
        """BatchNorm's buffers by type, floats and counts: together they take a few kernels, not hundreds."""
        buffers = list(self.model.buffers())
        floats = [each for each in buffers if each.is_floating_point()]
        counts = [each for each in buffers if not each.is_floating_point()]
        return [group for group in (floats, counts) if group]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.view(-1) for each in tensors])


def compile_and_share(network: nn.Module, config: RuntimeConfig, ranks: Ranks) -> nn.Module:
    """Return the network as a step calls it: compiled where configured, in DDP where there are ranks."""
    if config.compile:
        torch.compiler.reset()  # a sweep's job before left code for any shape, which may round otherwise
    model = cast(nn.Module, torch.compile(network)) if config.compile else network
    if ranks.world_size == 1:
        return model
    # DDP rebuilds its buckets after a process's first step, and from then on sums over 3 and more ranks in
    # another order: a resumed run would differ by rounding. Looking for unused parameters forbids it.
    return DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=config.deterministic,
        # Training looks at no BatchNorm statistics, and whoever does takes rank 0's (Ranks.take_main).
        forward_sync_buffers=False,
    )
