"""A COCO annotation file → checked arrays: the one reader of such files.

- read_annotations: what training uses of a file, or a UserError that names the first defect.
- examine_annotations: all defects of a file, and what of it can be used nevertheless.
- read_ground_truth: what scoring uses, which asks for less: no sizes, no file names, any boxes.

Nearly every file is sound, and COCO's has 477 MB. So msgspec parses a file into typed entries, NumPy tells
whether what they say holds together, and only where it doesn't a slow look at each entry says what is wrong.
"""

import codecs
import errno
import json
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ssd.categories import Categories
from ssd.errors import UserError

LARGEST_SIDE_PX = 2**20
"""Relative to the image, float32 tells tenths of a pixel apart up to here: no box becomes a line."""

NO_ID = -(2**63)
"""In Annotations.ids: the annotation has no id."""

_EDIT = "correct or remove the entry"
FIXES = {
    "unreadable_file": "name the annotation file; of VOC and YOLO scripts/convert_dataset.py makes one",
    "no_json": "download it again, or name a COCO annotation file",
    "no_standard_json": "write it as UTF-8 without NaN or Infinity",
    "no_list": "write the lists of a COCO file, or name another",
    "no_object": _EDIT,
    "field_missing": _EDIT,
    "field_type": _EDIT,
    "refused": _EDIT,
    "id_type": "number the entries with whole numbers, and what refers to them",
    "id_duplicate": "give each entry its own id",
    "image_size": "write the picture's size into the file",
    "path_leaves_folder": "write it relative to the image folder",
    "unknown_image": "correct it, add the image or remove the annotation",
    "unknown_category": "correct it, add the category or remove the annotation",
    "box_numbers": "write left, top, width and height",
}
"""What to do about each kind of defect that stops training. The other kinds are warnings: id_range,
annotation_id_duplicate, category_name_duplicate, file_name_duplicate.
"""


@dataclass(frozen=True)
class Defect:
    """Something wrong: its kind, where it stands, as in "annotations[17] (id 4711)", and what is there."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True, eq=False)
class FileNames:
    """File names in the memory of their letters: a million Python strings would take four times as much.

    utf8: uint8, the bytes of all of them. starts: N + 1 int64; name i is utf8[starts[i] : starts[i + 1]].
    """

    utf8: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @staticmethod
    def of(names: Iterable[str]) -> "FileNames":
        """Pack names. Raises UnicodeEncodeError for a name that UTF-8 can't hold."""
        encoded = [name.encode() for name in names]
        starts = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in encoded], out=starts[1:])
        return FileNames(np.frombuffer(b"".join(encoded), dtype=np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> str:
        start, end = self.starts[row : row + 2]  # of a row that is none these are not two values
        return self.utf8[start:end].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text, starts = self.utf8.tobytes(), self.starts.tolist()
        for row in range(len(self)):
            yield text[starts[row] : starts[row + 1]].decode()

    def where(self, kept: NDArray[np.bool_]) -> "FileNames":
        """Return the names that are kept, in memory of their own."""
        lengths = np.diff(self.starts)
        starts = np.concatenate(([0], np.cumsum(lengths[kept])))
        return FileNames(self.utf8[np.repeat(kept, lengths)], starts)


@dataclass(frozen=True, eq=False)
class Annotations:
    """The images of an annotation file in its order, and their boxes, image by image, B in all.

    categories: label k + 1 is the file's k-th category. file_names: N.
    image_ids: N int64. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1], in file order.
    boxes_ltwh_px: B×4 float64, as the file has them. labels: B int32, 1 … K. crowd: B bool.
    positions: B int64, each box's in the file's `annotations`. ids: B int64, its id there or NO_ID.
    """

    categories: Categories
    file_names: FileNames
    image_ids: NDArray[np.int64]
    sizes_px: NDArray[np.int64]
    box_starts: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]
    labels: NDArray[np.int32]
    crowd: NDArray[np.bool_]
    positions: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def images(self) -> NDArray[np.int64]:
        """The image of each box: B."""
        return np.repeat(np.arange(len(self)), np.diff(self.box_starts))

    def where(self, row: int) -> str:
        """Say where in the file a box stands."""
        number = int(self.ids[row])
        return entry_name("annotations", int(self.positions[row]), _ABSENT if number == NO_ID else number)


@dataclass(frozen=True, eq=False)
class GroundTruthFile:
    """Ids of a file's images N and categories K, ascending, and its boxes, a row each, in file order.

    names: K, the categories'; a category without one is called by its id.
    images, categories: rows in the lists of ids. boxes_ltwh_px: B×4. areas: B, the box's own where the file
    has none. crowd: B.
    """

    path: Path
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    names: list[str]
    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]


