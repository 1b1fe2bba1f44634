"""A COCO annotation file → checked arrays: the one reader of such files.

- read_annotations: what training uses of a file, or a UserError that names the first defect.
- examine_annotations: all defects of a file, and what of it can be used nevertheless.
- read_ground_truth: what scoring uses, which asks for less: no sizes, no file names, any boxes.

Nearly every file is sound, and COCO's has 477 MB. So msgspec parses a file into typed entries, NumPy tells
whether what they say holds together, and only where it doesn't a slow look at each entry says what is wrong.
"""

import codecs
import json
import mmap
import os
import re
import sys
from collections.abc import Callable, Iterator
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

WARNINGS = {
    "id_negative",
    "id_beyond_32_bits",
    "annotation_id_large",
    "annotation_id_duplicate",
    "category_name_duplicate",
    "file_name_duplicate",
}
"""Kinds of defects that training passes over; all others stop it."""

_FIXES = {
    "unreadable_file": "name the annotation file",
    "no_json": "download it again, or name a COCO annotation file",
    "no_standard_json": "write it as UTF-8 without NaN or Infinity",
    "no_list": "write the lists of a COCO file, or name another",
}
_FIX_OF_AN_ENTRY = "correct the entry; scripts/check_dataset.py lists all that are wrong"


@dataclass(frozen=True)
class Defect:
    """Something wrong: its kind, where it stands, as in "annotations[17] (id 4711)", and what is there."""

    kind: str
    where: str
    detail: str

    @property
    def stops_training(self) -> bool:
        """Whether read_annotations refuses the file for it."""
        return self.kind not in WARNINGS


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
    file_names: tuple[str, ...]
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

    images, categories: rows in the lists of ids. boxes_ltwh_px: B×4. areas: B, the box's own where the file
    has none. crowd: B.
    """

    path: Path
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
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
        first = next((defect for defect in defects if defect.stops_training), unread)
        raise _error(f"{key}={path}", path, first) from error


def examine_annotations(path: Path) -> tuple[Annotations, list[Defect]]:
    """Find everything that is wrong with a file; nothing in it makes this raise.

    Where a defect stops training, read_annotations refuses the file, and the other way round; but for what
    stops scoring alone: no `annotations`, and an `area` that is no number.
    Of such a file the annotations hold a row for each entry of `images`, with the size 0×0, the name "" or
    the id 0 where these can't be used, and the boxes of finite numbers in an image and a category that can.
    They are empty where it is no annotation file at all.
    """
    file, defects = _parse_raw(path)
    if file is None:
        return _Look(_RawFile()).annotations(), defects
    look = _Look(file)
    annotations = look.annotations()
    defects = look.defects + defects
    del file, look  # of a large file a gigabyte
    if not any(defect.stops_training for defect in defects):
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
        file = msgspec.json.decode(_map_text(path), type=_ScoredFile)
    except (OSError, *_REFUSALS) as error:
        _, defects = _parse_raw(path)
        raise _error(named, path, *defects or [Defect("field_type", str(path), _at(error))]) from error
    entries = file.annotations
    image_ids = np.unique(np.fromiter((image.id for image in file.images), np.int64))
    category_ids = np.unique(np.fromiter((category.id for category in file.categories), np.int64))
    images = find_places(np.fromiter((entry.image_id for entry in entries), np.int64), image_ids)
    categories = find_places(np.fromiter((entry.category_id for entry in entries), np.int64), category_ids)
    unknown = (images < 0) | (categories < 0)
    if unknown.any():
        place = int(unknown.argmax())
        field = "image_id" if images[place] < 0 else "category_id"
        kind, detail = _unknown(field, getattr(entries[place], field))
        raise _error(named, path, Defect(kind, f"annotations[{place}]", detail))
    boxes_ltwh_px = np.array([entry.bbox for entry in entries], dtype=np.float64).reshape(-1, 4)
    areas = np.array([entry.area for entry in entries], dtype=np.float64)  # None becomes NaN
    return GroundTruthFile(
        path=path,
        image_ids=image_ids,
        category_ids=category_ids,
        images=images,
        categories=categories,
        boxes_ltwh_px=boxes_ltwh_px,
        areas=np.where(np.isnan(areas), boxes_ltwh_px[:, 2:].prod(axis=1), areas),
        crowd=np.array([entry.iscrowd for entry in entries], dtype=np.bool_),
    )


def find_places(ids: NDArray[np.int64], known_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each id stands among the known ones, −1 where it does not."""
    if not len(known_ids):
        return np.full(len(ids), -1)
    order = np.argsort(known_ids)
    places = order[np.minimum(np.searchsorted(known_ids, ids, sorter=order), len(known_ids) - 1)]
    return np.where(known_ids[places] == ids, places, -1)


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
    return not file_name or file_name.startswith("/") or ".." in file_name.split("/")


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


