"""The only source of chance in the input: raw random numbers by counter, without state."""

import numpy as np
from numpy.typing import NDArray

ORDER_STREAM = 0
"""Stream of an epoch's order; image i draws from stream i + 1."""


def raw_draws(seed: int, epoch: int, stream: int, count: int) -> NDArray[np.uint64]:
    """Return `count` uniform 64-bit integers that depend on (seed, epoch, stream) alone.

    Philox is counter-based: the seed is its key, the epoch and the stream are words of its counter, so any
    place is reached without drawing what comes before it and no two streams overlap. The raw output is
    the one thing of NumPy's generators that every version keeps to the bit.
    Raises ValueError for a negative seed.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is outside 0 … 2^64 - 1: choose another with seed=")
    return np.random.Philox(key=seed, counter=[0, stream, epoch, 0]).random_raw(count)
