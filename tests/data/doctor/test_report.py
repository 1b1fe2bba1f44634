"""The figures of a report against slow literal ones, and how they are shown."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from data.doctor.findings import Finding, Kind
from data.doctor.report import DatasetReport, SplitReport, TruthScore
from data.doctor.statistics import Statistics, best_ious, describe
from ssd.annotations import Annotations
from ssd.boxes import cxcywh_to_ltrb, default_boxes, pairwise_iou
from ssd.categories import Categories
from ssd.config import Split

pytestmark = pytest.mark.unit


def statistics_of(boxes_ltwh_px: list[tuple[float, ...]], crowd: tuple[int, ...] = ()) -> Statistics:
    """Statistics of boxes of a cat and a dog by turns, two an image of 300×300 pixels; there are no eels."""
    number, images = np.arange(len(boxes_ltwh_px)), len(boxes_ltwh_px)
    annotations = Annotations(
        categories=Categories((1, 2, 3), ("cat", "dog", "eel")),
        file_names=("x.jpg",) * images,
        image_ids=np.arange(images),
        sizes_px=np.full((images, 2), 300),
        box_starts=np.minimum(2 * np.arange(images + 1), images),
        boxes_ltwh_px=np.array(boxes_ltwh_px, dtype=np.float64).reshape(-1, 4),
        labels=(number % 2 + 1).astype(np.int32),
        crowd=np.isin(number, crowd),
        positions=number,
        ids=number,
    )
    return describe(annotations, np.ones(images, dtype=np.bool_))


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


def test_figures_count_what_they_say() -> None:
    figures = statistics_of(
        [(0, 0, 300, 300), (0, 0, 4, 4), (10, 10, 21, 21), (5, 5, 100, 3), (0, 0, 20, 20)], crowd=(1, 4)
    )
    assert (figures.images, figures.images_without_boxes) == (5, 2)
    assert (figures.boxes, figures.crowd_boxes) == (5, 2)
    assert figures.boxes_of_class == {"cat": 3, "dog": 2, "eel": 0}
    assert [size.boxes for size in figures.sizes] == [3, 1, 0, 0, 0, 0, 1]
    assert figures.unmatched == sum(size.unmatched for size in figures.sizes) == 2  # 4×4 and 100×3


def test_only_the_part_inside_the_image_counts() -> None:
    assert statistics_of([(-200, -200, 204, 204)]).sizes[0].boxes == 1


def test_no_boxes_have_figures_too() -> None:
    figures = statistics_of([])
    assert (figures.boxes, figures.unmatched, figures.images_without_boxes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("findings", "proposed"),
    [
        ([("train", Kind.undecodable), ("val", Kind.box_small)], True),
        ([("train", Kind.undecodable)] * 10, False),  # no image with a box is left
        ([("train", Kind.undecodable), ("val", Kind.file_missing)], False),  # an evaluation leaves none out
        ([("train", Kind.undecodable), ("train", Kind.unknown_image)], False),
    ],
)
def test_quarantine_is_proposed_where_it_helps(findings: list[tuple[str, Kind]], proposed: bool) -> None:
    figures = Statistics(12, 2, 10, 0, {"ant": 10}, [], 0)
    splits = [SplitReport(split, Path(), Path(), figures, None) for split in Split]
    report = DatasetReport(splits, [(split, Finding(kind, "", "")) for split, kind in findings])
    assert ("quarantine" in report.verdict()) == proposed


@pytest.mark.parametrize(
    ("truth", "shown"),
    [
        (TruthScore(0.5, 9000), "0.500"),
        (TruthScore(1.0, 7), "1.000 (on 7 images)"),
        (TruthScore(-1, 9000), "–"),
        (None, "–"),
    ],
)
def test_ap_of_a_part_is_said_to_be_one(truth: TruthScore | None, shown: str) -> None:
    figures = Statistics(9000, 0, 9000, 0, {"ant": 9000}, [], 0)
    console = Console(file=StringIO(), width=200)
    DatasetReport([SplitReport(Split.train, Path(), Path(), figures, truth)], []).show(console)
    (line,) = [line for line in console.file.getvalue().splitlines() if "AP of the ground truth" in line]
    assert line.split("│")[2].strip() == shown
