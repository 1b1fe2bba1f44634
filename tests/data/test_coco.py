"""The index equals a literal reading of the file, counts what it drops, and is told by its fingerprint."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.coco import Selection, read_index
from ssd.categories import Categories
from ssd.errors import UserError
from tests.data.coco_folder import EVERY_VAL_IMAGE, CocoFolder, index_of, three_pictures

pytestmark = pytest.mark.unit


@pytest.fixture
def data(tmp_path: Path) -> CocoFolder:
    return three_pictures(tmp_path)


def test_index_holds_what_the_file_says(data: CocoFolder) -> None:
    index = index_of(data)
    assert index.categories == Categories(ids=(7, 90, 3), names=("bird", "bus", "cup"))
    assert index.image_ids.tolist() == [30, 20]
    assert list(index.file_names) == ["b.png", "sub/deep/a.png"]
    assert [index.path(image) for image in range(2)] == [
        str(data.image_folder / "b.png"),
        str(data.image_folder / "sub/deep/a.png"),
    ]
    assert index.sizes_px.tolist() == [[200, 100], [200, 100]]
    assert index.box_starts.tolist() == [0, 2, 3]
    expected = np.array([[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]], np.float32)
    assert np.array_equal(index.boxes_ltrb, expected)
    assert index.labels.tolist() == [1, 2, 3]
    assert (index.boxes_ltrb.dtype, index.labels.dtype) == (np.float32, np.int32)
    assert index.dropped["images without boxes"] == 1
    assert len(index) == 2


def test_boxes_of_an_image_stand_together_in_the_order_of_the_file(data: CocoFolder) -> None:
    data.annotations = [data.annotations[2], *data.annotations[:2]]
    index = index_of(data)
    boxes_ltrb, labels = index.boxes_of(0)
    assert labels.tolist() == [1, 2]
    assert boxes_ltrb[1].tolist() == [0, 0, 1, 1]
    assert index.boxes_of(1)[1].tolist() == [3]


def test_evaluation_keeps_every_image_of_the_file_in_its_order(data: CocoFolder) -> None:
    index = index_of(data, EVERY_VAL_IMAGE)
    assert index.image_ids.tolist() == [30, 10, 20]
    assert index.box_starts.tolist() == [0, 2, 2, 3]
    assert index.dropped["images without boxes"] == 0


def test_file_that_lists_images_alone_can_be_evaluated_on(data: CocoFolder) -> None:
    data.annotations = []
    assert len(index_of(data, EVERY_VAL_IMAGE)) == 3
    with pytest.raises(UserError, match="no image with a box is left; not used: 3 images without boxes"):
        index_of(data)


@pytest.mark.parametrize(
    ("box_ltwh_px", "expected_ltrb"),
    [
        ((-20, 10, 60, 50), [0, 0.1, 0.2, 0.6]),
        ((180, 90, 100, 100), [0.9, 0.9, 1, 1]),
        ((-5, -5, 500, 500), [0, 0, 1, 1]),
        ((15.4, 50, 1, 1), [0.077, 0.5, 0.082, 0.51]),  # 15.4 + 1 - 15.4 < 1 in floating point
    ],
)
def test_boxes_are_clipped_to_the_image(
    data: CocoFolder, box_ltwh_px: tuple[float, ...], expected_ltrb: list[float]
) -> None:
    data.annotations[2]["bbox"] = box_ltwh_px
    np.testing.assert_allclose(index_of(data).boxes_of(1)[0], [expected_ltrb], rtol=1e-6)


@pytest.mark.parametrize(
    ("box_ltwh_px", "reason"),
    [
        ((20, 10, 0.99, 50), "boxes under 1 px"),
        ((20, 10, 50, 0), "boxes under 1 px"),
        ((20, 10, -50, 50), "boxes under 1 px"),
        ((-20, 10, 20.5, 50), "boxes with under 1 px inside the image"),
        ((300, 10, 20, 50), "boxes with under 1 px inside the image"),
    ],
)
def test_boxes_too_small_to_learn_from_are_dropped_and_counted(
    data: CocoFolder, box_ltwh_px: tuple[float, ...], reason: str
) -> None:
    data.annotations[2]["bbox"] = box_ltwh_px
    index = index_of(data)
    assert index.labels.tolist() == [1, 2]
    counts = {"images without boxes": 2, reason: 1}
    assert index.dropped == dict.fromkeys(index.dropped, 0) | counts


def test_smallest_box_is_a_choice(data: CocoFolder) -> None:
    data.annotations[2]["bbox"] = (20, 10, 0.2, 50)
    assert index_of(data, Selection(min_box_px=0.1)).labels.tolist() == [1, 2, 3]


def test_crowd_boxes_are_kept_unless_refused(data: CocoFolder) -> None:
    data.annotations[0]["iscrowd"] = 1
    assert index_of(data).labels.tolist() == [1, 2, 3]
    index = index_of(data, Selection(crowd_boxes=False))
    assert index.labels.tolist() == [2, 3]
    assert index.dropped["crowd boxes"] == 1


def test_limit_takes_the_first_images_of_the_file_and_needs_no_other_pictures(data: CocoFolder) -> None:
    shutil.rmtree(data.image_folder / "sub" / "deep")
    index = index_of(data, Selection(limit=2))
    assert index.image_ids.tolist() == [30]
    assert index.labels.tolist() == [1, 2]
    assert index.dropped["images beyond data.limit"] == 1
    assert index.dropped["images without boxes"] == 1
    assert index_of(data, replace(EVERY_VAL_IMAGE, limit=2)).image_ids.tolist() == [30, 10]


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_below_one_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match=f"data.limit={limit}: give at least 1"):
        Selection(limit=limit)


def test_ids_may_be_any_64_bit_numbers(data: CocoFolder) -> None:
    data.categories[0]["id"] = 2**62
    data.annotations[0]["category_id"] = 2**62
    data.images[0]["id"] = -(2**63)
    data.annotations[0]["image_id"] = data.annotations[1]["image_id"] = -(2**63)
    index = index_of(data)
    assert index.categories.ids[0] == 2**62
    assert index.image_ids[0] == -(2**63)
    assert index.labels.tolist() == [1, 2, 3]


def change_box(data: CocoFolder) -> None:
    data.annotations[0]["bbox"] = [20, 10, 100, 51]


def change_label(data: CocoFolder) -> None:
    data.annotations[0]["category_id"] = 3


def change_image_id(data: CocoFolder) -> None:
    data.images[2]["id"] = data.annotations[2]["image_id"] = 21


def change_category_name(data: CocoFolder) -> None:
    data.categories[0]["name"] = "Bird"


def change_category_id(data: CocoFolder) -> None:
    data.categories[0]["id"] = data.annotations[0]["category_id"] = 8


def change_order(data: CocoFolder) -> None:
    data.images.reverse()


def change_file_name(data: CocoFolder) -> None:
    data.images[0]["file_name"] = "sub/c.png"


def move_box_to_another_image(data: CocoFolder) -> None:
    data.annotations[1]["image_id"] = 20


@pytest.mark.parametrize(
    "change",
    [
        change_box,
        change_label,
        change_image_id,
        change_category_name,
        change_category_id,
        change_order,
        change_file_name,
        move_box_to_another_image,
    ],
)
def test_fingerprint_tells_what_training_depends_on(
    data: CocoFolder, change: Callable[[CocoFolder], None]
) -> None:
    before = index_of(data).fingerprint()
    assert len(before) == 64
    assert int(before, 16)
    change(data)
    assert index_of(data).fingerprint() != before


def test_fingerprint_is_that_of_runs_begun_with_earlier_versions(data: CocoFolder) -> None:
    """Else their checkpoints could not be resumed."""
    expected = "4e4e12a4dd301eb60f548e1433923c4eff097c75366948485f9d9705e1a6b6d5"
    assert index_of(data).fingerprint() == expected


def test_fingerprint_does_not_depend_on_where_the_data_lies(data: CocoFolder, tmp_path: Path) -> None:
    before = index_of(data).fingerprint()
    data.annotations[0]["area"] = 5  # nothing that training reads
    data.folder = Path(shutil.copytree(tmp_path, tmp_path / "elsewhere"))
    assert index_of(data).fingerprint() == before


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("split", "images", "boxes", "without_boxes"), [("train", 310, 2716, 2), ("val", 188, 1692, 2)]
)
def test_index_of_real_photographs_equals_a_literal_reading(
    test_data: Path, split: str, images: int, boxes: int, without_boxes: int
) -> None:
    folder = test_data / "coco_mini"
    file = folder / "annotations" / f"instances_{split}2017.json"
    index = read_index(file, folder / f"{split}2017")
    document = json.loads(file.read_text())
    assert (len(document["images"]), len(index), len(index.labels)) == (images, images - without_boxes, boxes)
    assert index.dropped["images without boxes"] == without_boxes
    label_of = {category["id"]: label for label, category in enumerate(document["categories"], start=1)}
    place = 0
    for image in document["images"]:
        own = [each for each in document["annotations"] if each["image_id"] == image["id"]]
        if not own:
            continue
        assert index.image_ids[place] == image["id"]
        assert index.sizes_px[place].tolist() == [image["width"], image["height"]]
        boxes_ltrb, labels = index.boxes_of(place)
        assert labels.tolist() == [label_of[each["category_id"]] for each in own]
        for box, each in zip(boxes_ltrb, own, strict=True):
            x, y, w, h = each["bbox"]
            width, height = image["width"], image["height"]
            expected = [x / width, y / height, min((x + w) / width, 1), min((y + h) / height, 1)]
            np.testing.assert_allclose(box, expected, rtol=0, atol=1e-6)
        place += 1
    assert place == len(index)
