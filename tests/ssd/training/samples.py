"""A checkpoint's content, made up."""

from typing import Any

import torch

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
    "state": {"model": {"weight": torch.ones(2)}, "optimizer": {"state": {}}, "scaler": {}, "ranks": []},
}


def saved_run(**given: Any) -> SavedRun:
    return SavedRun(**(SAVED | given))
