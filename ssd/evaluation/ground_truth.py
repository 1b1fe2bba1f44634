"""A COCO annotation file → what its evaluation looks at, or an error that names the place in it."""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from ssd.errors import UserError

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

# gc=False: the garbage collector need not visit a million objects that hold no references in a circle.


class _WithId(msgspec.Struct, gc=False):
    id: Int64


class _Annotation(msgspec.Struct, gc=False):
    image_id: Int64
    category_id: Int64
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: bool | int = 0


class _Document(msgspec.Struct):
    images: list[_WithId]
    annotations: list[_Annotation]
    categories: list[_WithId]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotated boxes, a row each: boxes_ltwh_px G×4; image and category are places in the lists of ids."""

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class AnnotationFile:
    """Ids of the file's images N and categories K, ascending, and its boxes, which refer to them by place."""

    path: Path
    image_ids: NDArray[np.int64]
    category_ids: NDArray[np.int64]
    boxes: GroundTruth


def read_annotations(path: Path) -> AnnotationFile:
    """Read an annotation file; polygons, most of it, are passed over.

    An annotation without `area` has its box's area. Annotation ids play no part: pycocotools takes a match
    with the id 0 for none. Raises UserError where the file is missing, truncated, no JSON, lacks a
    field, or has an annotation of an image or category that it does not list.
    """
    document = _decode(path)
    annotations = document.annotations
    image_ids = np.unique(np.array([image.id for image in document.images], dtype=np.int64))
    category_ids = np.unique(np.array([category.id for category in document.categories], dtype=np.int64))
    boxes_ltwh_px = np.array([entry.bbox for entry in annotations], dtype=np.float64).reshape(-1, 4)
    areas = np.array([entry.area for entry in annotations], dtype=np.float64)  # None becomes NaN
    images = places(np.array([entry.image_id for entry in annotations], dtype=np.int64), image_ids)
    categories = places(np.array([entry.category_id for entry in annotations], dtype=np.int64), category_ids)
    for entry in np.flatnonzero((images < 0) | (categories < 0))[:1]:
        section, key = ("images", "image_id") if images[entry] < 0 else ("categories", "category_id")
        raise UserError(
            f"annotation file {path}: annotations[{entry}] has the {key} {getattr(annotations[entry], key)}, "
            f"which no entry of `{section}` has; correct it, add that entry or remove the annotation"
        )
    truth = GroundTruth(
        images=images,
        categories=categories,
        boxes_ltwh_px=boxes_ltwh_px,
        areas=np.where(np.isnan(areas), boxes_ltwh_px[:, 2:].prod(axis=1), areas),
        crowd=np.array([entry.iscrowd for entry in annotations], dtype=np.bool_),
    )
    return AnnotationFile(path, image_ids, category_ids, truth)


def places(ids: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each id stands among the known ones, which ascend; −1 for an unknown one."""
    return np.where(np.isin(ids, known), np.searchsorted(known, ids), -1)


def _decode(path: Path) -> _Document:
    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8)  # of tools on Windows
    except OSError as error:
        raise UserError(
            f"annotation file {path} cannot be read ({error.strerror}); give data.val_annotations=FILE"
        ) from error
    try:
        return msgspec.json.decode(text, type=_Document)
    except msgspec.ValidationError as error:
        raise UserError(f"annotation file {path}: {error}; edit the file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        place = re.search(r"\(byte (\d+)\)", str(error))
        near = f" in {text[max(int(place[1]) - 40, 0) : int(place[1]) + 20]!r}" if place else ""
        raise UserError(f"annotation file {path}: {error}{near}; mend the file or fetch it anew") from error
