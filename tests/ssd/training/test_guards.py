"""Replicas out of sync and processes that hang. Steps that are not finite: test_step, test_trainer."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from ssd.config import OptimizerConfig
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.training.guards import check_loss_scale, compare_replicas
from ssd.training.optimizer import build_optimizer

pytestmark = [pytest.mark.unit, pytest.mark.slow]


Replica = tuple[nn.Module, torch.optim.SGD]


class RankOne(Ranks):
    """Rank 1's view of three ranks, of which rank 0 has this replica."""

    def __init__(self, main: Replica) -> None:
        super().__init__(torch.device("cpu"), rank=1, world_size=3)
        network, optimizer = main
        parameters = [*network.parameters()]
        pairs = [(each, optimizer.state[each]["momentum_buffer"]) for each in parameters]
        self.of_main = iter([tensor.detach() for pair in pairs for tensor in pair])

    def take_main(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            tensor.copy_(next(self.of_main))

    def gather(self, value: Any) -> list[Any]:
        return [None, value, None]


def replica() -> Replica:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    return network, build_optimizer(network, OptimizerConfig())


def test_equal_replicas_pass_though_their_statistics_differ():
    network, optimizer = replica()
    network[1].running_mean += 1
    compare_replicas(network, optimizer, RankOne(replica()))


def test_the_first_tensor_or_momentum_that_differs_by_a_bit_and_its_rank_are_named():
    network, optimizer = replica()
    optimizer.state[network[1].bias]["momentum_buffer"][0] = -0.0
    with pytest.raises(UserError, match=r"sync: 1\.bias \(momentum\) of rank 1 differs from rank 0's"):
        compare_replicas(network, optimizer, RankOne(replica()))
    with torch.no_grad():
        network[1].weight[2] = torch.nextafter(network[1].weight[2], torch.tensor(9.0))
    with pytest.raises(UserError, match=r"1\.weight of rank 1 differs"):
        compare_replicas(network, optimizer, RankOne(replica()))


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**-11])
def test_gradients_that_overflow_step_after_step_stop_the_run(scale: float):
    told = pytest.raises(UserError, match=r"overflow in fp16 .*loss scale 0\.000488.*runtime\.precision=bf16")
    with told if scale < 2.0**-10 else nullcontext():
        check_loss_scale(torch.amp.GradScaler("cpu", init_scale=scale))


HANGING = """
import os, signal, time
from datetime import timedelta
from ssd.training import guards
guards.GRACE = timedelta(seconds=0.3)

def where_it_hangs():
    {hang}

with guards.Watchdog(timedelta(seconds=0.5)) as dog:
    for _ in range(4):  # longer than the limit, but never without a sign of life for so long
        time.sleep(0.2)
        dog.alive()
    print("alive", flush=True)
    where_it_hangs()
time.sleep(1)
print("closed")
"""
PAUSE = "os.kill(os.getpid(), signal.SIGSTOP)"


@pytest.mark.parametrize(
    ("hang", "ends_it", "output"),
    [
        (f"{PAUSE}; time.sleep(60)", True, "alive\n"),
        (PAUSE, False, "alive\nclosed\n"),
    ],
)
def test_a_process_that_hangs_prints_its_stacks_and_ends_but_not_one_that_was_paused(
    hang: str, ends_it: bool, output: str
):
    command = [sys.executable, "-c", HANGING.format(hang=hang)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        time.sleep(2)
        process.send_signal(signal.SIGCONT)
        told, stacks = process.communicate(timeout=50)
    assert told == output
    assert ("where_it_hangs" in stacks) == ends_it
    assert process.returncode == (-signal.SIGALRM if ends_it else 0)