def read_annotations(path: Path, key: str) -> Annotations:
    """Read an annotation file for training; one without `annotations` lists images to evaluate on.

    key: the override that named the file. Raises UserError naming key, file, the first entry that is wrong
    and the fix.
    """
    try:
        return _read_sound(path)
    except (OSError, *_REFUSALS) as error:
        _, defects = examine_annotations(path)
        unread = Defect("refused", str(path), str(error))  # where the file was repaired meanwhile
        raise _error(f"{key}={path}", path, next(filter(_stops_training, defects), unread)) from error


def examine_annotations(path: Path) -> tuple[Annotations | None, list[Defect]]:
    """Find everything that is wrong with a file; nothing in it makes this raise.

    Where a defect stops training (its kind is among FIXES), read_annotations refuses the file, and the other
    way round; but for what stops scoring alone: no `annotations`, and an `area` that is no number.
    Of such a file the annotations are None where it is no annotation file at all. Otherwise they hold a row
    for each entry of `images`, with the size 0×0, the name "" or the id 0 where these can't be used, and the
    boxes of finite numbers in an image and a category that can.
    """
    try:
        file, defects_of_text = _parse_raw(_map_text(path), str(path))
    except OSError as error:
        return None, [Defect("unreadable_file", str(path), f"it cannot be read ({error.strerror})")]
    if not isinstance(file, _RawFile):
        return None, defects_of_text
    defects = [*_look(file), *defects_of_text]
    annotations = _usable(file)
    del file  # of a large one it is a gigabyte
    if not any(map(_stops_training, defects)):
        try:
            annotations = _read_sound(path)
        except _REFUSALS as error:  # such as a key twice in an entry, of which the look sees the second
            defects.append(Defect("refused", str(path), _at(error)))
    return annotations, defects


def read_ground_truth(path: Path) -> GroundTruthFile:
    """Read what an evaluation looks at; polygons, most of a file, are passed over.

    Annotation ids play no part: pycocotools takes a match with the id 0 for none. Raises UserError where the
    file can't be read, is no annotation file, or has an annotation of an image or category it does not list.
    """
    named = f"annotation file {path}"
    try:
        text = _map_text(path)
    except OSError as error:
        raise UserError(
            f"{named} cannot be read ({error.strerror}); give data.val_annotations=FILE"
        ) from error
    try:
        file = msgspec.json.decode(text, type=_ScoredFile)
    except msgspec.ValidationError as error:
        raise _error(named, path, Defect("field_type", str(path), _at(error))) from error
    except _REFUSALS as error:
        raise _error(named, path, Defect("no_json", str(path), _explain(text, error))) from error
    entries = file.annotations
    image_ids = np.unique(np.fromiter((image.id for image in file.images), np.int64))
    names = {category.id: category.name for category in file.categories}
    category_ids = np.array(sorted(names), dtype=np.int64)
    images = find_positions(np.fromiter((entry.image_id for entry in entries), np.int64), image_ids)
    categories = find_positions(np.fromiter((entry.category_id for entry in entries), np.int64), category_ids)
    unknown = (images < 0) | (categories < 0)
    if unknown.any():
        place = int(unknown.argmax())
        field = "image_id" if images[place] < 0 else "category_id"
        other, kind = _REFERENCES[field]
        detail = f"no entry of `{other}` has its {field} {getattr(entries[place], field)}"
        defect = Defect(kind, f"annotations[{place}]", detail)
        raise _error(named, path, defect)
    boxes_ltwh_px = np.array([entry.bbox for entry in entries], dtype=np.float64).reshape(-1, 4)
    areas = np.array([entry.area for entry in entries], dtype=np.float64)  # None becomes NaN
    return GroundTruthFile(
        path=path,
        image_ids=image_ids,
        category_ids=category_ids,
        names=[str(number if names[number] is None else names[number]) for number in category_ids.tolist()],
        images=images,
        categories=categories,
        boxes_ltwh_px=boxes_ltwh_px,
        areas=np.where(np.isnan(areas), boxes_ltwh_px[:, 2:].prod(axis=1), areas),
        crowd=np.array([entry.iscrowd for entry in entries], dtype=np.bool_),
    )


