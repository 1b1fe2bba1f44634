"""Pictures with boxes → a folder of VOC files as the devkit has them."""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from data.convert.categories import CLASSES_FILE
from data.convert.dataset import DataSet, Ltwh, Picture
from data.convert.findings import Findings
from data.convert.folder import Link, place_pictures
from data.convert.progress import shown
from data.convert.voc import corners


def write_voc(data: DataSet, folder: Path, link: Link, findings: Findings) -> None:
    """Write JPEGImages, Annotations, ImageSets/Main and classes.txt; crowd boxes become difficult ones.

    Raises UserError where pictures would share an xml file.
    """
    pictures = data.by_stem(("train", "val"))
    place_pictures(pictures.values(), folder / "JPEGImages", link)
    for stem, picture in shown(list(pictures.items()), "Annotations"):
        file = folder / "Annotations" / f"{stem}.xml"
        file.parent.mkdir(parents=True, exist_ok=True)
        tree = ElementTree(_annotation(picture, findings))
        indent(tree)
        tree.write(file, encoding="utf-8")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, members in data.splits.items():
        _write_lines(lists / f"{split}.txt", [picture.stem for picture in members])
    _write_lines(lists / "trainval.txt", pictures)
    _write_lines(folder / CLASSES_FILE, data.categories)


def _annotation(picture: Picture, findings: Findings) -> Element:
    header = picture.header
    root = Element("annotation")
    _fill(root, {"folder": "JPEGImages", "filename": PurePosixPath(picture.name).name})
    size = {"width": header.width, "height": header.height, "depth": header.channels}
    _fill(SubElement(root, "size"), size)
    _fill(root, {"segmented": 0})
    for box in picture.boxes:
        if box.crowd:
            findings.count("crowd boxes are marked difficult", picture.file)
        element = SubElement(root, "object")
        flags = {"pose": "Unspecified", "truncated": 0, "difficult": int(box.crowd)}
        _fill(element, {"name": box.category, **flags})
        whole = corners.to_corners(box.ltwh_px, header)
        _fill(SubElement(element, "bndbox"), dict(zip(corners.NAMES, whole, strict=True)))
        if moved_px := _largest_move(corners.to_ltwh(whole), box.ltwh_px):
            findings.count("boxes are rounded to VOC's whole pixels", picture.file, moved_px)
    return root


def _largest_move(one_ltwh_px: Ltwh, other_ltwh_px: Ltwh) -> float:
    """Return how far the side that differs most lies from the other box's."""
    (left, top, width, height), (left2, top2, width2, height2) = one_ltwh_px, other_ltwh_px
    right, bottom = left + width - left2 - width2, top + height - top2 - height2
    return max(abs(left - left2), abs(top - top2), abs(right), abs(bottom))


def _fill(element: Element, values: Mapping[str, object]) -> None:
    for tag, value in values.items():
        SubElement(element, tag).text = str(value)


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
