"""Weight files as people have them."""

import io
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd.checkpoint import FORMAT
from ssd.model import SSD300
from tests.golden_inputs import published_weights

HEAD_SCALE = 2.0**-8
"""The golden network's outputs reach 4,000, too much for boxes; a power of two leaves their digits alone."""


def golden_weights() -> dict[str, Tensor]:
    """The golden ResNet-50 in published layout, its heads scaled by HEAD_SCALE."""
    weights = published_weights("resnet50")
    return {
        key: value * HEAD_SCALE if key.startswith(("loc.", "conf.")) else value
        for key, value in weights.items()
    }


def published_checkpoint(weights: Mapping[str, Tensor], prefix: str) -> bytes:
    """What the published trainer saves: weights, keyed as distributed training leaves them, and more."""
    scheduler = {"milestones": Counter({43: 1, 54: 1}), "gamma": 0.1, "last_epoch": 65}
    model = {prefix + key: value for key, value in weights.items()}
    return saved({"epoch": 65, "iteration": 1, "scheduler": scheduler, "model": model})


def our_checkpoint(network: SSD300, names: list[str]) -> dict[str, Any]:
    ids = [10 * (index + 1) for index in range(len(names))]
    return {
        "format": FORMAT,
        "model": dict(network.state_dict()),
        "categories": {"ids": ids, "names": names},
        "config": {},
    }


def saved(state: object) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)