def find_positions(ids: NDArray[np.int64], known_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each id stands among the known ones, −1 where it does not."""
    if not len(known_ids):
        return np.full(len(ids), -1)
    order = np.argsort(known_ids)
    positions = order[np.minimum(np.searchsorted(known_ids, ids, sorter=order), len(known_ids) - 1)]
    return np.where(known_ids[positions] == ids, positions, -1)


def inside_px(
    ltwh_px: NDArray[np.float64], image_sizes_px: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return width and height of what of each box lies inside its image, 0 or less where nothing does.

    ltwh_px: B×4. image_sizes_px: B×2 (width, height). Returns B×2.
    What hangs over is taken off the size: a box inside keeps the exact size that the file gives.
    """
    left_top, size = ltwh_px[:, :2], ltwh_px[:, 2:]
    with np.errstate(over="ignore"):  # only sides like 1e308 overflow, and infinity lies outside the image
        over = np.maximum(-left_top, 0) + np.maximum(left_top + size - image_sizes_px, 0)
        inside: NDArray[np.float64] = size - over
    return inside


def leaves_folder(file_name: str) -> bool:
    """Tell whether an image's file_name is anything but a path inside the image folder."""
    return not file_name or file_name.startswith("/") or ".." in file_name.split("/") or "\0" in file_name


def entry_name(section: str, place: int, entry_id: object) -> str:
    """Say where an entry stands in the file."""
    return f"{section}[{place}] (id {'none' if entry_id is _ABSENT else repr(entry_id)[:40]})"


# ---- the fast way: typed entries of a sound file

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_REFUSALS = (msgspec.DecodeError, ValueError, RecursionError)
"""What a file that is not sound makes _read_sound raise, besides OSError; RecursionError: deep brackets."""


# gc=False: the garbage collector need not visit a million entries that hold no references in a circle.
class _WithId(msgspec.Struct, gc=False):
    id: _Int64


class _Category(_WithId, gc=False):
    name: str


class _Image(_WithId, gc=False):
    file_name: str
    width: _Int64
    height: _Int64


class _Box(msgspec.Struct, gc=False, kw_only=True):
    image_id: _Int64
    category_id: _Int64
    bbox: tuple[float, float, float, float]
    iscrowd: bool | int = 0


class _Annotation(_Box, gc=False, kw_only=True):
    id: _Int64 | None = None


class _ScoredBox(_Box, gc=False, kw_only=True):
    area: float | None = None


class _File(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category] = []
    annotations: list[_Annotation] = []


class _ScoredCategory(_WithId, gc=False):
    name: Any = None


class _ScoredFile(msgspec.Struct):
    images: list[_WithId]
    annotations: list[_ScoredBox]
    categories: list[_ScoredCategory]


def _read_sound(path: Path) -> Annotations:
    """Read a sound file; of another, raise OSError or one of _REFUSALS, which need not say what is wrong."""
    file = msgspec.json.decode(_map_text(path), type=_File)
    images, categories, boxes = file.images, file.categories, file.annotations
    names = [image.file_name for image in images]
    image_ids = np.fromiter((image.id for image in images), np.int64)
    category_ids = np.fromiter((category.id for category in categories), np.int64)
    sizes_px = np.array([(image.width, image.height) for image in images], dtype=np.int64).reshape(-1, 2)
    rows = find_positions(np.fromiter((box.image_id for box in boxes), np.int64), image_ids)
    classes = find_positions(np.fromiter((box.category_id for box in boxes), np.int64), category_ids)
    if not (
        0 < len(image_ids) == len(np.unique(image_ids))
        and 0 < len(category_ids) == len(np.unique(category_ids))
        and ((sizes_px >= 1) & (sizes_px <= LARGEST_SIDE_PX)).all()
        and not any(map(leaves_folder, names))
        and (rows >= 0).all()
        and (classes >= 0).all()
    ):
        raise ValueError("an empty list, an id twice, a size, a file name or a reference")
    columns: dict[str, NDArray[Any]] = {
        "boxes_ltwh_px": np.fromiter((side for box in boxes for side in box.bbox), np.float64).reshape(-1, 4),
        "labels": (classes + 1).astype(np.int32),
        "crowd": np.fromiter((box.iscrowd for box in boxes), np.bool_),
        "positions": np.arange(len(boxes)),
        "ids": np.fromiter((NO_ID if box.id is None else box.id for box in boxes), np.int64),
    }
    return Annotations(
        categories=Categories(tuple(category_ids.tolist()), tuple(category.name for category in categories)),
        file_names=FileNames.of(names),
        image_ids=image_ids,
        sizes_px=sizes_px,
        **_by_image(columns, rows, len(images)),
    )


def _by_image(
    columns: dict[str, NDArray[Any]], rows: NDArray[np.int64], images: int
) -> dict[str, NDArray[Any]]:
    """Put boxes, of which `rows` are the images, into the images' order; add box_starts."""
    order = np.argsort(rows, kind="stable")
    box_starts = np.searchsorted(rows[order], np.arange(images + 1)).astype(np.int64)
    return {"box_starts": box_starts} | {name: column[order] for name, column in columns.items()}


# ---- the slow way: entries that may hold anything

_ABSENT = msgspec.UNSET


class _RawEntry(msgspec.Struct, gc=False):
    """An entry of any section, any values in it."""

    id: Any = _ABSENT
    file_name: Any = _ABSENT
    width: Any = _ABSENT
    height: Any = _ABSENT
    name: Any = _ABSENT
    image_id: Any = _ABSENT
    category_id: Any = _ABSENT
    bbox: Any = _ABSENT
    iscrowd: Any = _ABSENT
    area: Any = _ABSENT


_Scalar = str | int | float | bool | None
_Section = list[_RawEntry | list[Any] | _Scalar] | dict[str, Any] | _Scalar | msgspec.UnsetType


class _RawFile(msgspec.Struct):
    images: _Section = _ABSENT
    categories: _Section = _ABSENT
    annotations: _Section = _ABSENT


_FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "categories": ("id", "name"),
    "annotations": ("id", "iscrowd", "area", "image_id", "category_id", "bbox"),
}
_OPTIONAL = ("annotations.id", "annotations.iscrowd", "annotations.area")
_REFERENCES = {"image_id": ("images", "unknown_image"), "category_id": ("categories", "unknown_category")}
_REPEATED = {
    "images.id": "id_duplicate",
    "images.file_name": "file_name_duplicate",
    "categories.id": "id_duplicate",
    "categories.name": "category_name_duplicate",
    "annotations.id": "annotation_id_duplicate",
}
"""Which kind of defect it is where two entries of a section have the same value."""