class _ScoredFile(msgspec.Struct):
    images: list[_WithId]
    annotations: list[_ScoredBox]
    categories: list[_WithId]


def _read_sound(path: Path) -> Annotations:
    """Read a sound file; of another, raise OSError or one of _REFUSALS, which need not say what is wrong."""
    file = msgspec.json.decode(_map_text(path), type=_File)
    images, categories, boxes = file.images, file.categories, file.annotations
    names = [image.file_name for image in images]
    image_ids = np.fromiter((image.id for image in images), np.int64)
    category_ids = np.fromiter((category.id for category in categories), np.int64)
    sizes_px = np.array([(image.width, image.height) for image in images], dtype=np.int64).reshape(-1, 2)
    rows = find_places(np.fromiter((box.image_id for box in boxes), np.int64), image_ids)
    classes = find_places(np.fromiter((box.category_id for box in boxes), np.int64), category_ids)
    if not (
        0 < len(image_ids) == len(np.unique(image_ids))
        and 0 < len(category_ids) == len(np.unique(category_ids))
        and ((sizes_px >= 1) & (sizes_px <= LARGEST_SIDE_PX)).all()
        and not any(leaves_folder(name) or "\0" in name for name in names)
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
        file_names=tuple(names),
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
    iscrowd: Any = 0
    area: Any = None


_Scalar = str | int | float | bool | None
_Section = list[_RawEntry | list[Any] | _Scalar] | dict[str, Any] | _Scalar | msgspec.UnsetType


class _RawFile(msgspec.Struct):
    images: _Section = _ABSENT
    categories: _Section = _ABSENT
    annotations: _Section = _ABSENT


def _parse_raw(path: Path) -> tuple[_RawFile | None, list[Defect]]:
    """Parse strictly as training does, or else as Python does, which takes NaN.

    Returns None, and why, where it is no annotation file at all.
    """
    kinds = _RawFile | list[Any] | _Scalar
    defects = []
    try:
        text = _map_text(path)
        file = msgspec.json.decode(text, type=kinds)
    except OSError as error:
        return None, [Defect("unreadable_file", str(path), f"it cannot be read ({error.strerror})")]
    except _REFUSALS as error:
        detail = _explain(text, error)
        try:
            whole = "" if "truncated" in str(error) else bytes(text)
            file = msgspec.convert(json.loads(whole), type=kinds)
        except _REFUSALS:
            return None, [Defect("no_json", str(path), detail)]
        defects = [Defect("no_standard_json", str(path), detail)]
    if isinstance(file, _RawFile):
        return file, defects
    detail = f"it holds {file!r:.60}, not an object with images, annotations and categories"
    return None, [*defects, Defect("no_list", str(path), detail)]


class _Look:
    """One pass through entries that may hold anything: what can be used of them, and their `defects`."""

    def __init__(self, file: _RawFile) -> None:
        self.file = file
        self.defects: list[Defect] = []
        # Of the values that one entry of a section should have: value → place of the first that has it.
        self.first: dict[tuple[str, str], dict[object, int]] = {column: {} for column in _REPEATED}

    def annotations(self) -> Annotations:
        """Go through the file; to be called once."""
        file_names, image_ids, sizes_px = [], [], []
        for image in self._entries("images"):
            file_names.append(image["file_name"] or "")
            image_ids.append(image["id"] or 0)
            size_px = (image["width"], image["height"])
            sizes_px.append((0, 0) if None in size_px else size_px)
        category_ids, category_names = [], []
        label_of = {}  # place in `categories` → label
        for place, category in enumerate(self._entries("categories")):
            if category["id"] is not None:
                category_ids.append(category["id"])
                category_names.append(category["name"] or "")
                label_of[place] = len(category_ids)
        boxes = []
        for place, box in enumerate(self._entries("annotations")):
            image_row, label = box["image_id"], label_of.get(box["category_id"])
            if None not in (image_row, label, box["bbox"]) and sizes_px[image_row] != (0, 0):
                id_ = box["id"] if isinstance(box["id"], int) else NO_ID
                boxes.append((image_row, box["bbox"], label, bool(box["iscrowd"]), place, id_))
        rows, boxes_ltwh_px, labels, crowd, positions, ids = zip(*boxes, strict=True) if boxes else [()] * 6
        columns: dict[str, NDArray[Any]] = {
            "boxes_ltwh_px": np.array(boxes_ltwh_px, dtype=np.float64).reshape(-1, 4),
            "labels": np.array(labels, dtype=np.int32),
            "crowd": np.array(crowd, dtype=np.bool_),
            "positions": np.array(positions, dtype=np.int64),
            "ids": np.array(ids, dtype=np.int64),
        }
        return Annotations(
            categories=Categories(tuple(category_ids), tuple(category_names)),
            file_names=tuple(file_names),
            image_ids=np.array(image_ids, dtype=np.int64),
            sizes_px=np.array(sizes_px, dtype=np.int64).reshape(-1, 2),
            **_by_image(columns, np.array(rows, dtype=np.int64), len(image_ids)),
        )

    def _entries(self, section: str) -> Iterator[dict[str, Any]]:
        """Yield each entry's values by field, as _value returns them."""
        entries = getattr(self.file, section)
        if not isinstance(entries, list):
            detail = "the file has none" if entries is _ABSENT else f"it is {entries!r:.60}, not a list"
            self.defects.append(Defect("no_list", section, detail))
            return
        if not entries and section != "annotations":
            self.defects.append(Defect("no_list", section, "the list is empty"))
        for place, entry in enumerate(entries):
            if isinstance(entry, _RawEntry):
                yield {field: self._value(section, place, entry, field) for field in _FAULTS[section]}
            else:
                detail = f"it is {entry!r:.60}, not an object"
                self.defects.append(Defect("no_object", f"{section}[{place}]", detail))
                yield dict.fromkeys(_FAULTS[section])

    def _value(self, section: str, place: int, entry: _RawEntry, field: str) -> Any:
        """Return a field's value, of a reference the place of what it means, None where it can't be used."""
        value, column = getattr(entry, field), (section, field)
        found, usable = [], True  # pairs of kind and detail
        if fault := _FAULTS[section][field](value):
            kind, detail = fault[0], f"{field} {value!r:.80} {fault[1]}"
            found.append(("field_missing", f"no {field}") if value is _ABSENT else (kind, detail))
            usable = kind in WARNINGS
        # Entries can refer to each other by a value, be it what an id should be or not.
        comparable = isinstance(value, int | float | str) and not isinstance(value, bool)
        if comparable and column in _REPEATED and (usable or field == "id"):
            same = os.path.normpath(value) if field == "file_name" else value
            first = self.first[column].setdefault(same, place)
            if first != place:
                found.append((_REPEATED[column], f"{section}[{first}] has the {field} {value!r} too"))
                usable = usable and _REPEATED[column] in WARNINGS
        if field in _REFERENCES:
            row = self.first[_REFERENCES[field][0], "id"].get(value) if comparable else None
            if comparable and row is None:
                found.append(_unknown(field, value))
            value, usable = row, True
        self.defects += [Defect(kind, entry_name(section, place, entry.id), detail) for kind, detail in found]
        return value if usable else None


_REFERENCES = {"image_id": ("images", "unknown_image"), "category_id": ("categories", "unknown_category")}
_REPEATED = {
    ("images", "id"): "id_duplicate",
    ("images", "file_name"): "file_name_duplicate",
    ("categories", "id"): "id_duplicate",
    ("categories", "name"): "category_name_duplicate",
    ("annotations", "id"): "annotation_id_duplicate",
}
"""Which kind of defect it is where two entries of a section have the same value."""


def _unknown(field: str, value: object) -> tuple[str, str]:
    """Return kind and detail of the defect that no entry has the id that a reference names."""
    section, kind = _REFERENCES[field]
    return kind, f"no entry of `{section}` has its {field} {value!r:.60}"


# What is wrong with a value, if anything: the kind of defect, and how its detail goes on after the value.
_Fault = tuple[str, str] | None


def _id_fault(id_: object) -> _Fault:
    if type(id_) is not int:
        kind = "id_text" if isinstance(id_, str) else "id_fraction" if isinstance(id_, float) else "id_type"
        return kind, "is not a whole number"
    if not -(2**63) <= id_ < 2**63:
        return "id_beyond_64_bits", "needs more than 64 bits"
    if id_ >= 2**31:
        return "id_beyond_32_bits", "needs more than 32 bits"
    return ("id_negative", "is negative") if id_ < 0 else None


def _annotation_id_fault(id_: object) -> _Fault:
    """It may be missing, as nothing refers to it, and COCO numbers its crowds beyond 32 bits."""
    fault = None if id_ is None or id_ is _ABSENT else _id_fault(id_)
    return ("annotation_id_large", fault[1]) if fault and fault[0] == "id_beyond_32_bits" else fault


def _side_fault(side: object) -> _Fault:
    if type(side) is not int:
        return "field_type", "is not a whole number of pixels"
    return None if 1 <= side <= LARGEST_SIDE_PX else ("image_size", f"is not 1 to {LARGEST_SIDE_PX}")


def _text_fault(text: object) -> _Fault:
    # Python's JSON reader takes half a surrogate pair, which can't be written.
    is_text = isinstance(text, str) and text == text.encode(errors="ignore").decode()
    return None if is_text else ("field_type", "is not text")


def _file_name_fault(name: Any) -> _Fault:
    if fault := _text_fault(name):
        return fault
    if leaves_folder(name):
        return "path_leaves_folder", "is no path inside the image folder"
    return ("field_type", "holds a NUL character, as no file's name can") if "\0" in name else None


def _bbox_fault(bbox: object) -> _Fault:
    if not (isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))):
        return "box_length", "is not 4 numbers"
    # Whole numbers can lie beyond every float.
    is_finite = all(abs(value) <= sys.float_info.max for value in bbox)
    return None if is_finite else ("box_not_finite", "holds NaN or infinity")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FAULTS: dict[str, dict[str, Callable[[Any], _Fault]]] = {
    "images": {"id": _id_fault, "file_name": _file_name_fault, "width": _side_fault, "height": _side_fault},
    "categories": {"id": _id_fault, "name": _text_fault},
    "annotations": {
        "id": _annotation_id_fault,
        "iscrowd": lambda crowd: None if isinstance(crowd, int) else ("field_type", "is not 0 or 1"),
        "area": lambda area: None if area is None or _is_number(area) else ("field_type", "is not a number"),
        "image_id": _id_fault,
        "category_id": _id_fault,
        "bbox": _bbox_fault,
    },
}


# ---- the text of a file


def _map_text(path: Path) -> memoryview:
    """Map a file, without the byte-order mark that tools on Windows begin UTF-8 with. Raises OSError.

    It is not copied, so the processes of one machine share its pages.
    """
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
    return f"it is no JSON text, unexpected character at byte {place} in {near!r}"


def _at(error: Exception) -> str:
    """Turn "… - at `$.annotations[17].bbox`" into "annotations[17].bbox: …"."""
    what, _, place = str(error).partition(" - at `$")
    return f"{place.strip('.`')}: {what}" if place.strip(".`") else what


def _error(named: str, path: Path, defect: Defect) -> UserError:
    where = "" if defect.where == str(path) else f"{defect.where}: "
    return UserError(f"{named}: {where}{defect.detail}; {_FIXES.get(defect.kind, _FIX_OF_AN_ENTRY)}")
