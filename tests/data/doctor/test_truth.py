"""Ground truth as detections scores 1.000; whatever goes wrong on its way to the evaluator lowers that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.coco import CocoIndex, Selection
from data.doctor.truth import score_truth
from tests.data.coco_folder import index_of, noise_folder

pytestmark = pytest.mark.unit

AS_EVALUATED = Selection("val", crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    data = noise_folder(tmp_path, 12)
    data.annotations[3] |= {"iscrowd": 1}
    return index_of(data, AS_EVALUATED)


def test_ground_truth_scores_one(index: CocoIndex) -> None:
    assert score_truth(index) == 1


def shifted_labels(index: CocoIndex) -> CocoIndex:
    return replace(index, labels=index.labels % 3 + 1)


def other_image_ids(index: CocoIndex) -> CocoIndex:
    return replace(index, image_ids=np.roll(index.image_ids, 1))


def exchanged_sides(index: CocoIndex) -> CocoIndex:
    return replace(index, sizes_px=index.sizes_px[:, ::-1].copy())


def lost_boxes(index: CocoIndex) -> CocoIndex:
    box_starts = index.box_starts.copy()
    box_starts[1:] -= 1
    return replace(index, box_starts=box_starts, boxes_ltrb=index.boxes_ltrb[1:], labels=index.labels[1:])


@pytest.mark.parametrize("damage", [shifted_labels, other_image_ids, exchanged_sides, lost_boxes])
def test_what_is_wrong_on_the_way_shows(index: CocoIndex, damage: Callable[[CocoIndex], CocoIndex]) -> None:
    assert score_truth(damage(index)) < 0.99


def test_set_of_crowds_alone_has_no_score(tmp_path: Path) -> None:
    data = noise_folder(tmp_path, 3)
    for annotation in data.annotations:
        annotation["iscrowd"] = 1
    assert score_truth(index_of(data, AS_EVALUATED)) == -1
