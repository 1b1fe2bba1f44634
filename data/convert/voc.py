"""Pascal VOC: an xml file a picture, lists of pictures for the splits."""

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError, SubElement, fromstring, indent, tostring

from data.convert.dataset import (
    CLASSES_FILE,
    PICTURE_SUFFIXES,
    SPLIT_NAMES,
    Box,
    DataSet,
    Finding,
    Picture,
    Split,
    defects_into,
    find_files,
    number,
    open_picture,
    place_pictures,
    read_bytes,
    read_lines,
    shown,
    unless_test,
    write_text,
)
from ssd.errors import UserError

_XML_FOLDERS = ("annotations", "annotation", "xmls", "xml", "labels")
_PICTURE_FOLDERS = ("jpegimages", "images", "imgs", "img", "pictures", "photos")
_LAYOUT = (
    "give the folder that holds Annotations and JPEGImages (of a devkit: VOCdevkit/VOC2012), or annotations "
    "and images, or xml files beside their pictures"
)
_Place = tuple[Path, Path, Path | None]
"""The folder of a split's xml files, that of its pictures, and the list of its stems, None for all."""


def read_voc(source: Path, classes_file: Path | None) -> DataSet:
    """Read the devkit's Annotations and JPEGImages, folders called much like them, or xml beside pictures.

    Splits are the lists of ImageSets, else folders train, val or valid, and test, in these folders or around
    them; else all is one set. Without a validation split the data set has no `val`. classes_file: the
    categories and their order; else classes.txt of the source, else all names, sorted.
    Raises UserError where there is nothing to read; what is wrong with single files is among the findings.
    """
    if classes_file is None and (source / CLASSES_FILE).exists():
        classes_file = source / CLASSES_FILE
    known = None if classes_file is None else read_lines(classes_file)
    findings: list[Finding] = []
    splits: dict[Split, list[Picture]] = {}
    for split, (annotations, folder, list_file) in _find_places(source).items():
        by_stem: dict[str, list[str]] = {}
        for name in find_files(folder, PICTURE_SUFFIXES):
            by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
        with unless_test(split, findings):
            stems = {os.path.splitext(name)[0] for name in find_files(annotations, (".xml",))}
            if not by_stem.keys() & stems:
                raise UserError(f"no xml file of {annotations} has its picture in {folder}; {_LAYOUT}")
            if list_file is None:
                what = "pictures without an xml file are left out"
                alone = sorted(by_stem.keys() - stems)
                findings += [Finding(what, folder / by_stem[stem][0]) for stem in alone]
            else:
                listed = set(filter(None, read_lines(list_file)))
                if not listed & stems:
                    raise UserError(
                        f"{list_file}: none of its pictures has an xml file in {annotations}; correct it"
                    )
                stems = listed
            splits[split] = []
            for stem in shown(sorted(stems), f"reading {split}"):
                xml = annotations / f"{stem}.xml"
                with defects_into(findings, xml):
                    splits[split].append(_read_picture(xml, folder, by_stem.get(stem, []), known))
    boxes = [(picture, box) for split in splits.values() for picture in split for box in picture.boxes]
    findings += [
        Finding("difficult objects are marked iscrowd", picture.file) for picture, box in boxes if box.crowd
    ]
    names = sorted({box.category for _, box in boxes}) if known is None else known
    return DataSet(names, splits, findings)


def _find_places(source: Path) -> dict[Split, _Place]:
    annotations, pictures = _inside(source, *_XML_FOLDERS), _inside(source, *_PICTURE_FOLDERS)
    folders = [path for path in source.iterdir() if path.is_dir()]
    if len(folders) == 1 and source == annotations and _inside(folders[0], *_XML_FOLDERS) != folders[0]:
        return _find_places(folders[0])  # VOCdevkit
    sets = _inside(_inside(source, "imagesets"), "main")
    lists = {} if sets == source else {file.stem: file for file in sets.glob("*.txt")}
    places: dict[Split, _Place] = {}
    for split, names in SPLIT_NAMES.items():
        xmls, folder = _inside(annotations, *names), _inside(pictures, *names)
        if listed := next((lists[name] for name in names if name in lists), None):
            places[split] = annotations, pictures, listed
        elif xmls != annotations:
            places[split] = _inside(xmls, *_XML_FOLDERS), _inside(folder, *_PICTURE_FOLDERS), None
    if not {"train", "val"} <= places.keys():
        train = places.get("train", (annotations, pictures, None))
        if "trainval" in lists or (train[2] is None and "test" not in places):
            train = annotations, pictures, lists.get("trainval")
        places["train"] = train
        places.pop("val", None)
    return places


