"""Ground truth as detections scores 1.000; whatever goes wrong on its way to the evaluator lowers that."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.doctor.annotations import ReadBoxes, check_annotations
from data.doctor.document import read_entries
from data.doctor.entries import check_categories, check_images
from data.doctor.truth import score_truth
from data.index import CocoIndex, Selection
from tests.data.coco_folder import index_of, noise_folder

pytestmark = pytest.mark.unit

AS_EVALUATED = Selection("val", crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    data = noise_folder(tmp_path, 12)
    data.annotations[3] |= {"iscrowd": 1}
    return index_of(data, AS_EVALUATED)


@pytest.fixture(params=["whole", "in part"])
def scored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How a set is scored: as one of up to SCORED_WHOLE images is, or as a larger one."""
    if request.param == "in part":
        monkeypatch.setattr("data.doctor.truth.SCORED_WHOLE", 0)
        monkeypatch.setattr("data.doctor.truth.SCORED_OF_CLASS", 1)
    return str(request.param)


def boxes_of(index: CocoIndex) -> ReadBoxes:
    """What stands in the index's annotation file."""
    entries = read_entries(index.source.annotation_file)
    images = check_images(entries.images, entries.findings)
    names = check_categories(entries.categories, entries.findings)
    return check_annotations(entries.annotations, images, [*names], entries.findings)


def test_ground_truth_scores_one(index: CocoIndex, scored: str) -> None:
    score = score_truth(index, boxes_of(index))
    assert score.ap == pytest.approx(1, abs=1e-12)
    assert score.images == 12 if scored == "whole" else score.images <= 3  # one of each class


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
@pytest.mark.usefixtures("scored")
def test_what_is_wrong_on_the_way_shows(index: CocoIndex, damage: Callable[[CocoIndex], CocoIndex]) -> None:
    assert score_truth(damage(index), boxes_of(index)).ap < 0.99


def moved_box(index: CocoIndex) -> CocoIndex:
    boxes_ltrb = index.boxes_ltrb.copy()
    boxes_ltrb[-1] *= 0.9
    return replace(index, boxes_ltrb=boxes_ltrb)


def other_label(index: CocoIndex) -> CocoIndex:
    labels = index.labels.copy()
    labels[-1] = labels[-1] % 3 + 1
    return replace(index, labels=labels)


def other_last_image(index: CocoIndex) -> CocoIndex:
    image_ids = index.image_ids.copy()
    image_ids[-1] = image_ids[0]
    return replace(index, image_ids=image_ids)


def lost_last_box(index: CocoIndex) -> CocoIndex:
    box_starts = np.minimum(index.box_starts, len(index.labels) - 1)
    return replace(index, box_starts=box_starts, boxes_ltrb=index.boxes_ltrb[:-1], labels=index.labels[:-1])


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("damage", [moved_box, other_label, other_last_image, lost_last_box])
def test_one_box_of_any_image_shows(index: CocoIndex, damage: Callable[[CocoIndex], CocoIndex]) -> None:
    """The last image is none of those that a large set is scored on."""
    assert score_truth(damage(index), boxes_of(index)).ap < 0.999


@pytest.mark.usefixtures("scored")
def test_what_the_file_itself_makes_impossible_shows(tmp_path: Path) -> None:
    """In the last image: a box that is mostly outside, one without area, more of a class than are scored."""
    for box in ([-90, 5, 100, 20], [5, 5, 0, 20]):
        data = noise_folder(tmp_path / str(box), 12)
        data.annotations[-1]["bbox"] = box
        index = index_of(data, AS_EVALUATED)
        assert score_truth(index, boxes_of(index)).ap < 0.999
    data = noise_folder(tmp_path / "many", 12)
    data.annotations += [data.annotations[-1] | {"bbox": [number / 9, 5, 9, 9]} for number in range(100)]
    index = index_of(data, AS_EVALUATED)
    assert score_truth(index, boxes_of(index)).ap < 0.999


@pytest.mark.usefixtures("scored")
def test_set_of_crowds_alone_has_no_score(tmp_path: Path) -> None:
    data = noise_folder(tmp_path, 3)
    for annotation in data.annotations:
        annotation["iscrowd"] = 1
    index = index_of(data, AS_EVALUATED)
    assert score_truth(index, boxes_of(index)).ap == -1
