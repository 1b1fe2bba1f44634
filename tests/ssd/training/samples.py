"""A checkpoint's content, made up."""

import torch

from ssd.categories import Categories
from ssd.cli import as_plain
from ssd.config import TrainConfig
from ssd.training.saved_run import SavedRun


def saved_run(step: int = 4, world_size: int = 1, global_batch: int = 4) -> SavedRun:
    return SavedRun(
        step=step,
        epoch=0,
        config=as_plain(TrainConfig(name="x")),
        world_size=world_size,
        global_batch=global_batch,
        fingerprint="f",
        categories=Categories((7, 3), ("cat", "dog")),
        excluded_images=[5],
        bad_images=[],
        nonfinite_steps=2,
        versions={"torch": "2"},
        numbers={"AP": 0.25},
        best=None,
        captured={"model": {"weight": torch.ones(2)}, "optimizer": {}, "scaler": {}, "ranks": []},
    )