def _parse_raw(text: memoryview, where: str) -> tuple[object, list[Defect]]:
    """Parse strictly as training does, or else as Python does, which takes NaN."""
    kinds = _RawFile | list[Any] | _Scalar
    defects = []
    try:
        file = msgspec.json.decode(text, type=kinds)
    except _REFUSALS as error:
        detail = _explain(text, error)
        try:
            whole = "" if "truncated" in str(error) else bytes(text)
            file = msgspec.convert(json.loads(whole), type=kinds)
        except _REFUSALS:
            return None, [Defect("no_json", where, detail)]
        defects = [Defect("no_standard_json", where, detail)]
    if not isinstance(file, _RawFile):
        detail = f"it holds {file!r:.60}, not an object with images, annotations and categories"
        defects.append(Defect("no_list", where, detail))
    return file, defects


def _look(file: _RawFile) -> Iterator[Defect]:
    """Yield what is wrong with each entry, and prepare the entries for _usable.

    A field that can't be used becomes None, a reference the place of the entry that it means. Entries that
    are no objects become empty ones, and lists that are none too.
    """
    first: dict[str, dict[object, int]] = {key: {} for key in _REPEATED}  # value → place
    for section in _FIELDS:
        entries = getattr(file, section)
        if not isinstance(entries, list):
            detail = "the file has none" if entries is _ABSENT else f"it is {entries!r:.60}, not a list"
            yield Defect("no_list", section, detail)
            entries = []
            setattr(file, section, entries)
        elif not entries and section != "annotations":
            yield Defect("no_list", section, "the list is empty")
        for place, entry in enumerate(entries):
            if isinstance(entry, _RawEntry):
                yield from _look_at_entry(entry, section, place, first)
            else:
                yield Defect("no_object", f"{section}[{place}]", f"it is {entry!r:.60}, not an object")
                entries[place] = _RawEntry(*[None] * len(_RawEntry.__struct_fields__))


