"""Reading YOLO: the layouts of its tools, class names from each of their files, and damage by its line."""

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
    to_coco,
    yolo_folder,
)

pytestmark = pytest.mark.unit

BOX = (75.0, 25.0, 50.0, 50.0)  # YOLO_LINE in a picture of 200×100 pixels


def test_line_is_class_and_relative_centre_and_size(tmp_path: Path) -> None:
    yolo_folder(tmp_path / "yolo", v="1 0.5 0.5 1 1\n", a="0 .25 0.1 0.1 0.2\n\n1.0 0.5 0.5 0.25 5e-1")
    to_coco(tmp_path / "yolo", "yolo", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("ant", (0, 0, 200, 100), 0)]}
    assert rows(tmp_path / "out", "train") == {"a.png": [("zebra", (40, 0, 20, 20), 0), ("ant", BOX, 0)]}


def test_picture_without_label_file_or_with_an_empty_one_has_no_objects(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE, b="")
    picture(source / "images" / "train" / "c.png")
    said = to_coco(source, "yolo", tmp_path / "out")
    assert rows(tmp_path / "out", "train") == {"a.png": [("zebra", BOX, 0)], "b.png": [], "c.png": []}
    assert any("1 pictures have no label file" in line for line in said)


def test_polygon_becomes_the_box_around_it(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v="0 0.1 0.2 0.3 0.4 0.2 0.6\n", a=YOLO_LINE)
    said = to_coco(source, "yolo", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("zebra", (20, 20, 40, 40), 0)]}
    assert any("1 polygons are replaced" in line for line in said)


def test_rounding_of_a_tool_over_the_edge_is_cut(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v="0 0.500001 0.5 1.0 0.5\n", a=YOLO_LINE)
    said = to_coco(source, "yolo", tmp_path / "out")
    ((left, top, width, height),) = (row[1] for row in rows(tmp_path / "out", "val")["v.png"])
    assert (left + width, top, height) == (200, 25, 50)
    assert any("1 boxes hung over" in line for line in said)


LAYOUTS = {
    "ultralytics": ("images/train/a", "labels/train/a", "images/val/b", "labels/val/b"),
    "roboflow": ("train/images/a", "train/labels/a", "valid/images/b", "valid/labels/b"),
    "beside": ("train/a", "train/a", "val/b", "val/b"),
    "coco's": ("images/train2017/a", "labels/train2017/a", "images/val2017/b", "labels/val2017/b"),
    "sub-folders": ("images/train/x/a", "labels/train/x/a", "images/val/x/b", "labels/val/x/b"),
}


@pytest.mark.parametrize("places", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_of_tools_is_found(tmp_path: Path, places: tuple[str, str, str, str]) -> None:
    source = tmp_path / "images" / "yolo"  # a folder of that name above changes nothing
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
    "config",
    [
        "{path: ../elsewhere, train: images/one, val: images/two, names: {1: ant, 0: zebra}, nc: 2}",
        "{train: ../images/one, val: [../images/two], names: [zebra, ant]}",
        "{train: ./one.txt, val: two.txt, test: one.txt, names: [zebra, ant], roboflow: {version: 1}}",
    ],
)
def test_data_yaml_says_where_and_what(tmp_path: Path, config: str) -> None:
    source = tmp_path / "yolo"
    for split, stem in (("one", "a"), ("two", "b")):
        labelled(source / "images" / split / f"{stem}.png", source / "labels" / split / f"{stem}.txt")
        (source / f"{split}.txt").write_text(f"./images/{split}/{stem}.png\n")
    (source / "data.yaml").write_text(config)
    said = to_coco(source, "yolo", tmp_path / "out")
    assert rows(tmp_path / "out", "train") == {"a.png": [("zebra", BOX, 0)]}
    assert rows(tmp_path / "out", "val") == {"b.png": [("zebra", BOX, 0)]}
    assert category_names(tmp_path / "out", "train") == ["zebra", "ant"]
    assert any("is not used" in line for line in said) == ("test:" in config)


