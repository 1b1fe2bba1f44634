"""A set without a validation split → two splits, the same each time."""

import hashlib
from collections.abc import Sequence

from data.convert.dataset import Picture, Split
from ssd.errors import UserError


def deal(pictures: Sequence[Picture], val_fraction: float, seed: int) -> dict[Split, tuple[Picture, ...]]:
    """Put round(val_fraction · N) of N pictures, at least one and not all, into `val`, the rest into `train`.

    Each name is hashed with the seed and the lowest hashes are `val`: neither the order of the files nor the
    machine matters, and a picture that is added later moves hardly any other one.
    pictures: at least one. Raises UserError for a single one.
    """
    if len(pictures) < 2:
        raise UserError(f"{pictures[0].file} is the only picture, one split stays empty; add more")

    def rank(picture: Picture) -> bytes:
        return hashlib.sha256(f"{seed}/{picture.name}".encode()).digest()

    count = min(max(round(val_fraction * len(pictures)), 1), len(pictures) - 1)
    chosen = {picture.name for picture in sorted(pictures, key=rank)[:count]}
    return {
        "train": tuple(picture for picture in pictures if picture.name not in chosen),
        "val": tuple(picture for picture in pictures if picture.name in chosen),
    }
