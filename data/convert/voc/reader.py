"""A folder of VOC files → pictures with boxes."""

from pathlib import Path
from xml.etree.ElementTree import Element

from data.convert.categories import CLASSES_FILE, check_names, read_names
from data.convert.dataset import Box, DataSet, Header, Picture, Split, cut_to_picture
from data.convert.findings import Findings
from data.convert.pictures import check_size, read_header
from data.convert.progress import shown
from data.convert.text import number, whole_number
from data.convert.voc import corners
from data.convert.voc.annotation import child, parse, text_of
from data.convert.voc.layout import Entry, find_entries
from ssd.errors import UserError


def read_voc(source: Path, classes_file: Path | None, findings: Findings) -> DataSet:
    """Read a folder of VOC files, `train` alone where it has no validation split.

    classes_file: the categories and their order; else classes.txt in the source, else all names, sorted.
    Raises UserError with every problem met.
    """
    if classes_file is None and (source / CLASSES_FILE).is_file():
        classes_file = source / CLASSES_FILE
    known = None if classes_file is None else read_names(classes_file)
    splits: dict[Split, tuple[Picture, ...]] = {}
    for split, entries in find_entries(source, findings).items():
        pictures = []
        for entry in shown(entries, f"reading {split}"):
            with findings.collect(entry.xml):
                pictures.append(_read_picture(entry, known, findings))
        splits[split] = tuple(pictures)
    findings.stop_at_problems(source)
    if known is None:
        names = {
            box.category for pictures in splits.values() for picture in pictures for box in picture.boxes
        }
        known = check_names(sorted(names), f"{source}: <name> of the objects")
    return DataSet(known, splits)


def _read_picture(entry: Entry, known: tuple[str, ...] | None, findings: Findings) -> Picture:
    root = parse(entry.xml)
    name = entry.picture_name((root.findtext("filename") or "").strip())
    file = entry.pictures / name
    header = read_header(file, findings)
    _check_claimed_size(root, header)
    boxes = []
    for place, element in enumerate(root.findall("object"), start=1):
        where = f"{entry.xml}: object {place}"
        with findings.collect(where):
            box = _read_box(element, header, where, findings)
            if known is not None and box.category not in known:
                raise UserError(f"the classes file has no {box.category!r}; correct it, or add a line there")
            boxes.append(box)
    return Picture(file, name, header, tuple(boxes))


def _check_claimed_size(root: Element, header: Header) -> None:
    """Compare the xml's size with the picture's; many tools leave it out or write 0."""
    size = root.find("size")
    if size is None:
        return
    width, height = (whole_number(text_of(size, side), side) for side in ("width", "height"))
    if (width, height) != (0, 0):
        check_size(header, width, height)


def _read_box(element: Element, header: Header, where: str, findings: Findings) -> Box:
    category = text_of(element, "name")
    box = child(element, "bndbox")
    xmin, ymin, xmax, ymax = (number(text_of(box, key), f"{category}: {key}") for key in corners.NAMES)
    for low, high, axis in ((xmin, xmax, "x"), (ymin, ymax, "y")):
        if low > high:
            raise UserError(f"{category}: {axis}min {low:g} is above {axis}max {high:g}; correct the object")
    ltwh_px, over_px = cut_to_picture(corners.to_ltwh((xmin, ymin, xmax, ymax)), header)
    findings.count_cut(where, over_px)
    difficult = whole_number((element.findtext("difficult") or "").strip() or "0", f"{category}: difficult")
    if difficult:
        findings.count("difficult objects are marked iscrowd", where)
    return Box(category, ltwh_px, crowd=bool(difficult))
