"""A COCO annotation file → checked arrays: the one reader of such files.

- read_annotations: what training uses of a file, or a UserError that names a defect.
- examine_annotations: all defects of a file, and what of it can be used nevertheless.
- read_ground_truth: what scoring uses, which asks for less: no sizes, no file names, any boxes.

msgspec parses a file into typed entries. Nearly every file is sound, and COCO's has 477 MB, so it is parsed
as a whole; where that fails, entry by entry, and what fails then, field by field.
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
"""Relative to the image, float32 tells tenths of a pixel apart up to here: no box becomes a line."""

MOST_IMAGES = 2**32
"""A cell of scoring, one category on one image, has the number category · MOST_IMAGES + image."""

NO_ID = -(2**63)
"""Stands for an id that is missing or can't be used; no entry may have it."""

_EDIT = "correct or remove the entry"
FIXES = {
    "unreadable_file": "name the annotation file, or make one of VOC or YOLO by scripts/convert_dataset.py",
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
class Annotations:
    """The images of an annotation file in its order, and their boxes, image by image, B in all.

    categories: label k + 1 is the file's k-th category. file_names: N, in UTF-8.
    image_ids: N int64. sizes_px: N×2 int64, (width, height).
    box_starts: N + 1 int64; the boxes of image i are rows box_starts[i] to box_starts[i + 1], in file order.
    boxes_ltwh_px: B×4 float64, as the file has them. labels: B int32, 1 … K. crowd: B bool.
    positions: B int64, each box's in the file's `annotations`. ids: B int64, its id there or NO_ID.
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
        """The image of each box: B."""
        return np.repeat(np.arange(len(self)), np.diff(self.box_starts))

    def where(self, row: int) -> str:
        """Say where in the file a box stands."""
        return entry_name("annotations", int(self.positions[row]), int(self.ids[row]))


class Truth(NamedTuple):
    """Annotated boxes, G rows in file order. images, categories: where their ids stand in the lists of ids.

    areas: the box's own where the file has none.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]  # G×4
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    @property
    def cells(self) -> NDArray[np.int64]:
        """The cell of each box, by a number: categories first, then images."""
        return self.categories * MOST_IMAGES + self.images

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Truth":
        """Return these rows."""
        return Truth._make(column[rows] for column in self)


@dataclass(frozen=True, eq=False)
class GroundTruthFile:
    """Ids of a file's images and K categories, ascending, and its boxes.

    names: K, the categories'; a category without one is called by its id.
    """

    path: Path
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    names: list[str]
    truth: Truth


def read_annotations(path: Path, key: str) -> Annotations:
    """Read an annotation file for training.

    key: the override that named the file. Raises UserError naming key, file, the first defect that
    examine_annotations finds, and its fix.
    """
    annotations, defects = examine_annotations(path)
    for defect in defects:
        if defect.kind in FIXES:
            raise _error(f"{key}={path}", path, defect)
    assert annotations is not None  # else a defect says why
    return annotations


def examine_annotations(path: Path) -> tuple[Annotations | None, list[Defect]]:
    """Find everything that is wrong with a file; nothing in it makes this raise.

    Of a text that is no JSON that is all that is found. Of a file without images the annotations are None.
    Otherwise they hold a row for each entry of `images` and `categories`, with the size 0×0, the name "" or
    NO_ID where these can't be used, and the boxes of finite numbers in an image and a category that can.
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
    positions = positions[np.argsort(boxes.images[positions], kind="stable")]  # image by image
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
    """Read what an evaluation looks at; polygons, most of a file, are passed over.

    Annotation ids play no part: pycocotools takes a match with the id 0 for none. Raises UserError where the
    file can't be read, is no annotation file, or has an annotation of an image or category it does not list.
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
    """Return where each id first stands among the known ones, −1 where it does not, or is NO_ID."""
    if not len(known_ids):
        return np.full(len(ids), -1)
    order = np.argsort(known_ids, kind="stable")
    positions = order[np.minimum(np.searchsorted(known_ids, ids, sorter=order), len(known_ids) - 1)]
    return np.where((known_ids[positions] == ids) & (ids != NO_ID), positions, -1)


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


# ---- what a sound file holds

_Id = Annotated[int, msgspec.Meta(ge=NO_ID + 1, le=2**63 - 1)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=LARGEST_SIDE_PX)]
# Not empty, not absolute, no part that is "..", no NUL.
_Path = Annotated[str, msgspec.Meta(pattern=r"(?s)\A(?!/|(.*/)?\.\.(/|\Z))[^\0]+\Z")]

_REFUSALS = (msgspec.DecodeError, ValueError, RecursionError)
"""What msgspec raises; its ValidationError, a DecodeError, says that the JSON is sound but of other types."""


# gc=False: the garbage collector need not visit a million entries that hold no references in a circle.
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
    """Find each box's image and category in the lists of ids; −1 and a defect for an unknown one."""
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


# ---- what is wrong with a file by itself, entry by entry


def _parse(path: Path) -> tuple[_File | None, list[Defect]]:
    """Parse a file. What can't be used of its entries is replaced as _FIELDS says, and is a defect."""
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
    return file, defects or [Defect("field_type", str(path), str(refusal))]  # such as a list there twice


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
            defects += found or [Defect("field_type", f"{section}[{place}]", str(error))]  # a field twice
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
"""Where a field is not of its type: the kind of defect, what is said of it, and what stands in its place."""


def _parse_fields(
    section: str, place: int, text: msgspec.Raw, of_entry: type[msgspec.Struct]
) -> tuple[msgspec.Struct, list[Defect]]:
    """Parse an entry that msgspec refuses."""
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
    """Yield ids that other tools refuse, and what is there twice."""
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
    """Say where an entry stands in the file."""
    return f"{section}[{place}] (id {'none' if entry_id in (None, NO_ID) else entry_id})"


def _error(named: str, path: Path, defect: Defect) -> UserError:
    where = "" if defect.where == str(path) else f"{defect.where}: "
    return UserError(f"{named}: {where}{defect.detail}; {FIXES[defect.kind]}")


# ---- the text of a file


def _read_text(path: Path) -> bytes:
    """Read a file without the byte-order mark that tools on Windows begin UTF-8 with. Raises OSError."""
    if path.is_fifo():  # opened, it would wait for a writer
        raise OSError(errno.EINVAL, "it is no regular file")
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def _explain(text: bytes, error: Exception) -> str:
    """Say why a text is no JSON, and where."""
    byte = re.search(r"\(byte (\d+)\)", str(error))
    near = text[max(int(byte[1]) - 20, 0) :][:40] if byte else text[-40:]
    return f"it is no JSON: {error}: {near.decode(errors='replace')!r}"


def _shown(text: msgspec.Raw | bytes) -> str:
    """Return the beginning of a JSON text, on one line."""
    return " ".join(bytes(memoryview(text)[:80]).decode(errors="replace").split())
