"""The boxes that detections are scored against."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd.annotations import find_places as places
from ssd.annotations import read_ground_truth
from ssd.evaluation.matching import GroundTruth

__all__ = ["AnnotationFile", "places", "read_annotations"]


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """Ids of the file's images N and categories K, ascending, and its boxes, which refer to them by place."""

    path: Path
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: GroundTruth


def read_annotations(path: Path) -> AnnotationFile:
    """Read an annotation file for scoring. Raises UserError."""
    file = read_ground_truth(path)
    boxes = GroundTruth(file.images, file.categories, file.boxes_ltwh_px, file.areas, file.crowd)
    return AnnotationFile(path, file.image_ids, file.category_ids, boxes)
