"""SGD with its two parameter groups, and the learning rate as a function of step and epoch."""

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD

from ssd.config import OptimizerConfig, ScheduleConfig

REFERENCE_BATCH = 32  # images per step for which optimizer.learning_rate is given (RECIPE 5)
DECAY = 0.1  # at each milestone (RECIPE 5)


@dataclass(frozen=True)
class Schedule:
    """Learning rate of the published recipe (RECIPE 5): linear warmup, then steps down at milestones.

    After a warmup of W steps the rate stays at base/W·(W−1): the published code never sets the base rate
    itself. A milestone within the warmup takes effect from its epoch on.
    """

    base: float
    warmup_steps: int
    milestones: tuple[int, ...]

    def __call__(self, step: int, epoch: int) -> float:
        """Return the learning rate for the next optimizer step, after `step` steps, in `epoch`."""
        rate = self.base
        if self.warmup_steps > 0:
            # Division first, as in the published code: the golden numbers match to the last bit.
            rate = self.base / self.warmup_steps * min(step, self.warmup_steps - 1)
        for _ in range(bisect_right(self.milestones, epoch)):
            rate *= DECAY
        return rate


def build_schedule(optimizer: OptimizerConfig, schedule: ScheduleConfig, global_batch: int) -> Schedule:
    """Return a run's schedule. The base rate scales with the global batch unless that is switched off."""
    base = optimizer.learning_rate
    if optimizer.scale_learning_rate:
        base *= global_batch / REFERENCE_BATCH
    return Schedule(base, schedule.warmup_steps, tuple(schedule.milestones or ()))


def parameter_groups(model: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Split named parameters into those with weight decay (more than one dimension) and those without."""
    decayed = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    undecayed = {name: p for name, p in model.named_parameters() if p.dim() <= 1}
    return decayed, undecayed


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> SGD:
    """Return SGD over the two groups of RECIPE 5; each step sets its own learning rate.

    It is fused: it takes "skip this step" as a tensor, also from GradScaler, so no step waits for the device.
    """
    decayed, undecayed = parameter_groups(model)
    groups = [
        {"params": list(decayed.values()), "weight_decay": config.weight_decay},
        {"params": list(undecayed.values()), "weight_decay": 0.0},
    ]
    optimizer = SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    # Zero momentum is equivalent to none. Without it, skipping the very first step would leave uninitialised
    # memory.
    for parameter in model.parameters() if config.momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
