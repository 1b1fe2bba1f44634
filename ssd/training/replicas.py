"""Comparing what the ranks of a run must have in common: parameters and the optimizer's state."""

import torch
from torch import Tensor, nn
from torch.optim import SGD

from ssd.distributed import Ranks
from ssd.errors import UserError

# Odd, so that multiplying by it loses no bit: rows that swap change the sum.
_MIXER = 0x9E3779B97F4A7C15 - 2**64


def compare_replicas(network: nn.Module, optimizer: SGD, ranks: Ranks) -> None:
    """Raise UserError on all ranks unless parameters and momenta are equal on all, bit for bit.

    BatchNorm's statistics differ by design, each rank's being of its own images (RECIPE 9). It waits for the
    device.
    """
    names = []
    checksums = []
    for name, parameter in network.named_parameters():
        state = optimizer.state[parameter]
        for part, tensor in (("", parameter), (" (momentum)", state.get("momentum_buffer"))):
            if tensor is not None:
                names.append(name + part)
                checksums.append(checksum(tensor))
    of_ranks = ranks.gather(torch.stack(checksums).tolist())
    for place, name in enumerate(names):
        differing = [rank for rank, own in enumerate(of_ranks) if own[place] != of_ranks[0][place]]
        if differing:
            raise UserError(
                f"the replicas have parted: {name} of rank {', '.join(map(str, differing))} differs from "
                "rank 0's. A GPU or its memory is faulty, or the network between the machines; find out "
                "which, then start again: the run resumes from its newest checkpoint"
            )


def checksum(tensor: Tensor) -> Tensor:
    """Return a 64-bit sum over the bits of a float32 tensor and their places, on its device."""
    bits = tensor.detach().contiguous().view(torch.int32).flatten().long()
    places = torch.arange(1, len(bits) + 1, device=bits.device)
    return ((bits + places) * (_MIXER + 2 * places)).sum()
