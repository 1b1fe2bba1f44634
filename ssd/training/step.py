"""One training step. It never waits for the device, and all shapes are static."""

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
    """Forward, loss, backward, optimizer step. A step with a non-finite gradient changes nothing.

    model: the network as `compile_and_share` returns it. scaler: enabled for fp16 only.
    """

    model: nn.Module
    optimizer: SGD
    scaler: torch.amp.GradScaler
    guard: FiniteGuard
    runtime: Runtime
    loss: MultiBoxLoss

    def __call__(self, batch: TrainBatch, step: int, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Take one step, after `step` earlier ones.

        Returns this rank's loss parts, localisation and confidence (2, float32), and whether the step was
        taken (bool, the same on all ranks). Both stay on the device.
        """
        groups = self.optimizer.param_groups
        for group in groups:
            group["lr"] = learning_rate
        statistics_before = [_flat(buffers) for buffers in self._statistics]
        with self.runtime.autocast():
            offsets, logits = self.model(self.runtime.arrange(batch.images))
        localization, confidence = self.loss.parts(offsets, logits, batch.target_offsets, batch.labels)
        loss = localization + confidence
        # An infinite loss can have finite gradients, and on one rank only: replicas would get out of sync.
        # A factor of NaN reaches every gradient and, through the all-reduce, every rank. 1 changes no bit.
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, float("nan"))
        self.scaler.scale(loss).backward()

        # The L1 norm is not finite if any value isn't, and takes a fifth of the time of the maximum norm.
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        skipped = ~torch.isfinite(get_total_norm(gradients, norm_type=1.0))
        # If this is 1, a fused optimizer changes neither parameters nor momenta. A loss scaler sets its own.
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
        # A loss scaler finds its scale through overflows: with one, only a non-finite loss makes a bad step.
        bad = ~torch.isfinite(parts).all() if self.scaler.is_enabled() else skipped
        self.guard.note(step, parts, bad)
        return parts, ~skipped

    @cached_property
    def _statistics(self) -> list[list[Tensor]]:
        """BatchNorm's buffers, floats and counts apart: copying each group at once takes few kernels."""
        buffers = list(self.model.buffers())
        floats = [each for each in buffers if each.is_floating_point()]
        counts = [each for each in buffers if not each.is_floating_point()]
        return [group for group in (floats, counts) if group]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.view(-1) for each in tensors])


def compile_and_share(network: nn.Module, config: RuntimeConfig, ranks: Ranks) -> nn.Module:
    """Return the network compiled, if configured, and wrapped in DDP if there are several ranks."""
    if config.compile:
        torch.compiler.reset()  # an earlier sweep job left dynamic-shape code, which may round differently
    model = cast(nn.Module, torch.compile(network)) if config.compile else network
    if ranks.world_size == 1:
        return model
    # DDP rebuilds its buckets after a process's first step, which changes the order of sums over 3 or more
    # ranks: a resumed run would differ by rounding. With find_unused_parameters it doesn't rebuild them.
    return DistributedDataParallel(
        model,
        device_ids=[ranks.device] if ranks.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=config.deterministic,
        # Training doesn't read BatchNorm statistics; evaluating and saving take rank 0's (Ranks.take_main).
        forward_sync_buffers=False,
    )
