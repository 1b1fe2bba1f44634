"""A folder of YOLO files → pictures with boxes."""

from pathlib import Path

from data.convert.dataset import Box, DataSet, Header, Ltwh, Picture, Split, cut_to_picture
from data.convert.findings import Findings
from data.convert.pictures import read_header
from data.convert.progress import shown
from data.convert.text import number, read_lines, whole_number
from data.convert.yolo.config import category_names, read_config
from data.convert.yolo.layout import Entry, find_entries
from ssd.errors import UserError

LARGEST = 2.0
"""A centre or size beyond this many pictures is taken for pixels."""


def read_yolo(source: Path, classes_file: Path | None, findings: Findings) -> DataSet:
    """Read a folder of YOLO files, `train` alone where it has no validation split.

    classes_file: the category names by index; else data.yaml, classes.txt or obj.names of the source.
    A picture without a label file is one without objects. Raises UserError with every problem met.
    """
    config = read_config(source)
    names = category_names(source, config, classes_file)
    splits: dict[Split, tuple[Picture, ...]] = {}
    for split, entries in find_entries(source, config, findings).items():
        _refuse_unlabelled(entries)
        pictures = []
        for entry in shown(entries, f"reading {split}"):
            with findings.collect(entry.labels):
                pictures.append(_read_picture(entry, names, findings))
        splits[split] = tuple(pictures)
    findings.stop_at_problems(source)
    return DataSet(names, splits)


def _refuse_unlabelled(entries: list[Entry]) -> None:
    """Raise UserError where no picture has a label file: they lie elsewhere."""
    if not any(entry.labels.is_file() for entry in entries):
        raise UserError(
            f"none of {len(entries)} pictures has a label file, {entries[0].picture}, say, no "
            f"{entries[0].labels}; put the label files there"
        )


def _read_picture(entry: Entry, names: tuple[str, ...], findings: Findings) -> Picture:
    header = read_header(entry.picture, findings)
    boxes = []
    if not entry.labels.exists():
        findings.count("pictures have no label file: kept as pictures without objects", entry.picture)
        return Picture(entry.picture, entry.name, header, ())
    for place, line in enumerate(read_lines(entry.labels), start=1):
        where = f"{entry.labels}: line {place}"
        with findings.collect(where):
            if line:
                boxes.append(_read_box(line.split(), names, header, where, findings))
    return Picture(entry.picture, entry.name, header, tuple(boxes))


def _read_box(
    words: list[str], names: tuple[str, ...], header: Header, where: str, findings: Findings
) -> Box:
    index = whole_number(words[0], "class index")
    if not 0 <= index < len(names):
        raise UserError(
            f"class index {index} is outside the names' 0 to {len(names) - 1}; correct it, or add the name"
        )
    values = [number(word, "coordinate") for word in words[1:]]
    if len(values) >= 6 and len(values) % 2 == 0:
        findings.count("polygons are replaced by the boxes around them", where)
        ltwh = _around(values)
    elif len(values) == 4:
        cx, cy, width, height = values
        ltwh = (cx - width / 2, cy - height / 2, width, height)
    else:
        raise UserError(f"{len(words)} numbers, neither class cx cy w h nor class x y x y x y …; correct it")
    if max(map(abs, values)) > LARGEST:
        raise UserError(
            f"coordinate {max(values, key=abs):g} is not relative to the picture; divide by its size"
        )
    ltwh_px, over_px = cut_to_picture(_in_pixels(ltwh, header), header)
    findings.count_cut(where, over_px)
    return Box(names[index], ltwh_px)


def _around(xy: list[float]) -> Ltwh:
    left, top = min(xy[::2]), min(xy[1::2])
    return left, top, max(xy[::2]) - left, max(xy[1::2]) - top


def _in_pixels(ltwh: Ltwh, header: Header) -> Ltwh:
    left, top, width, height = ltwh
    return left * header.width, top * header.height, width * header.width, height * header.height
