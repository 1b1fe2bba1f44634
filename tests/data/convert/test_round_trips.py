"""COCO → VOC or YOLO → COCO: what comes back, to the last digit where the format holds it."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from data.convert import Options, convert
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


def test_voc_corners_are_the_nearest_whole_ones_and_never_empty(tmp_path: Path) -> None:
    corners: dict[tuple[float, ...], tuple[int, ...]] = {  # of boxes in COCO's ltwh
        (0, 0, 200, 100): (1, 1, 200, 100),  # the whole picture
        (0, 0, 1, 1): (1, 1, 1, 1),  # its first pixel
        (199, 99, 1, 1): (200, 100, 200, 100),
        (3, 4, 50, 60): (4, 5, 53, 64),
        (10.4, 10.6, 5, 5): (11, 12, 15, 16),
        (10.5, 10.5, 5, 5): (12, 12, 16, 16),
        (10.6, 10.1, 0.3, 0.2): (11, 11, 11, 11),  # under a pixel: the one it lies in
        (199.6, 99.7, 0.4, 0.3): (200, 100, 200, 100),
        (199.99, 99.99, 0.01, 0.01): (200, 100, 200, 100),
    }
    boxes = {"a.png": [("ant", box, 0) for box in corners]}
    source = coco_folder(tmp_path / "coco", {"train": boxes, "val": {"b.png": []}}, NAMES)
    from_coco(source, tmp_path / "voc", "voc")
    sides = ElementTree.parse(tmp_path / "voc/Annotations/a.xml").iterfind("object/bndbox")
    assert [tuple(int(side.text or "") for side in box) for box in sides] == list(corners.values())
    to_coco(tmp_path / "voc", "voc", tmp_path / "back")
    assert rows(tmp_path / "back", "train")["a.png"][:4] == rows(source, "train")["a.png"][:4]


@pytest.mark.parametrize("middle", ["voc", "yolo"])
def test_pictures_that_would_share_an_annotation_file_are_refused(tmp_path: Path, middle: str) -> None:
    pictures = {"a.png": [], "a.bmp": []}
    source = coco_folder(tmp_path / "coco", {"train": pictures, "val": {"v.png": []}}, NAMES)
    with pytest.raises(
        ValueError, match=r"a\.bmp: another picture has the annotation file a\..* too; rename"
    ):
        from_coco(source, tmp_path / "out", middle)
    assert not (tmp_path / "out").exists()


def test_the_same_name_in_both_splits_is_refused_by_voc_alone(tmp_path: Path) -> None:
    source = coco_folder(tmp_path / "coco", {"train": {"a.png": []}, "val": {"a.png": []}}, NAMES)
    with pytest.raises(ValueError, match=r"another picture has the annotation file a\.xml too"):
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
    options = Options(link="symlink")
    convert(test_data / name, "coco", tmp_path / "yolo", "yolo", options)
    convert(tmp_path / "yolo", "yolo", tmp_path / "back", "coco", options)
    for split in ("train", "val"):
        not_crowd = {
            file: [row for row in found if not row[2]]
            for file, found in rows(test_data / name, split).items()
        }
        assert rows(tmp_path / "back", split) == not_crowd
