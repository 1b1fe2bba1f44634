"""Reading YOLO: the layouts of its tools, class names from each kind of file, and damage named by line."""

import re
from pathlib import Path

import pytest

from data.convert import Options
from ssd.errors import UserError
from tests.data.convert.folders import (
    YOLO_LINE,
    category_names,
    labelled,
    picture,
    rows,
    said_of,
    to_coco,
    yolo_folder,
)

pytestmark = pytest.mark.unit

BOX = (75.0, 25.0, 50.0, 50.0)  # YOLO_LINE in a picture of 200×100 pixels

ANT, ZEBRA = ("ant", BOX, 0), ("zebra", BOX, 0)
LINES = {
    "whole picture": ("1 0.5 0.5 1 1\n", [("ant", (0, 0, 200, 100), 0)], ""),
    "blank line": (f"{YOLO_LINE}\n1.0 .5 0.5 0.25 5e-1", [ZEBRA, ANT], ""),
    "empty file": ("", [], ""),
    "polygon": ("0 0.1 0.2 0.3 0.4 0.2 0.6\n", [("zebra", (20, 20, 40, 40), 0)], "polygons replaced .*: 1 "),
    "rounded": ("0 0.50001 0.5 1.0 0.5\n", [("zebra", (0.002, 25, 199.998, 50), 0)], "boxes clipped .*: 1 "),
}  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "note"), LINES.values(), ids=LINES.keys())
def test_line_is_class_and_relative_centre_and_size(
    tmp_path: Path, text: str, expected: list[tuple[str, tuple[float, ...], int]], note: str
) -> None:
    source = yolo_folder(tmp_path / "yolo", v=text, a=YOLO_LINE)
    picture(source / "images" / "train" / "b.png")
    (source / "labels" / "train" / "gone.txt").write_text(YOLO_LINE)
    said = to_coco(source, "yolo", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": expected}
    assert rows(tmp_path / "out", "train") == {"a.png": [("zebra", BOX, 0)], "b.png": []}
    assert "b.png" in said_of(said, "pictures kept without boxes because they have no label file: 1 ")
    assert "gone.txt" in said_of(said, "label files ignored, having no picture: 1 ")
    assert any(re.match(note, line) for line in said)


LAYOUTS = {
    "ultralytics": ("images/train/a", "labels/train/a", "images/val/b", "labels/val/b"),
    "roboflow": ("train/images/a", "train/labels/a", "valid/images/b", "valid/labels/b"),
    "beside": ("train/a", "train/a", "val/b", "val/b"),
    "coco's": ("images/train2017/a", "labels/train2017/a", "images/val2017/b", "labels/val2017/b"),
    "sub-folders": ("images/train/x/a", "labels/train/x/a", "images/val/x/b", "labels/val/x/b"),
}


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_of_tools_is_found(tmp_path: Path, places: tuple[str, str, str, str]) -> None:
    source = tmp_path / "images" / "yolo"  # a parent folder called images changes nothing
    labelled(source / f"{places[0]}.png", source / f"{places[1]}.txt")
    labelled(source / f"{places[2]}.png", source / f"{places[3]}.txt")
    (source / "obj.names").write_text("zebra\n")
    to_coco(source, "yolo", tmp_path / "out")
    for split, stem in (("train", "a"), ("val", "b")):
        ((name, found),) = rows(tmp_path / "out", split).items()
        assert name.endswith(f"{stem}.png")
        assert (tmp_path / "out" / f"{split}2017" / name).is_file()
        assert found == [("zebra", BOX, 0)]


@pytest.mark.parametrize(
    ("file", "config"),
    [  # in the given folder, or itself given
        ("data.yaml", "{path: ../x, train: images/one, val: images/two, names: {1: ant, 0: zebra}, nc: 2}"),
        ("dataset.yaml", "{train: ../images/one, val: [../images/two], names: [zebra, ant]}"),
        ("data.yaml", "{train: ./one.txt, val: two.txt, test: two.txt, names: [zebra, ant], roboflow: {}}"),
        ("mine.yml", "{train: one.txt, val: images/two, test: images/two, names: [zebra, ant]}"),
        ("../mine.yaml", "{path: yolo, train: images/one, val: images/two, names: [zebra, ant]}"),
        ("data.yaml", "{train: one.txt, val: two.txt, test: empty, names: [zebra, ant]}"),
    ],
)  # fmt: skip
def test_data_yaml_says_where_and_what(tmp_path: Path, file: str, config: str) -> None:
    source = tmp_path / "yolo"
    for split, stem in (("one", "a"), ("two", "b")):
        labelled(source / "images" / split / f"{stem}.png", source / "labels" / split / f"{stem}.txt")
        (source / f"{split}.txt").write_text(f"./images/{split}/{stem}.png\n")
    (source / file).write_text(config)
    picture(source / "empty" / "c.png")
    said = to_coco(source / file if "mine" in file else source, "yolo", tmp_path / "out")
    assert rows(tmp_path / "out", "train") == {"a.png": [("zebra", BOX, 0)]}
    assert rows(tmp_path / "out", "val") == {"b.png": [("zebra", BOX, 0)]}
    assert category_names(tmp_path / "out", "train") == ["zebra", "ant"]
    if "two, names" in config.partition("test: ")[2].replace(".txt", ""):
        assert rows(tmp_path / "out", "test") == {"b.png": [("zebra", BOX, 0)]}
    else:
        assert not (tmp_path / "out" / "test2017").exists()
        assert bool(said_of(said, "test split left out: ")) == ("test: " in config)


@pytest.mark.parametrize(
    ("pool", "labels", "listed"),
    [("images", "labels", ""), (".", ".", ""), ("obj_train_data", "obj_train_data", "data/")],
)
def test_set_without_splits_is_dealt(tmp_path: Path, pool: str, labels: str, listed: str) -> None:
    source = tmp_path / "yolo"
    for number in range(10):
        labelled(source / pool / f"{number}.png", source / labels / f"{number}.txt")
    if listed:  # darknet's lines begin with a folder that doesn't exist; other tools write absolute paths
        lines = [f"{listed}{pool}/{number}.png\n" for number in range(9)]
        (source / "train.txt").write_text("".join([*lines, f"{source}/{pool}/9.png\n"]))
    (source / "classes.txt").write_text("zebra\n")
    to_coco(source, "yolo", tmp_path / "out", Options(val_fraction=0.3))
    assert (len(rows(tmp_path / "out", "train")), len(rows(tmp_path / "out", "val"))) == (7, 3)


BAD_LINES = {
    "words": ("0 0.5 0.5", "3 numbers are neither class cx cy w h"),
    "confidence": ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers are neither"),
    "text": ("0 0.5 0.5 wide 0.1", "could not convert string to float: 'wide'; correct"),
    "NaN": ("0 0.5 nan 0.1 0.1", "box .* nan, .* has no area inside the 200×100 picture"),
    "class fraction": ("0.5 0.5 0.5 0.1 0.1", "class index 0.5 is not a whole number from 0 to 1"),
    "class unknown": ("2 0.5 0.5 0.1 0.1", "class index 2 is not a whole number from 0 to 1; correct"),
    "pixels": ("0 100 50 20 20", "box .* has no area inside the 200×100 picture"),
    "negative": ("0 0.5 0.5 -0.1 0.2", "box .* has no area inside the 200×100 picture"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_named_and_nothing_is_written(tmp_path: Path, line: str, message: str) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=f"{YOLO_LINE}{line}\n")
    with pytest.raises(UserError, match=rf"labels/train/a\.txt: line 2: {message}"):
        to_coco(source, "yolo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


FILES = {  # one bad file of a folder: its name, content (None: removed) and the message
    "yaml": ("data.yaml", "{train: [", r"data\.yaml: .*; correct it"),
    "type": ("data.yaml", "{names: [zebra, 3]}", r"Expected `str`, got `int` - at `\$.names.*quote"),
    "gap": ("data.yaml", "{names: {0: zebra, 2: ant}}", r"indices of `names` are \[0, 2\]; number them 0"),
    "twice": ("data.yaml", "{names: [zebra, zebra]}", "name 1, 'zebra', is a duplicate, is blank"),
    "newline": ("data.yaml", '{names: [zebra, "a\\nb"]}', "name 1, .* cannot be printed"),
    "place": ("data.yaml", "{names: [zebra], train: images/none}", "images/none in its yaml file does not"),
    "no pictures": ("data.yaml", "{names: [zebra], train: labels}", "no picture in train has annot"),
    "same name": ("data.yaml", "{train: [images/train, more], val: images/val}", "picture is also called a;"),
    "no names": ("classes.txt", None, r"no classes\.txt and no obj\.names; give --classes FILE"),
    "no text": ("classes.txt", "\udcff", r"classes\.txt: byte 0 is not valid UTF-8; save"),
    "no labels": ("labels/train/a.txt", None, "no picture in train has annotations; see"),
    "list": ("train.txt", "images/train/a.png\n\n/gone.png", "/gone.png cannot be read as a picture"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "text", "message"), FILES.values(), ids=FILES.keys())
def test_bad_file_is_named(tmp_path: Path, file: str, text: str | None, message: str) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE)
    labelled(source / "more" / "a.png", source / "more" / "a.txt")
    if text is None:
        (source / file).unlink()
    else:
        (source / file).write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=message):
        to_coco(source, "yolo", tmp_path / "out")
