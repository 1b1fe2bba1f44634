"""Read a COCO annotation file into checked arrays. All readers of such files are here.

- read_annotations: the data that training uses, or a UserError that names the first defect.
- examine_annotations: all defects of a file, and the data that is usable despite them.
- read_ground_truth: the data that scoring uses. It needs no sizes or file names and accepts any box.

msgspec parses a file into typed entries. Almost all files are valid and COCO's is 477 MB, so a file is parsed
as a whole first. If that fails, it is parsed entry by entry, and bad entries field by field.
"""

import codecs
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ssd.categories import Categories
from ssd.errors import UserError

LARGEST_SIDE_PX = 2**20
"""Up to this side, float32 coordinates relative to the image resolve 0.1 px, so no box becomes a line."""

MOST_IMAGES = 2**32
"""Scoring numbers its cells (one category on one image) as category · MOST_IMAGES + image."""

NO_ID = -(2**63)
"""Replaces an id that is missing or unusable; no entry may have this id."""

_EDIT = "correct or remove the entry"
FIXES = {
    "unreadable_file": "name the annotation file, or convert VOC or YOLO with scripts/convert_dataset.py",
    "no_json": "write it as UTF-8 without NaN or Infinity, or download it again",
    "no_list": "write the lists of a COCO file, or name another",
    "no_object": _EDIT,
    "field_missing": _EDIT,
    "field_type": _EDIT,
    "id_type": "number the entries with whole numbers, and what refers to them",
    "id_duplicate": "give each entry its own id",
    "image_size": "write the picture's size into the file",
    "path_leaves_folder": "write it relative to the image folder",
    "unknown_image": "correct it, add the image or remove the annotation",
    "unknown_category": "correct it, add the category or remove the annotation",
    "box_numbers": "write left, top, width and height",
}
"""The fix for each kind of defect that stops training. The other kinds are warnings: id_range,
annotation_id_duplicate, category_name_duplicate, file_name_duplicate.
"""


@dataclass(frozen=True)
class Defect:
    """A defect: its kind, its place in the file, such as "annotations[17] (id 4711)", and what is wrong."""

    kind: str
    where: str
    detail: str


@dataclass(frozen=True, eq=False)
class Annotations:
    """The N images of an annotation file in file order, and their B boxes, grouped by image.

    categories: label k + 1 is the file's k-th category. file_names: N, in UTF-8.
    image_ids: N int64. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1], in file order.
    boxes_ltwh_px: B×4 float64, as in the file. labels: B int32, 1 … K. crowd: B bool.
    positions: B int64, each box's index in the file's `annotations`. ids: B int64, each box's id or NO_ID.
    """

    categories: Categories
    file_names: NDArray[np.bytes_]
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
        """The image index of each box: B int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.box_starts))

    def where(self, row: int) -> str:
        """Describe a box's place in the file."""
        return entry_name("annotations", int(self.positions[row]), int(self.ids[row]))