def test_darknet_lists_begin_with_a_folder_that_is_not_there(tmp_path: Path) -> None:
    source = tmp_path / "yolo"
    for stem in "abc":
        labelled(source / "obj_train_data" / f"{stem}.png", source / "obj_train_data" / f"{stem}.txt")
    (source / "train.txt").write_text("data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    (source / "obj.names").write_text("zebra\n")
    to_coco(source, "yolo", tmp_path / "out")
    assert {*rows(tmp_path / "out", "train"), *rows(tmp_path / "out", "val")} == {"a.png", "b.png"}


@pytest.mark.parametrize("pool", ["images", "."])
def test_set_without_splits_is_dealt(tmp_path: Path, pool: str) -> None:
    source = tmp_path / "yolo"
    for number in range(10):
        labels = "labels" if pool == "images" else "."
        labelled(source / pool / f"{number}.png", source / labels / f"{number}.txt")
    (source / "classes.txt").write_text("zebra\n")
    to_coco(source, "yolo", tmp_path / "out", Options(val_fraction=0.3))
    assert (len(rows(tmp_path / "out", "train")), len(rows(tmp_path / "out", "val"))) == (7, 3)


BAD_LINES = {
    "words": ("0 0.5 0.5", "line 2: 3 numbers, neither class cx cy w h"),
    "confidence": ("0 0.5 0.5 0.1 0.1 0.9", "line 2: 6 numbers, neither"),
    "text": ("0 0.5 0.5 wide 0.1", "line 2: coordinate 'wide' is no number"),
    "NaN": ("0 0.5 nan 0.1 0.1", "line 2: coordinate 'nan' is no number"),
    "class text": ("zebra 0.5 0.5 0.1 0.1", "line 2: class index 'zebra' is no number"),
    "class fraction": ("0.5 0.5 0.5 0.1 0.1", "line 2: class index 0.5 is none of the names' 0 to 1"),
    "class unknown": ("2 0.5 0.5 0.1 0.1", "line 2: class index 2 is none of the names' 0 to 1; correct"),
    "class negative": ("-1 0.5 0.5 0.1 0.1", "line 2: class index -1 is none of"),
    "pixels": ("0 100 50 20 20", "line 2: coordinate 100 is not relative to the picture; divide"),
    "outside": ("0 1.5 0.5 0.2 0.2", "line 2: box .* has no area inside the picture"),
    "no width": ("0 0.5 0.5 0 0.2", "line 2: box .* has no area inside the picture"),
    "negative": ("0 0.5 0.5 -0.1 0.2", "line 2: box .* has no area inside the picture"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_line_is_named_and_nothing_is_written(tmp_path: Path, line: str, message: str) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=f"{YOLO_LINE}{line}\n")
    with pytest.raises(UserError, match=rf"labels/train/a\.txt: {message}"):
        to_coco(source, "yolo", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["yolo"]


def test_label_file_without_a_picture_is_named(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE)
    (source / "labels" / "train" / "gone.txt").write_text(YOLO_LINE)
    with pytest.raises(UserError, match=r"labels/train/gone\.txt: no picture belongs to it; add"):
        to_coco(source, "yolo", tmp_path / "out")


def test_labels_in_another_place_are_not_taken_for_pictures_without_objects(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE)
    (source / "labels").rename(source / "annotations")
    with pytest.raises(UserError, match=r"none of 1 pictures has a label file, .* put the label files there"):
        to_coco(source, "yolo", tmp_path / "out")


CONFIGS = {
    "yaml": ("{train: [", r"data\.yaml: .*; correct it"),
    "type": ("{names: [zebra, 3]}", r"Expected `str`, got `int` - at `\$.names.*quote"),
    "brackets": ("[" * 100_000, r"data\.yaml: maximum recursion depth exceeded"),
    "merge": ("{a: &a {b: c}, d: {<<: [*a, *a]}}", r"data\.yaml: could not .*merge.* line 1, column 20"),
    "date": ("{date: 2026-13-01}", r"data\.yaml: month must be in 1..12; correct"),
    "gap": ("{names: {0: zebra, 2: ant}}", r"indices of `names` are \[0, 2\]; number them 0, 1, 2"),
    "nc": ("{names: [zebra], nc: 2}", "nc is 2 and `names` has 1"),
    "twice": ("{names: [zebra, zebra]}", "name 1, 'zebra', stands there twice"),
    "blank": ("{names: [zebra, '']}", "name 1, '', .*is blank"),
    "newline": ('{names: [zebra, "a\\nb"]}', "name 1, .* cannot be printed"),
    "place": ("{names: [zebra], train: images/none}", "train: images/none of its yaml file is not there as"),
    "empty": ("{names: [zebra], train: labels}", "holds no picture"),
}


@pytest.mark.parametrize(("text", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_bad_data_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE)
    (source / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        to_coco(source, "yolo", tmp_path / "out")


def test_set_without_class_names_is_refused(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE)
    (source / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"no classes\.txt and no obj\.names .* --classes FILE"):
        to_coco(source, "yolo", tmp_path / "out")


def test_val_without_train_is_refused(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE)
    with pytest.raises(UserError, match="has val and no train beside it"):
        to_coco(source, "yolo", tmp_path / "out")


def test_picture_that_a_list_names_and_is_not_there_is_named_by_its_line(tmp_path: Path) -> None:
    source = yolo_folder(tmp_path / "yolo", v=YOLO_LINE, a=YOLO_LINE)
    (source / "train.txt").write_text("images/train/a.png\n\n/images/gone.png\n")
    with pytest.raises(UserError, match=r"train\.txt: line 3: there is no picture '/images/gone.png'"):
        to_coco(source, "yolo", tmp_path / "out")
