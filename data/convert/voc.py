"""Pascal VOC: an xml file a picture, lists of pictures for the splits."""

import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError, SubElement, fromstring, indent, tostring

from data.convert.dataset import (
    CLASSES_FILE,
    PICTURE_SUFFIXES,
    Box,
    DataSet,
    Finding,
    Picture,
    Split,
    check_names,
    defects_into,
    find_files,
    gather,
    number,
    open_picture,
    place_pictures,
    read_bytes,
    read_lines,
    read_names,
    shown,
    write_annotations,
    write_names,
    write_text,
)
from ssd.errors import UserError

_Place = tuple[Path, Path, Path | None]
"""The folder of a split's xml files, that of its pictures, and the list of its stems, None for all."""


def read_voc(source: Path, classes_file: Path | None) -> tuple[DataSet, list[Finding]]:
    """Read the devkit's Annotations, JPEGImages and ImageSets/Main, or xml files beside their pictures.

    The latter are split by the folders train/ and val/ or valid/, else one set. Without a validation split
    the data set has no `val`. classes_file: the categories and their order; else classes.txt of the source,
    else all names, sorted. Raises UserError with every defect.
    """
    if classes_file is None and (source / CLASSES_FILE).exists():
        classes_file = source / CLASSES_FILE
    known = None if classes_file is None else read_names(classes_file)
    places, findings = _find_places(source)
    splits: dict[Split, list[Picture]] = {split: [] for split in places}
    for split, (annotations, folder, list_file) in places.items():
        by_stem: dict[str, list[str]] = {}
        for name in find_files(folder, PICTURE_SUFFIXES):
            by_stem.setdefault(os.path.splitext(name)[0], []).append(name)
        stems, missing = _find_stems(annotations, list_file)
        findings += missing
        if list_file is None:
            what = "pictures without an xml file are left out"
            findings += [Finding(what, folder / by_stem[stem][0]) for stem in sorted(by_stem.keys() - stems)]
        for stem in shown(stems, f"reading {split}"):
            xml = annotations / f"{stem}.xml"
            with defects_into(findings, xml):
                splits[split].append(_read_picture(xml, folder, by_stem.get(stem, []), known))
    findings = gather(source, findings, splits)
    boxes = [(picture, box) for split in splits.values() for picture in split for box in picture.boxes]
    what = "difficult objects are marked iscrowd"
    findings += [Finding(what, picture.file) for picture, box in boxes if box.crowd]
    if known is None:
        names = sorted({box.category for _, box in boxes})
        known = check_names(names, f"{source}: <name> of the objects")
    return DataSet(known, splits), findings


def _find_places(source: Path) -> tuple[dict[Split, _Place], list[Finding]]:
    annotations, pictures, lists = source / "Annotations", source / "JPEGImages", source / "ImageSets/Main"
    places: dict[Split, _Place]
    if annotations.is_dir():
        if not pictures.is_dir():
            raise UserError(f"{source} has Annotations and no JPEGImages; add that folder with the pictures")
        train, val, trainval, test = (lists / f"{name}.txt" for name in ("train", "val", "trainval", "test"))
        if train.exists() and val.exists():
            places = {"train": (annotations, pictures, train), "val": (annotations, pictures, val)}
        else:
            places = {"train": (annotations, pictures, next(filter(Path.exists, (trainval, train)), None))}
    else:
        train, test = source / "train", source / "test"
        val = source / "val" if (source / "val").is_dir() else source / "valid"
        if not (train.is_dir() and val.is_dir()):
            return {"train": (source, source, None)}, []
        places = {"train": (train, train, None), "val": (val, val, None)}
    unused = [Finding(f"{test} is not used: the COCO layout has train and val")] if test.exists() else []
    return places, unused


def _find_stems(annotations: Path, list_file: Path | None) -> tuple[list[str], list[Finding]]:
    """Return the paths of the xml files to read, without suffix, sorted, and what the list names in vain."""
    stems = [os.path.splitext(name)[0] for name in find_files(annotations, (".xml",))]
    if list_file is None:
        if not stems:
            raise UserError(
                f"{annotations} holds no xml file; give the folder that holds Annotations and JPEGImages "
                "(of a devkit: VOCdevkit/VOC2012), or xml files beside their pictures"
            )
        return stems, []
    present, listed = set(stems), read_lines(list_file)
    if not any(listed):
        raise UserError(f"{list_file} names no picture; add some, or remove the file")
    missing = [
        Finding(
            f"there is no {annotations / stem}.xml; add it, or remove the line",
            f"{list_file}: line {row}",
            defect=True,
        )
        for row, stem in enumerate(listed, start=1)
        if stem and stem not in present
    ]
    return sorted(stem for stem in listed if stem in present), missing