def _look_at_entry(
    entry: _RawEntry, section: str, place: int, first: dict[str, dict[object, int]]
) -> Iterator[Defect]:
    where = entry_name(section, place, entry.id)
    for field in _FIELDS[section]:
        value, key = getattr(entry, field), f"{section}.{field}"
        optional = key in _OPTIONAL
        kind, holds, what_it_is = _HOLDS[field]
        if value is _ABSENT or (value is None and optional and field != "iscrowd"):
            if not optional:
                yield Defect("field_missing", where, f"no {field}")
                setattr(entry, field, None)
            continue
        if not holds(value):
            yield Defect(kind, where, f"{field} {value!r:.80} {what_it_is}")
            value = None
        elif field in _REFERENCES:
            other, unknown = _REFERENCES[field]
            found = first[f"{other}.id"].get(value)
            if found is None:
                yield Defect(unknown, where, f"no entry of `{other}` has its {field} {value}")
            value = found
        elif key in _REPEATED:
            same = os.path.normpath(value) if field == "file_name" else value
            earlier = first[key].setdefault(same, place)
            if key in ("images.id", "categories.id") and not 0 <= value < 2**31:
                yield Defect("id_range", where, f"id {value} is negative or needs more than 31 bits")
            if earlier != place:
                yield Defect(_REPEATED[key], where, f"{section}[{earlier}] has the {field} {value!r} too")
                value = None if _REPEATED[key] in FIXES else value
        setattr(entry, field, value)


def _is_number(value: object) -> bool:
    """Tell whether it is a finite number; a whole number may be beyond every float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max


def _is_text(value: object) -> bool:
    """Tell whether it is text that can be written: Python's JSON reader takes half a surrogate pair."""
    return isinstance(value, str) and value == value.encode(errors="ignore").decode()


_Test = tuple[str, Callable[[Any], bool], str]
_ID: _Test = (
    "id_type",
    lambda id_: type(id_) is int and -(2**63) <= id_ < 2**63,
    "is not a whole number of at most 64 bits",
)
_SIDE: _Test = (
    "image_size",
    lambda side: type(side) is int and 1 <= side <= LARGEST_SIDE_PX,
    f"is not a whole number from 1 to {LARGEST_SIDE_PX}",
)
_HOLDS: dict[str, _Test] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "width": _SIDE,
    "height": _SIDE,
    "file_name": (
        "path_leaves_folder",
        lambda name: _is_text(name) and not leaves_folder(name),
        "is no path inside the image folder",
    ),
    "name": ("field_type", _is_text, "is not text"),
    "bbox": (
        "box_numbers",
        lambda box: isinstance(box, list) and len(box) == 4 and all(map(_is_number, box)),
        "is not 4 finite numbers",
    ),
    "iscrowd": ("field_type", lambda crowd: isinstance(crowd, int), "is not 0 or 1"),
    "area": ("field_type", _is_number, "is not a number"),
}
"""The kind of defect that a field's value is, unless this holds of it."""