class Truth(NamedTuple):
    """G annotated boxes in file order. images, categories: each box's indices in the lists of ids.

    areas: from the file; the area of the box if the file gives none.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]  # G×4
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    @property
    def cells(self) -> NDArray[np.int64]:
        """The cell number of each box, ordered by category, then image."""
        return self.categories * MOST_IMAGES + self.images

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Truth":
        """Return the given rows."""
        return Truth._make(column[rows] for column in self)


@dataclass(frozen=True, eq=False)
class GroundTruthFile:
    """The ids of a file's images and of its K categories, each ascending, and its boxes.

    names: the K category names; the id if a category has no name.
    """

    path: Path
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    names: list[str]
    truth: Truth


def read_annotations(path: Path, key: str) -> Annotations:
    """Read an annotation file for training.

    key: the override that named the file. Raises UserError with the key, the file, the first defect that
    examine_annotations finds, and its fix.
    """
    annotations, defects = examine_annotations(path)
    for defect in defects:
        if defect.kind in FIXES:
            raise _error(f"{key}={path}", path, defect)
    assert annotations is not None  # otherwise there is a defect in FIXES
    return annotations


def examine_annotations(path: Path) -> tuple[Annotations | None, list[Defect]]:
    """Find every defect of a file. Never raises, whatever the file contains.

    If the text is not JSON, that is the only defect. If the file has no images, the annotations are None.
    Otherwise they have a row for every entry of `images` and `categories`: an unusable size becomes 0×0, an
    unusable name "", an unusable id NO_ID. They have the finite boxes whose image and category are usable.
    """
    file, defects = _parse(path)
    if file is None or not file.images:
        return None, defects
    image_ids = np.fromiter((image.id for image in file.images), np.int64)
    category_ids = np.fromiter((category.id for category in file.categories), np.int64)
    boxes, unknown = _find_references(file.annotations, image_ids, category_ids)
    defects += [*_compare_entries(file), *unknown]
    sizes_px = np.array([(image.width, image.height) for image in file.images], dtype=np.int64)
    sizes_px[~sizes_px.all(axis=1)] = 0
    finite = np.isfinite(boxes.boxes_ltwh_px).all(axis=1)
    usable = finite & (boxes.images >= 0) & (boxes.categories >= 0) & sizes_px[boxes.images].all(axis=1)
    positions = np.flatnonzero(usable)
    positions = positions[np.argsort(boxes.images[positions], kind="stable")]  # grouped by image
    boxes = boxes.take(positions)
    ids = np.fromiter((NO_ID if box.id is None else box.id for box in file.annotations), np.int64)
    names = tuple(category.name for category in file.categories)
    annotations = Annotations(
        categories=Categories(tuple(category_ids.tolist()), names),
        file_names=np.array([image.file_name.encode() for image in file.images]),
        image_ids=image_ids,
        sizes_px=sizes_px,
        box_starts=np.searchsorted(boxes.images, np.arange(len(image_ids) + 1)),
        boxes_ltwh_px=boxes.boxes_ltwh_px,
        labels=(boxes.categories + 1).astype(np.int32),
        crowd=boxes.crowd,
        positions=positions,
        ids=ids[positions],
    )
    return annotations, defects


def read_ground_truth(path: Path) -> GroundTruthFile:
    """Read what an evaluation needs; polygons, the bulk of a file, are skipped.

    Annotation ids are ignored: pycocotools mistakes a match with id 0 for no match. Raises UserError if the
    file can't be read, is not an annotation file, or has an annotation of an unlisted image or category.
    """
    named = f"annotation file {path}"
    try:
        text = _read_text(path)
        file = msgspec.json.decode(text, type=_ScoredFile)
    except OSError as error:
        raise UserError(
            f"{named} cannot be read ({error.strerror}); give data.val_annotations=FILE"
        ) from error
    except msgspec.ValidationError as error:
        raise UserError(f"{named}: {error}; {_EDIT}") from error
    except _REFUSALS as error:
        raise UserError(f"{named}: {_explain(text, error)}; {FIXES['no_json']}") from error
    image_ids = np.unique(np.fromiter((image.id for image in file.images), np.int64))
    names = {category.id: category.name for category in file.categories}
    category_ids = np.array(sorted(names), dtype=np.int64)
    truth, unknown = _find_references(file.annotations, image_ids, category_ids)
    if unknown:
        raise _error(named, path, unknown[0])
    called = [str(number if names[number] is None else names[number]) for number in category_ids.tolist()]
    return GroundTruthFile(path, image_ids, category_ids, called, truth)


def find_positions(ids: NDArray[np.int64], known_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first index of each id in known_ids; −1 if the id is not there or is NO_ID."""
    if not len(known_ids):
        return np.full(len(ids), -1)
    order = np.argsort(known_ids, kind="stable")
    positions = order[np.minimum(np.searchsorted(known_ids, ids, sorter=order), len(known_ids) - 1)]
    return np.where((known_ids[positions] == ids) & (ids != NO_ID), positions, -1)


