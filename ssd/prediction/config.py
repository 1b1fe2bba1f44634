"""The typed schema of conf/predict.yaml, and what follows from it and a checkpoint."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from omegaconf import MISSING

from ssd.categories import Categories, CategoryError
from ssd.coco_categories import COCO
from ssd.config import ConfigError, require
from ssd.detect import MAX_DETECTIONS
from ssd.evaluation.config import EvaluateRuntimeConfig
from ssd.evaluation.pictures import SHOWN_SCORE
from ssd.weights import Weights


@dataclass
class PredictConfig:
    """Everything that predict.py reads. images: a path, folder or glob, or a list of these."""

    checkpoint: str = MISSING
    images: Any = MISSING
    out: str = "predictions"
    threshold: float = SHOWN_SCORE
    max_detections: int = MAX_DETECTIONS
    classes: list[str] | None = None
    batch_size: int = 8
    threads: int | None = None
    runtime: EvaluateRuntimeConfig = field(default_factory=EvaluateRuntimeConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        require(0 <= self.threshold < 1, "threshold", self.threshold, "give a score from 0 to below 1")
        require(self.max_detections >= 1, "max_detections", self.max_detections, "give at least 1 a picture")
        require(self.classes != [], "classes", self.classes, "name at least one, or give null for all")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "give at least 1 picture")
        require(
            self.threads is None or self.threads >= 1, "threads", self.threads, "give at least 1, or null"
        )
        require(self.out != "", "out", "''", "name a folder")
        self.places()

    def places(self) -> list[str]:
        """List what `images` names, one or several. Raises ConfigError where a part of it is no text."""
        given = self.images if isinstance(self.images, list) else [self.images]
        # Hydra reads 2017 as a number, and that is a folder's name; of 1e3 and true the spelling is lost.
        for place in given:
            plain = isinstance(place, str | int) and not isinstance(place, bool) and place != ""
            require(
                plain, "images", place, "give a picture, folder or glob, or a list; quote what isn't text"
            )
        require(given != [], "images", given, "give at least one picture, folder or glob")
        return [str(place) for place in given]

    def resolve_classes(self, categories: Categories) -> frozenset[int]:
        """Return the labels of `classes`, of all where that is null.

        Raises ConfigError naming the classes nearest to one that the checkpoint doesn't know.
        """
        if self.classes is None:
            return frozenset(range(1, categories.num_classes))
        for name in self.classes:
            if name not in categories.names:
                raise ConfigError(f"classes: the checkpoint knows no {name!r}; {_nearest(name, categories)}")
        return frozenset(
            label for label, name in enumerate(categories.names, start=1) if name in self.classes
        )


def _nearest(name: str, categories: Categories) -> str:
    by_lower_case = {known.lower(): known for known in categories.names}
    near = [by_lower_case[each] for each in get_close_matches(name.lower(), by_lower_case, n=5)]
    if near:
        return f"near to it are {', '.join(near)}"
    return f"it knows {', '.join(categories.names)}"


def categories_of(weights: Weights, checkpoint: str) -> Categories:
    """Return the checkpoint's categories; a published one of 81 classes has COCO's.

    Raises CategoryError for a published checkpoint of another number of classes, which nobody can name.
    """
    if weights.categories is not None:
        return weights.categories
    if weights.num_classes == COCO.num_classes:
        return COCO
    raise CategoryError(
        f"{checkpoint} holds no class names and {weights.num_classes - 1} classes, where COCO has "
        f"{len(COCO.ids)}; give one of 80 classes, or one written by train.py, which holds their names"
    )
