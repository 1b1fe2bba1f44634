"""A report's figures against slow literal references, and how they are shown."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from data.doctor.report import DatasetReport, SplitReport, best_ious, describe
from ssd.annotations import read_annotations
from ssd.boxes import cxcywh_to_ltrb, default_boxes, pairwise_iou

pytestmark = pytest.mark.unit


def figures_of(
    boxes_ltwh_px: list[tuple[float, ...]], file: Path, crowd: tuple[int, ...] = ()
) -> SplitReport:
    """Describe boxes, cat and dog in turn, two per image of 300×300 pixels; no box is an eel."""
    boxes = [
        {"id": n, "image_id": n // 2, "category_id": 1 + n % 2, "bbox": box, "iscrowd": int(n in crowd)}
        for n, box in enumerate(boxes_ltwh_px)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 300, "height": 300} for n in range(5)]
    categories = [{"id": 1 + n, "name": name} for n, name in enumerate(("cat", "dog", "eel"))]
    file.write_text(json.dumps({"images": images, "categories": categories, "annotations": boxes}))
    annotations = read_annotations(file, "data.train_annotations")
    return describe(annotations, np.ones(len(boxes), dtype=np.bool_), str(file), "")


def test_best_iou_is_that_over_all_default_boxes() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.uniform(0.001, 1, (3000, 2)) ** 2
    centers = sizes / 2 + rng.uniform(0, 1, (3000, 2)) * (1 - sizes)
    boxes_cxcywh = np.concatenate((centers, sizes), axis=1)
    expected = pairwise_iou(
        cxcywh_to_ltrb(torch.tensor(boxes_cxcywh)), cxcywh_to_ltrb(default_boxes().double())
    ).amax(dim=1)
    np.testing.assert_allclose(best_ious(boxes_cxcywh), expected.numpy(), rtol=0, atol=1e-12)
    np.testing.assert_allclose(best_ious(default_boxes().double().numpy()), 1, rtol=0, atol=1e-12)


def test_figures_count_what_they_say(tmp_path: Path) -> None:
    boxes_ltwh_px = [(0, 0, 300, 300), (0, 0, 4, 4), (10, 10, 21, 21), (5, 5, 100, 3), (0, 0, 20, 20)]
    figures = figures_of(boxes_ltwh_px, tmp_path / "a.json", crowd=(1, 4))
    assert (figures.images, figures.images_without_boxes) == (5, 2)
    assert (figures.boxes, figures.crowd_boxes) == (5, 2)
    assert figures.boxes_of_class == {"cat": 3, "dog": 2, "eel": 0}
    assert [size["boxes"] for size in figures.sizes] == [3, 1, 0, 0, 0, 0, 1]
    assert figures.unmatched == sum(size["unmatched"] for size in figures.sizes) == 2  # 4×4 and 100×3
    inside = figures_of([(-200, -200, 204, 204)], tmp_path / "a.json")
    assert inside.sizes[0]["boxes"] == 1
    nothing = figures_of([], tmp_path / "a.json")
    assert (nothing.boxes, nothing.unmatched, nothing.images_without_boxes) == (0, 0, 5)


@pytest.mark.parametrize(
    ("truth", "shown"),
    [((0.5, 9000), "0.500"), ((1.0, 7), "1.000 (on 7 images)"), ((-1, 9000), "–"), ((None, None), "–")],
)
def test_ap_of_a_part_is_said_to_be_one(truth: tuple[Any, Any], shown: str) -> None:
    ap, scored = truth
    figures = SplitReport("", "", 9000, ground_truth_ap=ap, ground_truth_images_scored=scored)
    console = Console(file=StringIO(), width=200)
    DatasetReport({"train": figures}, []).show(console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "AP of the ground truth" in line]
    assert line.split("│")[2].strip() == shown
