"""train.py with a faulty memory: after two steps a bit of a momentum of rank 1 flips."""

import os
import runpy

import torch
from torch import Tensor

from ssd.batches import TrainBatch
from ssd.training.step import TrainStep
from tests.bench import ROOT

take_step = TrainStep.__call__


def take_faulty_step(self: TrainStep, batch: TrainBatch, step: int, rate: float) -> tuple[Tensor, Tensor]:
    result = take_step(self, batch, step, rate)
    if step == 1 and os.environ["RANK"] == "1":
        parameter = self.optimizer.param_groups[0]["params"][0]
        bits = self.optimizer.state[parameter]["momentum_buffer"].view(torch.int32)
        bits[0] ^= 1
    return result


TrainStep.__call__ = take_faulty_step
runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
