"""Figures of a split against slow literal ones."""

import numpy as np
import pytest
import torch

from data.doctor.annotations import ReadBoxes
from data.doctor.statistics import best_ious, describe
from ssd.boxes import cxcywh_to_ltrb, default_boxes, pairwise_iou

pytestmark = pytest.mark.unit


def read_boxes(ltwh_px: list[tuple[float, ...]], crowd: tuple[int, ...] = ()) -> ReadBoxes:
    """Boxes of categories 0 and 1 by turns, two an image of 300×300 pixels."""
    number = np.arange(len(ltwh_px))
    return ReadBoxes(
        image_ids=range(len(ltwh_px)),
        category_ids=range(2),
        places=number,
        images=number // 2,
        categories=number % 2,
        ltwh_px=np.array(ltwh_px, dtype=np.float64).reshape(-1, 4),
        crowd=np.isin(number, crowd),
        sizes_px=np.full((len(ltwh_px), 2), 300.0),
    )


def test_best_iou_is_that_over_all_default_boxes() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.uniform(0.001, 1, (3000, 2)) ** 2
    centres = sizes / 2 + rng.uniform(0, 1, (3000, 2)) * (1 - sizes)
    boxes_cxcywh = np.concatenate((centres, sizes), axis=1)
    expected = pairwise_iou(
        cxcywh_to_ltrb(torch.tensor(boxes_cxcywh)), cxcywh_to_ltrb(default_boxes().double())
    ).amax(dim=1)
    np.testing.assert_allclose(best_ious(boxes_cxcywh), expected.numpy(), rtol=0, atol=1e-12)


def test_default_boxes_match_themselves() -> None:
    np.testing.assert_allclose(best_ious(default_boxes().double().numpy()), 1, rtol=0, atol=1e-12)


def test_figures_count_what_they_say() -> None:
    boxes = read_boxes(
        [(0, 0, 300, 300), (0, 0, 4, 4), (10, 10, 21, 21), (5, 5, 100, 3), (0, 0, 20, 20)], (1, 4)
    )
    figures = describe(boxes, ["cat", "dog", "eel"], images=5)
    assert (figures.images, figures.images_without_boxes) == (5, 2)
    assert (figures.boxes, figures.crowd_boxes) == (5, 2)
    assert figures.boxes_of_class == {"cat": 3, "dog": 2, "eel": 0}
    assert [size.boxes for size in figures.sizes] == [3, 1, 0, 0, 0, 0, 1]
    assert figures.unmatched == sum(size.unmatched for size in figures.sizes) == 2  # 4×4 and 100×3


def test_only_the_part_inside_the_image_counts() -> None:
    figures = describe(read_boxes([(-200, -200, 204, 204)]), ["cat"], images=1)
    assert figures.sizes[0].boxes == 1


def test_no_boxes_have_figures_too() -> None:
    figures = describe(read_boxes([]), [], images=0)
    assert (figures.boxes, figures.unmatched, figures.images_without_boxes) == (0, 0, 0)
