"""Pascal VOC: one xml file per picture, one list of pictures per split."""

import math
import os
import re
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError, fromstring, indent, tostring

from data.convert.dataset import (
    CLASSES_FILE,
    SPLIT_NAMES,
    Box,
    Found,
    Picture,
    Split,
    Splits,
    find_files,
    open_picture,
    read_lines,
    split_by_folder,
    write_text,
)
from ssd.errors import UserError

_FOLDERS = {"annotations", "xmls", "labels", "jpegimages", "images", "imgs"}
_LIST = re.compile(r"imagesets/(?:main/)?([^/]+)\.txt", re.IGNORECASE)


def find_voc(source: Path, classes_file: Path | None) -> Found:
    """Find xml files and their pictures: the same path apart from folders like Annotations and JPEGImages.

    Splits come from the lists in ImageSets, else from folders train, val or valid, and test; else there is
    one. classes_file: the categories in order; default: the source's classes.txt, else all names, sorted.
    """
    if len(years := [*source.glob("*/ImageSets")]) == 1:  # the source is VOCdevkit
        source = years[0].parent
    if classes_file is None and (source / CLASSES_FILE).exists():
        classes_file = source / CLASSES_FILE
    known = None if classes_file is None else read_lines(classes_file)
    xmls: dict[str, Path] = {}
    for name in find_files(source, (".xml",)):
        if xmls.setdefault(_stem(name), source / name) != source / name:
            raise UserError(f"{source / name} and {xmls[_stem(name)]} have the same picture; remove one")
    pictures: dict[str, list[Path]] = {}
    for name in find_files(source):
        pictures.setdefault(_stem(name), []).append(source / name)
    found = Found(known, {})
    left_out = set(chain(*pictures.values()))
    for split, names in (_listed(source) or split_by_folder(xmls)).items():
        readers, is_annotated = [], False
        for stem, name in sorted(names.items()):
            xml = xmls.get(stem, source / f"Annotations/{stem}.xml")
            files = pictures.get(stem) or pictures.get(name, [])
            readers.append(partial(_read_picture, xml, files, name, known))
            is_annotated |= stem in xmls and files != []
            left_out -= set(files)
        found.readers[split] = [*readers] if is_annotated else []
    what = "pictures left out because they have no xml file or are in no split"
    found.notes.extend((what, file) for file in sorted(left_out))
    return found


def _stem(path: str) -> str:
    """Return a path without its suffix and _FOLDERS: the same for a picture and its xml file."""
    *folders, name = os.path.splitext(path)[0].split("/")
    return "/".join([*(folder for folder in folders if folder.lower() not in _FOLDERS), name])


def _listed(source: Path) -> dict[Split, dict[str, str]]:
    """Return the stems that ImageSets lists, as {stem: stem}; empty if it has no training list."""
    matches = map(_LIST.fullmatch, find_files(source, (".txt",)))
    lists = {match[1]: source / match[0] for match in matches if match}
    files = {split: lists[name] for split, names in SPLIT_NAMES.items() for name in names if name in lists}
    if "trainval" in lists and not {"train", "val"} <= files.keys():
        files["train"] = lists["trainval"]
        files.pop("val", None)
    if "train" not in files:
        return {}
    return {split: {stem: stem for stem in read_lines(file) if stem} for split, file in files.items()}


def _read_picture(xml: Path, files: list[Path], name: str, known: list[str] | None) -> Picture:
    """Read an xml file. files: the pictures with its stem, normally one.

    Its <filename> is ignored: it is often stale after a renaming.
    """
    try:
        root = fromstring(xml.read_bytes())
    except (ParseError, ValueError, LookupError) as error:  # the last two: bad encoding
        raise UserError(f"{xml} is not valid XML ({error}); export or download it again") from error
    if root.tag != "annotation":
        raise UserError(f"{xml} begins with <{root.tag}>, not with VOC's <annotation>; remove it")
    if len(files) != 1:
        found = " and ".join(map(str, files)) or "none"
        raise UserError(f"{xml} must have exactly one picture, found {found}; add or remove pictures")
    size_px = _number(root, "size/width", xml, "0"), _number(root, "size/height", xml, "0")
    picture = open_picture(files[0], name + files[0].suffix, size_px if any(size_px) else None)
    for place, element in enumerate(root.iterfind("object"), start=1):
        picture.add(_read_object(element, known, f"{xml}: object {place}"), f"{xml}: object {place}")
    return picture


def _read_object(element: Element, known: list[str] | None, where: str) -> Box:
    category = element.findtext("name", "").strip()
    if not category or (known is not None and category not in known):
        raise UserError(f"{where}: name {category!r} is blank or not in the classes file; correct or add it")
    xmin, ymin, xmax, ymax = (
        _number(element, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    # Pixels count from 1, and both corners are part of the box.
    ltwh_px = (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1)
    return Box(category, ltwh_px, crowd=_number(element, "difficult", where, "0") != 0)


def _number(element: Element, path: str, where: object, default: str = "") -> float:
    text = element.findtext(path) or default
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{where}: {path} is {text!r}, which is not a number; correct it") from None


def write_voc(names: Sequence[str], splits: Splits, folder: Path) -> None:
    """Write Annotations, ImageSets/Main and classes.txt; crowd boxes become `difficult`."""
    for picture in chain(*splits.values()):
        content = {
            "folder": "JPEGImages",
            "filename": PurePosixPath(picture.name).name,
            "size": {"width": picture.width, "height": picture.height, "depth": picture.channels},
            "segmented": 0,
        }
        root = _element("annotation", content)
        for box in picture.boxes:
            left, top, width, height = box.ltwh_px
            xmin, xmax = _nearest_pixels(left, left + width, picture.width)
            ymin, ymax = _nearest_pixels(top, top + height, picture.height)
            flags = {"pose": "Unspecified", "truncated": 0, "difficult": int(box.crowd)}
            corners = {"xmin": xmin, "ymin": ymin, "xmax": xmax, "ymax": ymax}
            root.append(_element("object", {"name": box.category, **flags, "bndbox": corners}))
            if (xmin - 1, ymin - 1, xmax, ymax) != (left, top, left + width, top + height):
                picture.notes.append(("boxes rounded to VOC's whole pixels", picture.file))
        indent(root)
        write_text(folder / f"Annotations/{picture.stem}.xml", tostring(root, encoding="unicode"))
    trainval = [*splits["train"], *splits["val"]]
    for split, pictures in (*splits.items(), ("trainval", trainval)):
        stems = "".join(f"{picture.stem}\n" for picture in pictures)
        write_text(folder / f"ImageSets/Main/{split}.txt", stems)
    write_text(folder / CLASSES_FILE, "".join(f"{name}\n" for name in names))


def _element(tag: str, content: Any) -> Element:
    """Return an xml element. content: its text, or a dict of its children by tag."""
    element = Element(tag)
    if isinstance(content, dict):
        element.extend(_element(*item) for item in content.items())
    else:
        element.text = str(content)
    return element


def _nearest_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """Return the first and last pixel, counted from 1, of the interval from start to end."""
    first, last = math.floor(start + 0.5) + 1, math.floor(end + 0.5)
    if first > last:  # both are nearest to the same edge: use the pixel of the center
        first = last = min(math.floor((start + end) / 2) + 1, side)
    return first, last
