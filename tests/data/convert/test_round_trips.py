"""COCO → VOC or YOLO → COCO: what comes back, to the last digit if the format can hold it."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from data.convert import Options, convert
from data.convert.dataset import SPLIT_NAMES
from ssd.errors import UserError
from tests.data.convert.folders import (
    Row,
    category_names,
    coco_folder,
    content,
    from_coco,
    picture,
    rows,
    said_of,
    to_coco,
)

pytestmark = pytest.mark.unit

NAMES = ("zebra", "tea pot & lid", "ant")  # unsorted, and not valid xml without escaping


def random_boxes(count: int) -> list[Row]:
    """Draw boxes with two decimals, as COCO has them, inside 200×100 pixels."""
    rng = np.random.default_rng(3)
    left_top = rng.uniform(0, (150, 70), (count, 2)).round(2)
    size = rng.uniform(1, (50, 30), (count, 2)).round(2)
    boxes = np.concatenate((left_top, size), axis=1).tolist()
    return [(NAMES[place % 3], tuple(box), 0) for place, box in enumerate(boxes)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three splits with fractional boxes, one up to the edge, an empty picture, subfolders, odd names."""
    train = {
        "a.png": random_boxes(40),
        "sub/deep/b é.png": [("ant", (149.9, 0, 50.1, 100), 0), ("zebra", (0, 0, 200, 100), 0)],
        "c.d.png": [],
    }
    others = {"val": {"v.png": random_boxes(5)}, "test": {"t.png": random_boxes(7)}}
    return coco_folder(tmp_path / "coco", {"train": train} | others, NAMES)


def coco_of(folder: Path, boxes: list[Row]) -> Path:
    """Write a set with these boxes in picture a.png."""
    return coco_folder(folder, {"train": {"a.png": boxes}, "val": {"b.png": []}}, NAMES)


@pytest.mark.parametrize(("middle", "most_px"), [("voc", 0.5), ("yolo", 0)])
def test_what_comes_back(source: Path, tmp_path: Path, middle: str, most_px: float) -> None:
    said = from_coco(source, tmp_path / "middle", middle)
    to_coco(tmp_path / "middle", middle, tmp_path / "back")
    if middle == "voc":
        assert "\nt\n" not in (tmp_path / "middle/ImageSets/Main/trainval.txt").read_text()
    for section in ("images", "annotations"):  # ids count across splits
        ids = [one["id"] for split in SPLIT_NAMES for one in content(tmp_path / "back", split)[section]]
        assert ids == list(range(1, len(ids) + 1))
    for split in SPLIT_NAMES:
        assert category_names(tmp_path / "back", split) == list(NAMES)
        assert [category["id"] for category in content(tmp_path / "back", split)["categories"]] == [1, 2, 3]
        before, after = rows(source, split), rows(tmp_path / "back", split)
        assert before.keys() == after.keys()
        for name in before:
            file = f"{split}2017/{name}"
            assert (tmp_path / "back" / file).read_bytes() == (source / file).read_bytes()
            for one, other in zip(before[name], after[name], strict=True):
                assert (one[0], one[2]) == (other[0], other[2])
                if most_px == 0:
                    assert one[1] == other[1]
                sides = np.array([[*box[:2], box[0] + box[2], box[1] + box[3]] for box in (one[1], other[1])])
                assert np.abs(sides[0] - sides[1]).max() <= most_px + 1e-9
    rounded = [line for line in said if "rounded to VOC's whole pixels: " in line]
    assert len(rounded) == (middle == "voc")


@pytest.mark.parametrize(("middle", "back"), [("voc", [1, 0]), ("yolo", [0])])
def test_crowd_is_difficult_in_voc_and_left_out_of_yolo(tmp_path: Path, middle: str, back: list[int]) -> None:
    source = coco_of(tmp_path / "coco", [("ant", (3, 4, 50, 60), 1), ("ant", (3, 4, 50, 60), 0)])
    note = said_of(from_coco(source, tmp_path / "middle", middle), "crowd boxes left out, as ")
    assert ("for them: 1 (first: " in note and "a.png" in note) == (middle == "yolo")
    to_coco(tmp_path / "middle", middle, tmp_path / "back")
    assert [crowd for _, _, crowd in rows(tmp_path / "back", "train")["a.png"]] == back