def _usable(file: _RawFile) -> Annotations:
    """Return what can be used of entries that _look has prepared."""
    images, raw_categories, annotations = (getattr(file, section) for section in _FIELDS)
    categories = {place: raw for place, raw in enumerate(raw_categories) if raw.id is not None}
    label_of = {place: label for label, place in enumerate(categories, start=1)}
    sizes_px = [(raw.width, raw.height) if raw.width and raw.height else (0, 0) for raw in images]
    boxes = {
        place: raw
        for place, raw in enumerate(annotations)
        if None not in (raw.image_id, raw.bbox) and raw.category_id in label_of and sizes_px[raw.image_id][0]
    }
    ids = [raw.id if isinstance(raw.id, int) else NO_ID for raw in boxes.values()]
    columns: dict[str, NDArray[Any]] = {
        "boxes_ltwh_px": np.array([raw.bbox for raw in boxes.values()], dtype=np.float64).reshape(-1, 4),
        "labels": np.array([label_of[raw.category_id] for raw in boxes.values()], dtype=np.int32),
        "crowd": np.array([raw.iscrowd not in (_ABSENT, None, 0) for raw in boxes.values()], dtype=np.bool_),
        "positions": np.array([*boxes], dtype=np.int64),
        "ids": np.array(ids, dtype=np.int64),
    }
    rows = np.array([raw.image_id for raw in boxes.values()], dtype=np.int64)
    return Annotations(
        categories=Categories(
            tuple(raw.id for raw in categories.values()), tuple(raw.name or "" for raw in categories.values())
        ),
        file_names=FileNames.of(raw.file_name or "" for raw in images),
        image_ids=np.array([raw.id or 0 for raw in images], dtype=np.int64),
        sizes_px=np.array(sizes_px, dtype=np.int64).reshape(-1, 2),
        **_by_image(columns, rows, len(images)),
    )


# ---- the text of a file


def _map_text(path: Path) -> memoryview:
    """Map a file, without the byte-order mark that tools on Windows begin UTF-8 with. Raises OSError.

    It is not copied, so the processes of one machine share its pages.
    """
    if path.is_fifo():  # opened, it would wait for a writer
        raise OSError(errno.EINVAL, "it is no regular file")
    with path.open("rb") as file:
        is_empty = os.fstat(file.fileno()).st_size == 0  # that can't be mapped
        text = memoryview(b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return text[len(codecs.BOM_UTF8) * (bytes(text[:3]) == codecs.BOM_UTF8) :]


def _explain(text: memoryview, error: Exception) -> str:
    """Say why a text is no JSON."""
    if "truncated" in str(error):
        return f"the JSON text breaks off after {len(text)} bytes, a download cut short perhaps"
    byte = re.search(r"\(byte (\d+)\)", str(error))
    if byte is None:
        return f"it is no JSON text: {_at(error)}"
    place = int(byte[1])
    near = bytes(text[max(place - 20, 0) : place + 20]).decode(errors="replace")
    if re.match(rb"NaN|Infinity", text[place:]):
        return f"it holds NaN or Infinity, which is no JSON number, at byte {place} in {near!r}"
    return f"it is no JSON text, unexpected character at byte {place} in {near!r}"


def _at(error: Exception) -> str:
    """Turn "… - at `$.annotations[17].bbox`" into "annotations[17].bbox: …"."""
    what, _, place = str(error).partition(" - at `$")
    return f"{place.strip('.`')}: {what}" if place.strip(".`") else what


def _stops_training(defect: Defect) -> bool:
    return defect.kind in FIXES


def _error(named: str, path: Path, defect: Defect) -> UserError:
    where = "" if defect.where == str(path) else f"{defect.where}: "
    return UserError(f"{named}: {where}{defect.detail}; {FIXES[defect.kind]}")
