"""What a checkpoint says of its run: the one place that names its keys."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from ssd.categories import Categories
from ssd.checkpoint import FORMAT, CheckpointError

CAPTURED = ("model", "optimizer", "scaler", "ranks")  # by ssd.training.resume.TrainState


@dataclass(frozen=True)
class SavedRun:
    """A run after some step.

    step: optimizer steps done. epoch: that of the last of them. config: TrainConfig as plain values.
    world_size, global_batch: ranks and images a step. fingerprint: of the cleaned training annotations.
    excluded_images: ids left out for their bad files, bad_images: ids whose place others took while training.
    nonfinite_steps: how many were not taken. numbers: COCO's 12 of an evaluation after this step, if there
    was one. best: AP and step of the evaluation that best.pt is of. captured: what TrainState captured.
    """

    step: int
    epoch: int
    config: dict[str, Any]
    world_size: int
    global_batch: int
    fingerprint: str
    categories: Categories
    excluded_images: list[int]
    bad_images: list[int]
    nonfinite_steps: int
    versions: dict[str, str]
    numbers: dict[str, float] | None
    best: dict[str, Any] | None
    captured: dict[str, Any]

    def as_plain(self) -> dict[str, Any]:
        """Return the checkpoint as the file holds it, `model` among its keys."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        del plain["captured"]
        return plain | {"format": FORMAT, "categories": self.categories.as_plain()} | self.captured

    @classmethod
    def from_plain(cls, plain: dict[str, Any], path: Path) -> Self:
        """Take a checkpoint apart. Raises CheckpointError where a key is missing; path: the file, to name."""
        names = {field.name for field in fields(cls)} - {"captured"}
        missing = sorted(key for key in names.union(CAPTURED) if key not in plain)
        if missing:
            raise CheckpointError(
                f"checkpoint {path} lacks {', '.join(missing)}: another version of this trainer wrote it. "
                "Go on with that one, or begin a run from its weights: name=… model.checkpoint=…"
            )
        values = {name: plain[name] for name in names} | {
            "categories": Categories.from_plain(plain["categories"]),
            "captured": {key: plain[key] for key in CAPTURED},
        }
        return cls(**values)