def test_voc_corners_are_the_nearest_whole_ones_and_never_empty(tmp_path: Path) -> None:
    corners: dict[tuple[float, ...], tuple[int, ...]] = {  # of boxes in COCO's ltwh
        (0, 0, 200, 100): (1, 1, 200, 100),  # the whole picture
        (0, 0, 1, 1): (1, 1, 1, 1),  # its first pixel
        (199, 99, 1, 1): (200, 100, 200, 100),
        (3, 4, 50, 60): (4, 5, 53, 64),
        (10.4, 10.6, 5, 5): (11, 12, 15, 16),
        (10.5, 10.5, 5, 5): (12, 12, 16, 16),
        (10.6, 10.1, 0.3, 0.2): (11, 11, 11, 11),  # thinner than a pixel: the one it lies in
        (199.6, 99.7, 0.4, 0.3): (200, 100, 200, 100),
        (199.99, 99.99, 0.01, 0.01): (200, 100, 200, 100),
    }
    source = coco_of(tmp_path / "coco", [("ant", box, 0) for box in corners])
    from_coco(source, tmp_path / "voc", "voc")
    sides = ElementTree.parse(tmp_path / "voc/Annotations/a.xml").iterfind("object/bndbox")
    assert [tuple(int(side.text or "") for side in box) for box in sides] == list(corners.values())
    to_coco(tmp_path / "voc", "voc", tmp_path / "back")
    assert rows(tmp_path / "back", "train")["a.png"][:4] == rows(source, "train")["a.png"][:4]


@pytest.mark.parametrize(
    ("train", "val", "refusing"),
    [(("a.png", "a.bmp"), "v.png", ["voc", "yolo"]), (("a.png",), "a.png", ["voc"])],
)
def test_pictures_that_would_share_an_annotation_file_are_refused(
    tmp_path: Path, train: tuple[str, ...], val: str, refusing: list[str]
) -> None:
    one: list[Row] = [("ant", (1, 1, 9, 9), 0)]
    source = coco_folder(tmp_path / "coco", {"train": dict.fromkeys(train, one), "val": {val: one}}, NAMES)
    for middle in refusing:
        with pytest.raises(UserError, match=r"another picture is also called a; rename one"):
            from_coco(source, tmp_path / middle, middle)
    for middle in {"voc", "yolo"} - {*refusing}:
        from_coco(source, tmp_path / middle, middle)


def test_coco_boxes_without_area_inside_are_left_out_and_counted(tmp_path: Path) -> None:
    boxes = [("ant", (3, 4, 0, 60), 0), ("ant", (300, 4, 5, 5), 0), ("ant", (190, 4, 20, 10), 0)]
    said = from_coco(coco_of(tmp_path / "coco", boxes), tmp_path / "yolo", "yolo")
    assert "a.png" in said_of(said, "boxes left out because no area lies inside their picture: 2 ")
    assert said_of(said, "boxes clipped to their picture: 1 ")
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "back")
    assert rows(tmp_path / "back", "train") == {"a.png": [("ant", (190, 4, 10, 10), 0)]}


def test_bad_coco_source_is_named(source: Path, tmp_path: Path) -> None:
    val = source / "annotations" / "instances_val2017.json"
    text = val.read_text()
    picture(source / "train2017" / "a.png", 100, 200)
    for content_, message in (
        (text, r"train2017/a.png has 100×200 pixels but its annotations say 200×100; correct"),
        (text.replace('"ant"', '"bee"'), r"instances_val2017.json: 1 categories differ .*'ant' .*'bee'"),
        (text[:-9], r"instances_val2017.json"),
        (None, "instances_val2017.json is missing or not a file"),
    ):
        if content_ is None:
            val.unlink()
            val.mkdir()
        else:
            val.write_text(content_)
        with pytest.raises(UserError, match=message):
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
        expected = {
            file: [row for row in found if not row[2]]
            for file, found in rows(test_data / name, split).items()
        }
        assert rows(tmp_path / "back", split) == expected
