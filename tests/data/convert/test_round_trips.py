"""COCO → VOC or YOLO → COCO: what comes back, to the last digit where the format holds it."""

from pathlib import Path

import numpy as np
import pytest

from data.convert.conversion import Format, Options, convert
from data.convert.dataset import Header
from data.convert.folder import Link
from data.convert.voc.corners import to_corners, to_ltwh
from data.index import Selection, read_index
from ssd.errors import UserError
from tests.data.convert.folders import category_names, coco_folder, content, from_coco, picture, rows, to_coco

pytestmark = pytest.mark.unit

NAMES = ("zebra", "tea pot & lid", "ant")  # neither sorted nor fit for xml as they stand


def random_boxes(count: int) -> list[tuple[str, tuple[float, ...], int]]:
    """Draw boxes with two decimals, as COCO has them, inside 200×100 pixels."""
    rng = np.random.default_rng(3)
    left_top = rng.uniform(0, (150, 70), (count, 2)).round(2)
    size = rng.uniform(1, (50, 30), (count, 2)).round(2)
    return [
        (NAMES[place % 3], tuple(box), 0)
        for place, box in enumerate(np.concatenate((left_top, size), axis=1).tolist())
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A COCO layout with fractional boxes, one to the very edge, an empty picture, sub-folders, odd names."""
    train = {
        "a.png": random_boxes(40),
        "sub/deep/b é.png": [("ant", (149.9, 0, 50.1, 100), 0), ("zebra", (0, 0, 200, 100), 0)],
        "c.d.png": [],
    }
    return coco_folder(tmp_path / "coco", {"train": train, "val": {"v.png": random_boxes(5)}}, NAMES)


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_come_back_from_yolo_to_the_last_digit(source: Path, tmp_path: Path, split: str) -> None:
    from_coco(source, tmp_path / "yolo", "yolo")
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "back")
    assert rows(tmp_path / "back", split) == rows(source, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_come_back_from_voc_within_half_a_pixel(source: Path, tmp_path: Path, split: str) -> None:
    said = from_coco(source, tmp_path / "voc", "voc")
    to_coco(tmp_path / "voc", "voc", tmp_path / "back")
    before, after = rows(source, split), rows(tmp_path / "back", split)
    assert before.keys() == after.keys()
    for name in before:
        assert [(row[0], row[2]) for row in before[name]] == [(row[0], row[2]) for row in after[name]]
        for (_, one, _), (_, other, _) in zip(before[name], after[name], strict=True):
            sides = np.array([[*box[:2], box[0] + box[2], box[1] + box[3]] for box in (one, other)])
            assert np.abs(sides[0] - sides[1]).max() <= 0.5 + 1e-9
    assert any("rounded to VOC's whole pixels, by 0.5 px at most" in line for line in said)


def test_whole_pixel_boxes_come_back_from_voc_unchanged(tmp_path: Path) -> None:
    boxes = [("ant", (0, 0, 1, 1), 0), ("ant", (199, 99, 1, 1), 0), ("zebra", (3, 4, 50, 60), 0)]
    source = coco_folder(tmp_path / "coco", {"train": {"a.png": boxes}, "val": {"b.png": boxes}}, NAMES)
    said = from_coco(source, tmp_path / "voc", "voc")
    to_coco(tmp_path / "voc", "voc", tmp_path / "back")
    assert rows(tmp_path / "back", "train") == rows(source, "train")
    assert not any("rounded" in line for line in said)


@pytest.mark.parametrize("middle", ["voc", "yolo"])
def test_category_order_splits_and_pictures_survive(source: Path, tmp_path: Path, middle: str) -> None:
    from_coco(source, tmp_path / "middle", middle)
    to_coco(tmp_path / "middle", middle, tmp_path / "back")
    for split in ("train", "val"):
        assert category_names(tmp_path / "back", split) == list(NAMES)
        assert [category["id"] for category in content(tmp_path / "back", split)["categories"]] == [1, 2, 3]
        for name in rows(source, split):
            file = f"{split}2017/{name}"
            assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()


def test_result_is_what_training_reads(source: Path, tmp_path: Path) -> None:
    from_coco(source, tmp_path / "yolo", "yolo")
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "back")
    every = Selection(images_without_boxes=True)
    before, after = (
        read_index(folder / "annotations" / "instances_train2017.json", folder / "train2017", every)
        for folder in (source, tmp_path / "back")
    )
    places = [list(after.file_names).index(name) for name in before.file_names]
    for image, place in enumerate(places):
        for one, other in zip(before.boxes_of(image), after.boxes_of(place), strict=True):
            np.testing.assert_array_equal(one, other)


def test_image_and_annotation_ids_differ_between_the_splits(source: Path, tmp_path: Path) -> None:
    from_coco(source, tmp_path / "yolo", "yolo")
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "back")
    for section in ("images", "annotations"):
        ids = [one["id"] for split in ("train", "val") for one in content(tmp_path / "back", split)[section]]
        assert ids == list(range(1, len(ids) + 1))


def test_crowd_is_difficult_in_voc_and_comes_back(tmp_path: Path) -> None:
    boxes = [("ant", (3, 4, 50, 60), 1), ("ant", (3, 4, 50, 60), 0)]
    source = coco_folder(tmp_path / "coco", {"train": {"a.png": boxes}, "val": {"b.png": boxes}}, NAMES)
    said = from_coco(source, tmp_path / "voc", "voc")
    assert any(line.startswith("2 crowd boxes are marked difficult") for line in said)
    to_coco(tmp_path / "voc", "voc", tmp_path / "back")
    assert rows(tmp_path / "back", "train") == rows(source, "train")


def test_crowd_is_left_out_of_yolo_and_counted(tmp_path: Path) -> None:
    boxes = [("ant", (3, 4, 50, 60), 1), ("ant", (5, 4, 50, 60), 0)]
    source = coco_folder(tmp_path / "coco", {"train": {"a.png": boxes}, "val": {"b.png": boxes}}, NAMES)
    said = from_coco(source, tmp_path / "yolo", "yolo")
    assert any(line.startswith("2 crowd boxes are left out") for line in said)
    assert len((tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().splitlines()) == 1


def test_voc_goes_straight_to_yolo_and_back(source: Path, tmp_path: Path) -> None:
    from_coco(source, tmp_path / "voc", "voc")
    convert(tmp_path / "voc", Format.voc, tmp_path / "yolo", Format.yolo, Options())
    to_coco(tmp_path / "voc", "voc", tmp_path / "from_voc")
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "from_yolo")
    assert rows(tmp_path / "from_voc", "train") == rows(tmp_path / "from_yolo", "train")


@pytest.mark.parametrize(
    ("ltwh_px", "corners"),
    [
        ((0, 0, 200, 100), (1, 1, 200, 100)),  # the whole picture
        ((0, 0, 1, 1), (1, 1, 1, 1)),  # its first pixel
        ((10.4, 10.6, 5, 5), (11, 12, 15, 16)),
        ((10.5, 10.5, 5, 5), (12, 12, 16, 16)),
        ((10.6, 10.1, 0.3, 0.2), (11, 11, 11, 11)),  # under a pixel: the one it lies in
        ((199.6, 99.7, 0.4, 0.3), (200, 100, 200, 100)),
        ((199.99, 99.99, 0.01, 0.01), (200, 100, 200, 100)),
    ],
)
def test_voc_corners_are_the_nearest_whole_ones_and_never_empty(
    ltwh_px: tuple[float, float, float, float], corners: tuple[int, int, int, int]
) -> None:
    assert to_corners(ltwh_px, Header(200, 100)) == corners


def test_voc_corners_stay_inside_the_picture_and_invert() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        left, top = rng.uniform(0, (200, 100))
        width, height = rng.uniform(0, (200 - left, 100 - top))
        xmin, ymin, xmax, ymax = corners = to_corners((left, top, width, height), Header(200, 100))
        assert 1 <= xmin <= xmax <= 200
        assert 1 <= ymin <= ymax <= 100
        assert to_corners(to_ltwh(corners), Header(200, 100)) == corners


@pytest.mark.parametrize("middle", ["voc", "yolo"])
def test_pictures_that_would_share_an_annotation_file_are_refused(tmp_path: Path, middle: str) -> None:
    pictures = {"a.png": [], "a.bmp": []}
    source = coco_folder(tmp_path / "coco", {"train": pictures, "val": {"v.png": []}}, NAMES)
    with pytest.raises(
        ValueError, match=r"a\.png and .*a\.bmp would share the annotation file of 'a'; rename"
    ):
        from_coco(source, tmp_path / "out", middle)
    assert not (tmp_path / "out").exists()


def test_the_same_name_in_both_splits_is_refused_by_voc_alone(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "coco", {"train": {"a.png": []}, "val": {"a.png": []}}, NAMES)
    with pytest.raises(ValueError, match="would share the annotation file of 'a'"):
        from_coco(source, tmp_path / "voc", "voc")
    from_coco(source, tmp_path / "yolo", "yolo")


def test_coco_boxes_without_area_inside_are_left_out_and_counted(tmp_path: Path) -> None:
    boxes = [("ant", (3, 4, 0, 60), 0), ("ant", (300, 4, 5, 5), 0), ("ant", (190, 4, 20, 10), 0)]
    source = coco_folder(tmp_path / "coco", {"train": {"a.png": boxes}, "val": {"b.png": []}}, NAMES)
    said = from_coco(source, tmp_path / "yolo", "yolo")
    assert any(line.startswith("2 boxes without area inside their picture are left out") for line in said)
    assert any(line.startswith("1 boxes hung over") and "by 10 px" in line for line in said)
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "back")
    assert rows(tmp_path / "back", "train") == {"a.png": [("ant", (190, 4, 10, 10), 0)]}


def test_coco_picture_of_another_size_than_its_entry_is_named(source: Path, tmp_path: Path) -> None:
    picture(source / "train2017" / "a.png", 100, 200)
    with pytest.raises(
        ValueError, match=r"instances_train2017.json: images\[0\] \(id 70\): says .*200×100.*100×200"
    ):
        from_coco(source, tmp_path / "voc", "voc")


def test_coco_splits_with_different_categories_are_refused(source: Path, tmp_path: Path) -> None:
    file = source / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"name": "ant"', '"name": "bee"'))
    with pytest.raises(UserError, match=r"instances_val2017.json: 1 categories differ .*'ant' .*'bee'"):
        from_coco(source, tmp_path / "voc", "voc")


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["bccd", "coco_mini"])
def test_photographs_come_back_from_yolo_to_the_last_digit(
    test_data: Path, tmp_path: Path, name: str
) -> None:
    options = Options(link=Link.symlink)
    convert(test_data / name, Format.coco, tmp_path / "yolo", Format.yolo, options)
    convert(tmp_path / "yolo", Format.yolo, tmp_path / "back", Format.coco, options)
    for split in ("train", "val"):
        not_crowd = {
            file: [row for row in found if not row[2]]
            for file, found in rows(test_data / name, split).items()
        }
        assert rows(tmp_path / "back", split) == not_crowd