def inside_px(
    ltwh_px: NDArray[np.float64], image_sizes_px: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the width and height of the part of each box inside its image; ≤ 0 for a box outside it.

    ltwh_px: B×4. image_sizes_px: B×2 (width, height). Returns B×2.
    The overhang is subtracted from the size, so a box inside the image keeps its exact size from the file.
    """
    left_top, size = ltwh_px[:, :2], ltwh_px[:, 2:]
    with np.errstate(over="ignore"):  # only sides like 1e308 overflow, and inf is outside the image
        over = np.maximum(-left_top, 0) + np.maximum(left_top + size - image_sizes_px, 0)
        inside: NDArray[np.float64] = size - over
    return inside


# ---- the schema of a valid file

_Id = Annotated[int, msgspec.Meta(ge=NO_ID + 1, le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIDE_PX)]
# Not empty, not absolute, no ".." part, no NUL.
_Path = Annotated[str, msgspec.Meta(pattern=r"(?s)\A(?!/|(.*/)?\.\.(/|\Z))[^\0]+\Z")]

_REFUSALS = (msgspec.DecodeError, ValueError, RecursionError)
"""What msgspec raises. Its ValidationError, a DecodeError, means valid JSON with the wrong types."""


# gc=False: the garbage collector need not visit a million entries that can't form reference cycles.
class _WithId(msgspec.Struct, gc=False):
    id: _Id


class _Category(_WithId, gc=False):
    name: str


class _Image(_WithId, gc=False):
    file_name: _Path
    width: _Side
    height: _Side


class _Box(msgspec.Struct, gc=False, kw_only=True):
    image_id: _Id
    category_id: _Id
    bbox: tuple[float, float, float, float]
    iscrowd: bool | int = 0
    area: float | None = None
    id: Any = None


class _Annotation(_Box, gc=False, kw_only=True):
    id: _Id | None = None


class _File(msgspec.Struct):
    images: Annotated[list[_Image], msgspec.Meta(min_length=1)]
    categories: Annotated[list[_Category], msgspec.Meta(min_length=1)]
    annotations: list[_Annotation]


class _ScoredCategory(_WithId, gc=False):
    name: Any = None


class _ScoredFile(msgspec.Struct):
    images: list[_WithId]
    categories: list[_ScoredCategory]
    annotations: list[_Box]


def _find_references(
    boxes: Sequence[_Box], image_ids: NDArray[np.int64], category_ids: NDArray[np.int64]
) -> tuple[Truth, list[Defect]]:
    """Look up each box's image and category in the lists of ids; an unknown id gives −1 and a defect."""
    ltwh_px = np.fromiter((side for box in boxes for side in box.bbox), np.float64).reshape(-1, 4)
    areas = np.array([box.area for box in boxes], dtype=np.float64)  # None becomes NaN
    with np.errstate(over="ignore"):
        areas = np.where(np.isnan(areas), ltwh_px[:, 2:].prod(axis=1), areas)
    found, defects = [], []
    for field, section, kind, known_ids in (
        ("image_id", "images", "unknown_image", image_ids),
        ("category_id", "categories", "unknown_category", category_ids),
    ):
        ids = np.fromiter((getattr(box, field) for box in boxes), np.int64)
        positions = find_positions(ids, known_ids)
        for place in np.flatnonzero((positions < 0) & (ids != NO_ID)).tolist():
            where = entry_name("annotations", place, boxes[place].id)
            defects.append(Defect(kind, where, f"no entry of `{section}` has its {field} {ids[place]}"))
        found.append(positions)
    images, categories = found
    crowd = np.fromiter((box.iscrowd for box in boxes), np.bool_)
    return Truth(images, categories, ltwh_px, areas, crowd), defects


# ---- the defects of a file, entry by entry


def _parse(path: Path) -> tuple[_File | None, list[Defect]]:
    """Parse a file. Each unusable field is a defect and is replaced by its default in _FIELDS."""
    try:
        text = _read_text(path)
        return msgspec.json.decode(text, type=_File), []
    except OSError as error:
        return None, [Defect("unreadable_file", str(path), f"it cannot be read ({error.strerror})")]
    except _REFUSALS as error:
        refusal = error
    try:
        sections = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        detail = f"it is {_shown(text)}, not an object with images, annotations and categories"
        return None, [Defect("no_list", str(path), detail)]
    except _REFUSALS as error:
        return None, [Defect("no_json", str(path), _explain(text, error))]
    file, defects = _File([], [], []), []
    types: dict[str, type[msgspec.Struct]] = {
        "images": _Image,
        "categories": _Category,
        "annotations": _Annotation,
    }
    for section, of_entries in types.items():
        entries, found = _parse_section(section, sections.get(section), of_entries)
        setattr(file, section, entries)
        defects += found
    return file, defects or [Defect("field_type", str(path), str(refusal))]  # such as a repeated list


def _parse_section(
    section: str, text: msgspec.Raw | None, of_entries: type[msgspec.Struct]
) -> tuple[list[msgspec.Struct], list[Defect]]:
    if text is None:
        return [], [Defect("no_list", section, "the file has none")]
    try:
        raw_entries = msgspec.json.decode(text, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        return [], [Defect("no_list", section, f"it is {_shown(text)}, not a list")]
    if not raw_entries and section != "annotations":
        return [], [Defect("no_list", section, "the list is empty")]
    entries, defects = [], []
    for place, raw in enumerate(raw_entries):
        try:
            entries.append(msgspec.json.decode(raw, type=of_entries))
        except _REFUSALS as error:
            entry, found = _parse_fields(section, place, raw, of_entries)
            entries.append(entry)
            defects += found or [Defect("field_type", f"{section}[{place}]", str(error))]  # repeated field
    return entries, defects


_ID = ("id_type", "is not a whole number of at most 64 bits", NO_ID)
_SIDE = ("image_size", f"is not a whole number from 1 to {LARGEST_SIDE_PX}", 0)
_FIELDS: dict[str, tuple[str, str, Any]] = {
    "id": _ID,
    "image_id": _ID,
    "category_id": _ID,
    "width": _SIDE,
    "height": _SIDE,
    "file_name": ("path_leaves_folder", "is no path inside the image folder", ""),
    "name": ("field_type", "is not text", ""),
    "bbox": ("box_numbers", "is not 4 finite numbers", (np.nan,) * 4),
    "iscrowd": ("field_type", "is not 0 or 1", 0),
    "area": ("field_type", "is not a number", None),
}
"""For a field of the wrong type: the kind of defect, its description, and the replacement value."""


def _parse_fields(
    section: str, place: int, text: msgspec.Raw, of_entry: type[msgspec.Struct]
) -> tuple[msgspec.Struct, list[Defect]]:
    """Parse an entry that msgspec rejects, field by field."""
    fields = msgspec.structs.fields(of_entry)
    values = {field.name: _FIELDS[field.name][2] for field in fields}
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except _REFUSALS:
        detail = f"it is {_shown(text)}, not an object"
        return of_entry(**values), [Defect("no_object", f"{section}[{place}]", detail)]
    where, defects = entry_name(section, place, _shown(raw["id"]) if "id" in raw else None), []
    for field in fields:
        if field.name in raw:
            try:
                values[field.name] = msgspec.json.decode(raw[field.name], type=field.type)
            except _REFUSALS:
                kind, what_it_is, _ = _FIELDS[field.name]
                detail = f"{field.name} {_shown(raw[field.name])} {what_it_is}"
                defects.append(Defect(kind, where, detail))
        elif field.required:
            defects.append(Defect("field_missing", where, f"no {field.name}"))
    return of_entry(**values), defects


def _compare_entries(file: _File) -> Iterator[Defect]:
    """Yield a defect for each id that other tools reject and for each duplicate."""
    for section, field, kind in (
        ("images", "id", "id_duplicate"),
        ("images", "file_name", "file_name_duplicate"),
        ("categories", "id", "id_duplicate"),
        ("categories", "name", "category_name_duplicate"),
        ("annotations", "id", "annotation_id_duplicate"),
    ):
        first: dict[object, int] = {}
        for place, entry in enumerate(getattr(file, section)):
            value = getattr(entry, field)
            if value in (None, NO_ID, ""):
                continue
            if kind == "id_duplicate" and not 0 <= value < 2**31:
                detail = f"id {value} is negative or needs more than 31 bits"
                yield Defect("id_range", entry_name(section, place, entry.id), detail)
            earlier = first.setdefault(os.path.normpath(value) if field == "file_name" else value, place)
            if earlier != place:
                detail = f"{section}[{earlier}] has the {field} {value!r} too"
                yield Defect(kind, entry_name(section, place, entry.id), detail)


def entry_name(section: str, place: int, entry_id: object) -> str:
    """Describe an entry's place in the file."""
    return f"{section}[{place}] (id {'none' if entry_id in (None, NO_ID) else entry_id})"


def _error(named: str, path: Path, defect: Defect) -> UserError:
    where = "" if defect.where == str(path) else f"{defect.where}: "
    return UserError(f"{named}: {where}{defect.detail}; {FIXES[defect.kind]}")


# ---- the text of a file


def _read_text(path: Path) -> bytes:
    """Read a file without the byte-order mark that Windows tools put before UTF-8. Raises OSError."""
    if path.is_fifo():  # opening it would block until a writer comes
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def _explain(text: bytes, error: Exception) -> str:
    """Say why and where a text is not JSON."""
    byte = re.search(r"\(byte (\d+)\)", str(error))
    near = text[max(int(byte[1]) - 20, 0) :][:40] if byte else text[-40:]
    return f"it is no JSON: {error}: {near.decode(errors='replace')!r}"


def _shown(text: msgspec.Raw | bytes) -> str:
    """Return the start of a JSON text, on one line."""
    return " ".join(bytes(memoryview(text)[:80]).decode(errors="replace").split())
