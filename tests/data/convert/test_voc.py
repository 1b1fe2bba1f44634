"""Reading Pascal VOC: the devkit's rules, the layouts of tools, and every kind of damage by its file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.convert import Options
from ssd.errors import UserError
from tests.data.convert.folders import (
    category_names,
    picture,
    rows,
    to_coco,
    voc_devkit,
    voc_list,
    voc_object,
    voc_xml,
)

pytestmark = pytest.mark.unit

DOG = voc_object("dog", (48, 24, 195, 37))


def test_corners_count_from_one_and_are_part_of_the_box(tmp_path: Path) -> None:
    voc_devkit(tmp_path / "voc", v=(DOG,), a=(voc_object("dog", (1, 1, 200, 100)),), b=())
    to_coco(tmp_path / "voc", "voc", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("dog", (47, 23, 148, 14), 0)]}
    assert rows(tmp_path / "out", "train") == {"a.png": [("dog", (0, 0, 200, 100), 0)], "b.png": []}


def test_difficult_becomes_crowd_and_may_be_missing(tmp_path: Path) -> None:
    hard = voc_object("dog", (48, 24, 195, 37), "<difficult> 1 </difficult>")
    plain = voc_object("dog", (48, 24, 195, 37), "")
    voc_devkit(tmp_path / "voc", v=(hard, plain), a=(DOG,))
    to_coco(tmp_path / "voc", "voc", tmp_path / "out")
    assert [row[2] for row in rows(tmp_path / "out", "val")["v.png"]] == [1, 0]


def test_categories_are_sorted_names_of_both_splits(tmp_path: Path) -> None:
    voc_devkit(
        tmp_path / "voc", v=(voc_object("yak", (1, 1, 9, 9)),), a=(DOG, voc_object("ant", (1, 1, 9, 9)))
    )
    to_coco(tmp_path / "voc", "voc", tmp_path / "out")
    for split in ("train", "val"):
        assert category_names(tmp_path / "out", split) == ["ant", "dog", "yak"]


def test_classes_file_gives_the_order_and_unseen_categories(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,))
    (source / "classes.txt").write_text("yak\ndog\n\n")
    to_coco(source, "voc", tmp_path / "out")
    assert category_names(tmp_path / "out", "train") == ["yak", "dog"]
    (tmp_path / "mine.txt").write_text("\ufeffdog\r\ncat\r\n", encoding="utf-8")
    to_coco(source, "voc", tmp_path / "out2", Options(classes_file=tmp_path / "mine.txt"))
    assert category_names(tmp_path / "out2", "train") == ["dog", "cat"]


def test_box_over_the_edge_is_cut_and_counted(tmp_path: Path) -> None:
    voc_devkit(tmp_path / "voc", v=(voc_object("dog", (0, -3, 210, 50)),), a=(DOG,))
    said = to_coco(tmp_path / "voc", "voc", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("dog", (0, 0, 200, 50), 0)]}
    assert any(
        "1 boxes hung over" in line and "by 10 px" in line and "v.xml: object 1" in line for line in said
    )


@pytest.mark.parametrize("size", [(0, 0), (200, 100)])
def test_size_comes_from_the_picture_where_the_xml_has_none(tmp_path: Path, size: tuple[int, int]) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,))
    voc_xml(source / "Annotations" / "v.xml", DOG, size=size)
    xml = source / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("<size>", "<other>").replace("</size>", "</other>"))
    to_coco(source, "voc", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("dog", (47, 23, 148, 14), 0)]}


def test_stem_finds_the_picture_where_filename_is_out_of_date(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,))
    voc_xml(source / "Annotations" / "v.xml", DOG, filename="before_renaming.jpg")
    to_coco(source, "voc", tmp_path / "out")
    assert list(rows(tmp_path / "out", "val")) == ["v.png"]


def test_trainval_list_is_dealt_and_other_pictures_stay_out(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", **{f"p{n}": (DOG,) for n in range(12)})
    for name in ("train", "val"):
        (source / "ImageSets" / "Main" / f"{name}.txt").unlink()
    voc_list(source, "trainval", *(f"p{n}" for n in range(10)))
    voc_list(source, "test", "p10", "p11")
    said = to_coco(source, "voc", tmp_path / "out")
    train, val = rows(tmp_path / "out", "train"), rows(tmp_path / "out", "val")
    assert (len(train), len(val)) == (8, 2)
    assert {*train, *val} == {f"p{n}.png" for n in range(10)}
    assert any("test.txt is not used" in line for line in said)
    assert any("--val-fraction 0.2 --seed 0" in line for line in said)


def test_without_lists_every_xml_is_taken_and_pictures_without_one_are_counted(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", a=(DOG,), b=(DOG,))
    for file in (source / "ImageSets" / "Main").iterdir():
        file.unlink()
    picture(source / "JPEGImages" / "unlabelled.png")
    said = to_coco(source, "voc", tmp_path / "out")
    assert {*rows(tmp_path / "out", "train"), *rows(tmp_path / "out", "val")} == {"a.png", "b.png"}
    assert any("1 pictures without an xml file are left out" in line for line in said)


@pytest.mark.parametrize("val", ["val", "valid"])
def test_xml_beside_the_pictures_in_split_folders(tmp_path: Path, val: str) -> None:
    for place in ("train/a", "train/sub/b", f"{val}/c"):
        picture(tmp_path / "voc" / f"{place}.JPG")
        voc_xml(tmp_path / "voc" / f"{place}.xml", DOG)
    to_coco(tmp_path / "voc", "voc", tmp_path / "out")
    assert set(rows(tmp_path / "out", "train")) == {"a.JPG", "sub/b.JPG"}
    assert set(rows(tmp_path / "out", "val")) == {"c.JPG"}


def without_picture(source: Path) -> None:
    (source / "JPEGImages" / "a.png").unlink()


def without_xml(source: Path) -> None:
    (source / "Annotations" / "a.xml").unlink()


def two_pictures(source: Path) -> None:
    picture(source / "JPEGImages" / "a.bmp")
    xml(source, DOG, filename="a.gif")


def no_picture(source: Path) -> None:
    (source / "JPEGImages" / "a.png").write_bytes(b"not a picture")


def xml(source: Path, *objects: str, filename: str = "", size: tuple[object, object] = (200, 100)) -> None:
    voc_xml(source / "Annotations" / "a.xml", *objects, filename=filename, size=size)


def raw(text: bytes) -> Callable[[Path], None]:
    def write(source: Path) -> None:
        (source / "Annotations" / "a.xml").write_bytes(text)

    return write


def thing(name: str, *corners: object, difficult: str = "") -> Callable[[Path], None]:
    xmin, ymin, xmax, ymax = corners
    return lambda source: xml(source, DOG, voc_object(name, (xmin, ymin, xmax, ymax), difficult))


DAMAGE = {
    "broken": (raw(b"<annotation><object>"), r"a\.xml: is broken xml \(.*line 1.*; export"),
    "empty": (raw(b""), r"a\.xml: is broken xml \(no element found"),
    "encoding": (raw(b"<?xml version='1.0' encoding='klingon'?><annotation/>"), r"a\.xml: is broken xml"),
    "other root": (raw(b"<html/>"), r"a\.xml: begins with <html>, a VOC file with <annotation>"),
    "no picture": (without_picture, r"a\.xml: its picture is missing: no a with .* in .*JPEGImages; add"),
    "no xml": (without_xml, r"train\.txt: line 1: there is no .*Annotations/a\.xml; add it"),
    "two pictures": (two_pictures, r"a\.xml: may belong to a.bmp or a.png; rename or remove"),
    "bytes": (no_picture, r"a\.xml: .*a\.png is no picture that can be read; replace"),
    "size": (lambda source: xml(source, DOG, size=(100, 200)), r"says .* 100×200 .* has 200×100; correct"),
    "size text": (lambda source: xml(source, DOG, size=("w", 1)), r"a\.xml: width 'w' is no number"),
    "xmin text": (thing("dog", "left", 1, 9, 9), r"a\.xml: object 2: dog: xmin 'left' is no number; correct"),
    "NaN": (thing("dog", 1, "nan", 9, 9), r"a\.xml: object 2: dog: ymin 'nan' is no number"),
    "xmax empty": (thing("dog", 1, 1, "", 9), r"object 2: <bndbox> has no <xmax>, or an empty one; fill it"),
    "inverted": (thing("dog", 50, 1, 20, 9), r"a\.xml: object 2: box .*-29.0, 9.0.* px has no area"),
    "outside": (thing("dog", 201, 1, 210, 9), r"a\.xml: object 2: box .*\(200.0, .* 200×100; correct"),
    "no name": (thing(" ", 1, 1, 9, 9), r"object 2: <object> has no <name>, or an empty"),
    "no bndbox": (
        lambda source: xml(source, "<object><name>dog</name></object>"),
        r"object 1: <object> has no <bndbox>; add it",
    ),
    "difficult": (
        thing("dog", 1, 1, 9, 9, difficult="<difficult>yes</difficult>"),
        r"object 2: dog: difficult 'yes' is no number",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_with_its_file_and_nothing_is_written(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,), b=(DOG,))
    damage(source)
    with pytest.raises(UserError, match=message):
        to_coco(source, "voc", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    bad = (voc_object("dog", (50, 1, 20, 9)), DOG, voc_object("dog", ("x", 1, 20, 9)))
    source = voc_devkit(tmp_path / "voc", v=bad, a=(DOG,), b=bad)
    (source / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(UserError, match="5 problems, nothing was written") as caught:
        to_coco(source, "voc", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 6


def test_name_that_the_classes_file_lacks_is_named(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG, voc_object("dgo", (1, 1, 9, 9))))
    (source / "classes.txt").write_text("dog\n")
    with pytest.raises(UserError, match=r"a\.xml: object 2: the classes file has no 'dgo'; correct"):
        to_coco(source, "voc", tmp_path / "out")


def test_xml_of_a_list_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,))
    voc_xml(tmp_path / "elsewhere.xml", DOG)
    picture(tmp_path / "elsewhere.png")
    voc_list(source, "train", "../../elsewhere")
    with pytest.raises(UserError, match=r"train\.txt: line 1: there is no .*\.\./\.\./elsewhere\.xml"):
        to_coco(source, "voc", tmp_path / "out")


@pytest.mark.parametrize("missing", ["JPEGImages", "Annotations"])
def test_folder_that_is_no_devkit_is_refused(tmp_path: Path, missing: str) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,))
    (source / missing).rename(tmp_path / "away")
    with pytest.raises(UserError, match="JPEGImages"):
        to_coco(source, "voc", tmp_path / "out")


def test_empty_list_is_refused(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,))
    with pytest.raises(UserError, match=r"Main/train\.txt names no picture; add"):
        to_coco(source, "voc", tmp_path / "out")