def _read_picture(xml: Path, folder: Path, names: list[str], known: tuple[str, ...] | None) -> Picture:
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
        suffixes = " ".join(PICTURE_SUFFIXES)
        raise UserError(
            f"its picture is missing: no {xml.stem} with any of {suffixes} in {folder}; add it, or remove "
            "the xml file"
        )
    if len(names) > 1:
        raise UserError(f"may belong to {' or '.join(names)}; rename or remove all but one")
    size, size_px = root.find("size"), None
    if size is not None and (_text(size, "width"), _text(size, "height")) != ("0", "0"):  # 0: not known
        size_px = number(_text(size, "width"), "width"), number(_text(size, "height"), "height")
    picture = open_picture(folder / names[0], names[0], size_px)
    for place, element in enumerate(root.findall("object"), start=1):
        where = f"{xml}: object {place}"
        with defects_into(picture.findings, where):
            picture.add(_read_object(element, known), where)
    return picture


def _read_object(element: Element, known: tuple[str, ...] | None) -> Box:
    category = _text(element, "name")
    if known is not None and category not in known:
        raise UserError(f"the classes file has no {category!r}; correct it, or add a line there")
    box = element.find("bndbox")
    if box is None:
        raise UserError("<object> has no <bndbox>; add it")
    sides = ("xmin", "ymin", "xmax", "ymax")
    xmin, ymin, xmax, ymax = (number(_text(box, side), f"{category}: {side}") for side in sides)
    difficult = number((element.findtext("difficult") or "").strip() or "0", f"{category}: difficult")
    # Pixels are counted from 1, and both corners are part of the box.
    return Box(category, (xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1), crowd=difficult != 0)


def _text(parent: Element, tag: str) -> str:
    text = (parent.findtext(tag) or "").strip()
    if not text:
        raise UserError(f"<{parent.tag}> has no <{tag}>, or an empty one; fill it")
    return text


def write_voc(data: DataSet, folder: Path, link: str) -> list[Finding]:
    """Write JPEGImages, Annotations, ImageSets/Main and classes.txt; crowd boxes become difficult ones.

    Raises UserError where pictures would share an xml file.
    """
    # A file that is in both splits is one picture.
    pictures = list({picture.file: picture for split in data.splits.values() for picture in split}.values())
    findings = []
    for picture in shown(pictures, "Annotations"):
        root, found = _annotation(picture)
        findings += found
        write_annotations(tostring(root, encoding="unicode"), folder / "Annotations", ".xml", picture)
    place_pictures(pictures, folder / "JPEGImages", link)
    for name, members in (*data.splits.items(), ("trainval", pictures)):
        stems = "".join(f"{picture.stem}\n" for picture in members)
        write_text(folder / f"ImageSets/Main/{name}.txt", stems)
    write_names(data.categories, folder)
    return findings


def _annotation(picture: Picture) -> tuple[Element, list[Finding]]:
    findings = []
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
        moves = (xmin - 1 - left, ymin - 1 - top, xmax - left - width, ymax - top - height)
        if moved_px := max(map(abs, moves)):
            findings.append(Finding("boxes are rounded to VOC's whole pixels", picture.file, moved_px))
        if box.crowd:
            findings.append(Finding("crowd boxes are marked difficult", picture.file))
    indent(root)
    return root, findings


def _fill(element: Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        SubElement(element, tag).text = str(value)


def _nearest_pixels(start: float, end: float, side: int) -> tuple[int, int]:
    """Return the first and last pixel, counted from 1, of what reaches from start to end."""
    first, last = math.floor(start + 0.5) + 1, math.floor(end + 0.5)
    if first > last:  # both are nearest to the same edge: take the pixel of the centre
        first = last = min(math.floor((start + end) / 2) + 1, side)
    return first, last
