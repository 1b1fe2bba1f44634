"""A checkpoint's content, made up, and a network that takes little time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

import ssd.model
from ssd.categories import Categories
from ssd.cli import as_plain
from ssd.config import TrainConfig
from ssd.training.state import SavedRun

SAVED: dict[str, Any] = {
    "step": 4,
    "epoch": 0,
    "config": as_plain(TrainConfig(name="x")),
    "world_size": 1,
    "global_batch": 4,
    "fingerprint": "f",
    "categories": Categories((7, 3), ("cat", "dog")),
    "excluded_images": [5],
    "bad_images": [],
    "nonfinite_steps": 2,
    "versions": {"torch": "2"},
    "numbers": {"AP": 0.25},
    "best": None,
    "scores": [0.25],
    "roll_back": False,
    "model": {"weight": torch.ones(2)},
    "optimizer": {"state": {}},
    "scaler": {},
    "ranks": [],
}


def saved_run(**given: Any) -> SavedRun:
    return SavedRun(**(SAVED | given))


@contextmanager
def small_networks() -> Iterator[None]:
    """Build resnet18 with a backbone of one convolution, for what depends on no network."""

    def backbone(_: object) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 16, kernel_size=7, stride=8, padding=3), nn.BatchNorm2d(16))

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ssd.model._MAP_CHANNELS, "resnet18", (16,) * 6)
        patch.setattr(ssd.model, "_cut_resnet", backbone)
        yield
