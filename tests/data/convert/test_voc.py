"""Reading Pascal VOC: the devkit's rules, the layouts of tools, and every kind of damage by file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.convert import Options
from ssd.errors import UserError
from tests.data.convert.folders import (
    category_names,
    picture,
    rows,
    said_of,
    to_coco,
    voc_devkit,
    voc_list,
    voc_object,
    voc_xml,
)

pytestmark = pytest.mark.unit

DOG = voc_object("dog", (48, 24, 195, 37))
DOG_BOX = (47, 23, 148, 14)

OBJECTS = {  # pixels count from 1, both corners are part of the box → ltwh_px and iscrowd
    "of the devkit": (DOG, DOG_BOX, 0),
    "whole picture": (voc_object("dog", (1, 1, 200, 100)), (0, 0, 200, 100), 0),
    "fractions": (voc_object("dog", (1.5, 2.25, 10.5, 20)), (0.5, 1.25, 10, 18.75), 0),
    "difficult": (voc_object("dog", (48, 24, 195, 37), "<difficult> 1 </difficult>"), DOG_BOX, 1),
    "without difficult": (voc_object("dog", (48, 24, 195, 37), ""), DOG_BOX, 0),
    "over the edge": (voc_object("dog", (0, -3, 210, 50)), (0, 0, 200, 50), 0),
}


@pytest.mark.parametrize(("text", "ltwh_px", "crowd"), OBJECTS.values(), ids=OBJECTS.keys())
def test_object_is_read(tmp_path: Path, text: str, ltwh_px: tuple[float, ...], crowd: int) -> None:
    source = voc_devkit(tmp_path / "voc", v=(text, text), a=(DOG,), b=())
    said = to_coco(source, "voc", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("dog", ltwh_px, crowd)] * 2}
    assert rows(tmp_path / "out", "train") == {"a.png": [("dog", DOG_BOX, 0)], "b.png": []}
    assert bool(said_of(said, "boxes clipped to their picture: 2 ")) == (ltwh_px == (0, 0, 200, 50))


def test_categories_are_sorted_names_of_both_splits_or_the_classes_files(tmp_path: Path) -> None:
    things = (DOG, voc_object("ant", (1, 1, 9, 9)))
    source = voc_devkit(tmp_path / "voc", v=(voc_object("yak", (1, 1, 9, 9)),), a=things)
    to_coco(source, "voc", tmp_path / "sorted")
    (source / "classes.txt").write_text("yak\nemu\ndog\nant\n\n")
    to_coco(source, "voc", tmp_path / "classes.txt")
    (tmp_path / "mine").write_text("\ufeffdog\r\nant\r\nyak\r\n", encoding="utf-8")
    to_coco(source, "voc", tmp_path / "given", Options(classes_file=tmp_path / "mine"))
    for split in ("train", "val"):
        assert category_names(tmp_path / "sorted", split) == ["ant", "dog", "yak"]
        assert category_names(tmp_path / "classes.txt", split) == ["yak", "emu", "dog", "ant"]
        assert category_names(tmp_path / "given", split) == ["dog", "ant", "yak"]


def test_size_and_name_come_from_the_picture(tmp_path: Path) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,))
    voc_xml(source / "Annotations" / "v.xml", DOG, filename="before_renaming.jpg", size=(0, 0))
    xml = source / "Annotations" / "a.xml"
    xml.write_text(xml.read_text().replace("size>", "other>"))
    (source / "JPEGImages").rename(tmp_path / "elsewhere")
    (source / "JPEGImages").symlink_to(tmp_path / "elsewhere")
    to_coco(source, "voc", tmp_path / "out")
    assert rows(tmp_path / "out", "val") == {"v.png": [("dog", DOG_BOX, 0)]}
    assert rows(tmp_path / "out", "train") == {"a.png": [("dog", DOG_BOX, 0)]}


@pytest.mark.parametrize("listed", [True, False])
def test_set_without_validation_list_is_dealt(tmp_path: Path, listed: bool) -> None:
    source = voc_devkit(tmp_path / "voc", **{f"p{n}": (DOG,) for n in range(10)})
    for name in ("train", "val"):
        (source / "ImageSets" / "Main" / f"{name}.txt").unlink()
    picture(source / "JPEGImages" / "unlabelled.png")
    if listed:
        voc_list(source, "trainval", *(f"p{n}" for n in range(5)))
        voc_list(source, "test", "p10")
    said = to_coco(source, "voc", tmp_path / "out")
    train, val = rows(tmp_path / "out", "train"), rows(tmp_path / "out", "val")
    assert (len(train), len(val)) == ((4, 1) if listed else (8, 2))
    assert {*train, *val} == {f"p{n}.png" for n in range(5 if listed else 10)}
    assert bool(said_of(said, "test split left out: none of its pict")) == listed
    assert said_of(said, "no validation split in the source")
    assert f"no split: {6 if listed else 1} (" in said_of(said, "pictures left out because they")


LAYOUTS = {  # xml file, picture; folder of the split lists if the paths don't name the splits
    "beside": ("{split}/{stem}.xml", "{split}/{stem}.JPG", ""),
    "in splits": ("{split}/annotations/{stem}.xml", "{split}/images/{stem}.jpg", ""),
    "splits in them": ("Annotations/{split}/{stem}.xml", "Images/{split}/{stem}.jpg", ""),
    "split xml": ("xmls/{split}/{stem}.xml", "imgs/{stem}.jpg", ""),
    "lower": ("annotations/{stem}.xml", "images/{stem}.jpg", "ImageSets/Main"),
    "no Main": ("labels/{stem}.xml", "JPEGImages/{stem}.jpg", "imagesets"),
    "pets": ("annotations/xmls/{split}/{stem}.xml", "images/{stem}.jpg", ""),
    "devkit": ("VOC2007/Annotations/{stem}.xml", "VOC2007/JPEGImages/{stem}.jpg", "VOC2007/ImageSets/Main"),
}


@pytest.mark.parametrize("val", ["val", "valid"])
@pytest.mark.parametrize(("xml", "image", "lists"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_of_people_is_found(tmp_path: Path, xml: str, image: str, lists: str, val: str) -> None:
    source = tmp_path / "voc"
    for split, stems in (("train", ("a", "sub/b")), (val, ("c",)), ("test", ("d",))):
        for stem in stems:
            picture(source / image.format(split=split, stem=stem))
            voc_xml(source / xml.format(split=split, stem=stem), DOG)
        if lists:
            (source / lists).mkdir(parents=True, exist_ok=True)
            (source / lists / f"{split}.txt").write_text("\n".join(stems))
    to_coco(source, "voc", tmp_path / "out")
    suffix = Path(image).suffix
    for split, expected in (("train", {"a", "sub/b"}), ("val", {"c"}), ("test", {"d"})):
        assert set(rows(tmp_path / "out", split)) == {f"{stem}{suffix}" for stem in expected}


def xml(*objects: str, size: tuple[object, object] = (200, 100)) -> Callable[[Path], object]:
    return lambda source: voc_xml(source / "Annotations" / "a.xml", *objects, size=size)


def thing(name: str, *corners: object) -> Callable[[Path], object]:
    xmin, ymin, xmax, ymax = corners
    return xml(DOG, voc_object(name, (xmin, ymin, xmax, ymax)))


def write(file: str, content: bytes) -> Callable[[Path], object]:
    return lambda source: (source / file).write_bytes(content)


def away(file: str) -> Callable[[Path], object]:
    return lambda source: (source / file).rename(source / "away")


LAUGHS = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 50}'>" for n in range(1, 9))
BOMB = f"<!DOCTYPE a [<!ENTITY e0 'ha'>{LAUGHS}]><annotation>&e8;</annotation>".encode()
DAMAGE = {
    "broken": (write("Annotations/a.xml", b"<annotation><object>"), r"a\.xml is not valid XML \(.*line 1.*;"),
    "encoding": (write("Annotations/a.xml", b"<?xml version='1.0' encoding='klingon'?><a/>"), "not valid X"),
    "entities": (write("Annotations/a.xml", BOMB), r"a\.xml is not valid XML \(limit on input amplification"),
    "other root": (write("Annotations/a.xml", b"<html/>"), "begins with <html>, not with VOC's <ann"),
    "no picture": (away("JPEGImages/a.png"), r"a\.xml must have exactly one picture, found none; add"),
    "no xml": (away("Annotations/a.xml"), r"No such file .*Annotations/a\.xml"),
    "outside": (write("ImageSets/Main/train.txt", b"../Annotations/a"), "voc: no picture in train has ann"),
    "two files": (lambda source: voc_xml(source / "labels/a.xml", DOG), "a.xml and .*a.xml have the same p"),
    "two pictures": (write("JPEGImages/a.bmp", b""), r"a\.xml .* found .*a\.bmp and .*a\.png; add or rem"),
    "bytes": (write("JPEGImages/a.png", b"x"), r"a\.png cannot be read as a picture .*; replace"),
    "size": (xml(DOG, size=(100, 200)), r"a\.png has 200×100 .* say 100×200; correct"),
    "size text": (xml(DOG, size=("w", 1)), r"a\.xml: size/width is 'w', which is not a number"),
    "xmin text": (thing("dog", "left", 1, 9, 9), r"a\.xml: object 2: bndbox/xmin is 'left', which is not"),
    "NaN": (thing("dog", 1, "nan", 9, 9), r"a\.xml: object 2: box .* nan, .* px has no area"),
    "inverted": (thing("dog", 50, 1, 20, 9), r"a\.xml: object 2: box .*-29.0, 9.0.* px has no area"),
    "boundless": (thing("dog", -1e308, 1, 1e308, 9), r"a\.xml: object 2: box .* inf, 9.0.* px has no area"),
    "no name": (thing(" ", 1, 1, 9, 9), r"object 2: name '' is blank or not in"),
    "no bndbox": (xml("<object><name>dog</name></object>"), r"object 1: bndbox/xmin is '', which is not"),
    "class": (write("classes.txt", b"cat"), r"v\.xml: object 1: name 'dog' is blank or not in the cl"),
    "no pictures": (away("JPEGImages"), "no picture in (val|train) has annotations; see docs/DATA.md"),
    "empty list": (write("ImageSets/Main/train.txt", b"\n"), "no picture in train has annotations"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_named_with_its_file_and_nothing_is_written(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    source = voc_devkit(tmp_path / "voc", v=(DOG,), a=(DOG,), b=(DOG,))
    damage(source)
    with pytest.raises(UserError, match=message):
        to_coco(source, "voc", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["voc"]


def test_a_problem_of_each_picture_is_told_at_once_and_the_first_are_listed(tmp_path: Path) -> None:
    bad = (voc_object("dog", (50, 1, 20, 9)), DOG, voc_object("dog", ("x", 1, 20, 9)))
    source = voc_devkit(tmp_path / "voc", v=(DOG,), **{f"p{number}": bad for number in range(23)})
    with pytest.raises(UserError, match="nothing was written: 23 pictures have problems") as caught:
        to_coco(source, "voc", tmp_path / "out")
    assert len(str(caught.value).splitlines()) == 21