def _inside(folder: Path, *names: str) -> Path:
    """Return the folder in this one that has one of the names, in any case, or else the folder itself."""
    folders = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    return next((folders[name] for name in names if name in folders), folder)


def _read_picture(xml: Path, folder: Path, names: list[str], known: list[str] | None) -> Picture:
    """Read an xml file; names: the pictures of its stem, one where all is well.

    Its <filename> is not asked: it is often left over from before a renaming.
    """
    content = read_bytes(xml)
    try:
        root = fromstring(content)
    except (ParseError, ValueError, LookupError) as error:  # the latter two: of its encoding
        raise UserError(f"is broken xml ({error}); export or fetch it again") from error
    if root.tag != "annotation":
        raise UserError(f"begins with <{root.tag}>, a VOC file with <annotation>; remove it")
    if not names:
        raise UserError(f"its picture is missing in {folder}; add it, or remove the xml file")
    if len(names) > 1:
        raise UserError(f"may belong to {' or '.join(names)}; rename or remove all but one")
    width, height = (number(root.findtext(f"size/{side}") or "0", side) for side in ("width", "height"))
    picture = open_picture(folder / names[0], names[0], (width, height) if width or height else None)
    for place, element in enumerate(root.findall("object"), start=1):
        where = f"{xml}: object {place}"
        with defects_into(picture.findings, where):
            picture.add(_read_object(element, known), where)
    return picture


def _read_object(element: Element, known: list[str] | None) -> Box:
    category = _text(element, "name")
    if known is not None and category not in known:
        raise UserError(f"the classes file has no {category!r}; correct it, or add a line there")
    sides = ("xmin", "ymin", "xmax", "ymax")
    xmin, ymin, xmax, ymax = (
        number(_text(element, f"bndbox/{side}"), f"{category}: {side}") for side in sides
    )
    difficult = number(element.findtext("difficult") or "0", f"{category}: difficult")
    # Pixels are counted from 1, and both corners are part of the box.
    return Box(category, (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1), crowd=difficult != 0)


def _text(thing: Element, path: str) -> str:
    text = (thing.findtext(path) or "").strip()
    if not text:
        raise UserError(f"<object> has no {path}, or an empty one; fill it")
    return text


def write_voc(data: DataSet, folder: Path, link: str) -> list[Finding]:
    """Write JPEGImages, Annotations, ImageSets/Main and classes.txt; crowd boxes become difficult ones.

    Raises UserError where pictures would share an xml file.
    """
    # A file that is in two splits is one picture.
    of_splits = {name: {picture.file: picture for picture in split} for name, split in data.splits.items()}
    trainval = of_splits["train"] | of_splits["val"]
    pictures = [*(trainval | of_splits.get("test", {})).values()]
    findings = []
    for picture in shown(pictures, "Annotations"):
        root = Element("annotation")
        _fill(root, {"folder": "JPEGImages", "filename": PurePosixPath(picture.name).name})
        size = {"width": picture.width, "height": picture.height, "depth": picture.channels}
        _fill(SubElement(root, "size"), size)
        _fill(root, {"segmented": 0})
        for box in picture.boxes:
            element = SubElement(root, "object")
            flags = {"pose": "Unspecified", "truncated": 0, "difficult": int(box.crowd)}
            _fill(element, {"name": box.category, **flags})
            left, top, width, height = box.ltwh_px
            xmin, xmax = _nearest_pixels(left, left + width, picture.width)
            ymin, ymax = _nearest_pixels(top, top + height, picture.height)
            _fill(SubElement(element, "bndbox"), {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax})
            if (xmin - 1, ymin - 1, xmax, ymax) != (left, top, left + width, top + height):
                findings.append(Finding("boxes are rounded to VOC's whole pixels", picture.file))
            if box.crowd:
                findings.append(Finding("crowd boxes are marked difficult", picture.file))
        indent(root)
        write_text(folder / f"Annotations/{picture.stem}.xml", tostring(root, encoding="unicode"), picture)
    place_pictures(pictures, folder / "JPEGImages", link)
    for name, members in (*data.splits.items(), ("trainval", trainval.values())):
        stems = "".join(f"{picture.stem}\n" for picture in members)
        write_text(folder / f"ImageSets/Main/{name}.txt", stems)
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in data.categories))
    return findings


def _fill(element: Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        SubElement(element, tag).text = str(value)


def _nearest_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """Return the first and last pixel, counted from 1, of what reaches from start to end."""
    first, last = math.floor(start + 0.5) + 1, math.floor(end + 0.5)
    if first > last:  # both are nearest to the same edge: take the pixel of the centre
        first = last = min(math.floor((start + end) / 2) + 1, side)
    return first, last
