"""Which images a step or an evaluation batch consists of: (seed, epoch, step, rank, world size) → images.

Images are named by their place in the cleaned index. Nothing here has state, so any step is reached directly.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.draws import ORDER_STREAM, raw_draws


@lru_cache(maxsize=2)  # the steps of an epoch share one order; two, since prefetching runs over its end
def epoch_order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a read-only permutation of 0 … images - 1, from (seed, epoch) alone.

    The places are sorted by one 64-bit draw each: a stable sort of Philox's raw output is the same in every
    NumPy version, which Generator.permutation is not.
    """
    order = np.argsort(raw_draws(seed, epoch, ORDER_STREAM, images), kind="stable")
    order.flags.writeable = False
    return order


def steps_per_epoch(images: int, global_batch_size: int) -> int:
    """Count the whole global batches of an epoch; the last incomplete one is dropped (RECIPE 9)."""
    return images // global_batch_size


def epoch_of(step: int, images: int, global_batch_size: int) -> int:
    """Return the epoch of a step, both counted from 0."""
    return step // steps_per_epoch(images, global_batch_size)


def global_batch(step: int, images: int, global_batch_size: int, seed: int) -> NDArray[np.int64]:
    """Return the images of a step's global batch, rank by rank."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(images, global_batch_size))
    first = step_in_epoch * global_batch_size
    return epoch_order(images, seed, epoch)[first : first + global_batch_size]


def rank_share(batch: NDArray[np.int64], rank: int, world_size: int) -> NDArray[np.int64]:
    """Return a rank's contiguous part of a global batch whose size the world size divides."""
    batch_size = len(batch) // world_size
    return batch[rank * batch_size : (rank + 1) * batch_size]


def evaluation_batches(images: int, batch_size: int, rank: int, world_size: int) -> list[range]:
    """List a rank's batches of an evaluation: each image exactly once over all ranks, in file order.

    The batches are cut first and then dealt round robin, so what stands in a batch is the same for every
    world size. The last may be smaller, and a rank may get none.
    """
    batches = [range(first, min(first + batch_size, images)) for first in range(0, images, batch_size)]
    return batches[rank::world_size]
