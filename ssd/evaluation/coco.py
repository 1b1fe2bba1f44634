"""COCO's 12 bounding-box numbers of a set of detections, equal to pycocotools' to the last bit."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd.errors import UserError
from ssd.evaluation.ground_truth import AnnotationFile, read_annotations
from ssd.evaluation.matching import IOU_THRESHOLDS, best_of_each_cell
from ssd.evaluation.precision import Tables, tabulate
from ssd.evaluation.results import Results, read_detections

__all__ = ["NAMES", "UserError", "coco_numbers"]

NAMES = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def coco_numbers(
    annotation_file: str | Path, detections: Results, image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    """Score detections against the annotation file as it stands.

    detections: COCO's results list ({image_id, category_id, bbox ltwh in pixels, score}), a path to a json
    file of one, or an n×7 float64 array (image_id, left, top, width, height, score, category_id).
    image_ids: score these images alone; by default every image of the file.
    Returns the numbers of RECIPE 7 by NAMES, −1 where the file has no ground truth to count (as pycocotools).
    Without any detection every number that counts something is 0. An annotation without `area` counts by its
    box's area. Raises UserError.
    """
    annotated = read_annotations(Path(annotation_file))
    truth, detected = annotated.boxes, read_detections(detections, annotated)
    if image_ids is not None:
        scored = _selection(image_ids, annotated)
        truth = truth.take(np.isin(truth.images, scored))
        detected = detected.take(np.isin(detected.images, scored))
    return _summary(tabulate(truth, best_of_each_cell(detected), len(annotated.category_ids)))


def _selection(image_ids: Iterable[int], annotated: AnnotationFile) -> NDArray[np.int64]:
    ids = np.array(list(image_ids), dtype=np.int64)
    unknown = ids[~np.isin(ids, annotated.image_ids)]
    if len(unknown):
        raise UserError(
            f"image_ids: {annotated.path} does not list {unknown[0]} (nor {len(unknown) - 1} others); "
            "give ids of its `images`"
        )
    return np.searchsorted(annotated.image_ids, ids)


def _summary(tables: Tables) -> dict[str, float]:
    precision, *precision_by_size = np.moveaxis(tables.precision, -1, 0)  # T×R×K each
    recall, *recall_by_size = np.moveaxis(tables.recall, 2, 0)  # T×K×M each
    parts = (
        precision, precision[IOU_THRESHOLDS == 0.5], precision[IOU_THRESHOLDS == 0.75], *precision_by_size,
        recall[..., 0], recall[..., 1], recall[..., 2], *(by_size[..., 2] for by_size in recall_by_size),
    )  # fmt: skip
    return {name: _mean(part) for name, part in zip(NAMES, parts, strict=True)}


def _mean(part: NDArray[np.float64]) -> float:
    """Average what counts: a category without a box to find holds −1."""
    counted = part[part > -1]
    return float(counted.mean()) if len(counted) else -1.0
