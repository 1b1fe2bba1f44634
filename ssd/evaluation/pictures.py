"""Pictures of what a detector finds beside what there is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ssd.categories import Categories
from ssd.detect import SHOWN_SCORE
from ssd.image import draw_boxes, side_by_side


@dataclass(frozen=True)
class Example:
    """A validation image to be shown. boxes_ltrb_px: G×4 ground truth, labels: G, from 1."""

    image_id: int
    path: str
    boxes_ltrb_px: NDArray[np.float64]
    labels: NDArray[np.int64]


def example_pictures(
    examples: Sequence[Example], detections: NDArray[np.float64], categories: Categories
) -> dict[str, Image.Image]:
    """Draw each example twice, with its ground truth and with its detections above SHOWN_SCORE.

    detections: rows as in `Evaluation`. Returns the pictures by the name of their image file.
    """
    label_of = {category_id: label for label, category_id in enumerate(categories.ids, start=1)}
    pictures = {}
    for example in examples:
        mine = detections[(detections[:, 0] == example.image_id) & (detections[:, 5] > SHOWN_SCORE)]
        boxes_ltrb_px = np.concatenate([mine[:, 1:3], mine[:, 1:3] + mine[:, 3:5]], axis=1)
        labels = [label_of[int(category_id)] for category_id in mine[:, 6]]
        texts = [f"{categories.name_of(k)} {score:.2f}" for k, score in zip(labels, mine[:, 5], strict=True)]
        with Image.open(example.path) as file:
            truth = file.convert("RGB")
        found = truth.copy()
        names = [categories.name_of(int(label)) for label in example.labels]
        draw_boxes(truth, example.boxes_ltrb_px.tolist(), example.labels.tolist(), names)
        draw_boxes(found, boxes_ltrb_px.tolist(), labels, texts)
        captions = ("ground truth", f"detections above {SHOWN_SCORE}")
        pictures[Path(example.path).stem] = side_by_side(truth, found, captions)
    return pictures
