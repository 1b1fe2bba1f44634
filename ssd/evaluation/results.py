"""Detections as they come, COCO's results list, a file of one or an array → checked arrays."""

import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd.errors import UserError
from ssd.evaluation.ground_truth import AnnotationFile, places
from ssd.evaluation.matching import ScoredBoxes

Results = list[dict[str, Any]] | NDArray[np.float64] | str | Path

FIELDS = ("image_id", "category_id", "bbox", "score")
ARRAY_COLUMNS = ("image_id", "left", "top", "width", "height", "score", "category_id")


@dataclass(frozen=True, eq=False)
class _Columns:
    """A row a detection, of numbers that may still be anything; source is what errors begin with."""

    source: str
    image_ids: NDArray[Any]
    category_ids: NDArray[Any]
    boxes_ltwh_px: NDArray[np.float64]
    scores: NDArray[np.float64]


def read_detections(results: Results, annotated: AnnotationFile) -> ScoredBoxes:
    """Check detections and find their images and categories in the annotation file.

    results: as in `coco.coco_numbers`. Raises UserError naming the first entry that is no detection, is
    not finite, or has an image or category that the annotation file does not list.
    """
    columns = _columns(results)
    finite = np.isfinite(columns.boxes_ltwh_px).all(axis=1) & np.isfinite(columns.scores)
    for entry in np.flatnonzero(~finite)[:1]:
        raise UserError(
            f"{columns.source}: entry {entry} has the bbox {columns.boxes_ltwh_px[entry].tolist()} and the "
            f"score {columns.scores[entry]}, which must be finite; look for NaN in the model's weights"
        )
    image_ids = _whole(columns.image_ids, "image_id", columns.source)
    category_ids = _whole(columns.category_ids, "category_id", columns.source)
    images, categories = places(image_ids, annotated.image_ids), places(category_ids, annotated.category_ids)
    for entry in np.flatnonzero(images < 0)[:1]:
        raise UserError(
            f"{columns.source}: {_count(images < 0)} of images that {annotated.path} does not list; entry "
            f"{entry}, the first, has the image_id {image_ids[entry]}; give the file that lists these images"
        )
    for entry in np.flatnonzero(categories < 0)[:1]:
        raise UserError(
            f"{columns.source}: {_count(categories < 0)} of categories that {annotated.path} does not list; "
            f"entry {entry}, the first, has the category_id {category_ids[entry]}; write that file's ids, "
            "not the labels 1 to K"
        )
    return ScoredBoxes(images, categories, columns.boxes_ltwh_px, columns.scores)


def _columns(results: Results) -> _Columns:
    if isinstance(results, str | Path):
        return _columns_of_list(_load(Path(results)), f"detections {results}")
    if isinstance(results, np.ndarray):
        return _columns_of_array(results, "detections")
    return _columns_of_list(results, "detections")


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"detections {path} cannot be read ({error.strerror}); name a json file of COCO's results"
        ) from error
    except ValueError as error:
        raise UserError(
            f"detections {path}: no JSON text, or one that breaks off ({error}); write the file anew"
        ) from error


def _columns_of_array(rows: NDArray[Any], source: str) -> _Columns:
    if rows.shape == (0,):  # what numpy makes of an empty list
        rows = rows.reshape(0, len(ARRAY_COLUMNS))
    if rows.ndim != 2 or rows.shape[1] != len(ARRAY_COLUMNS) or rows.dtype.kind not in "fiu":
        raise UserError(
            f"{source}: an array of shape {rows.shape} and dtype {rows.dtype}; "
            f"give n×7 float64 numbers, the columns {', '.join(ARRAY_COLUMNS)}"
        )
    rows = rows.astype(np.float64)
    return _Columns(source, rows[:, 0], rows[:, 6], rows[:, 1:5], rows[:, 5])


def _columns_of_list(entries: Any, source: str) -> _Columns:
    if not isinstance(entries, list):
        raise UserError(
            f"{source}: a {type(entries).__name__}; give COCO's results, "
            f"a list of objects with {', '.join(FIELDS)}"
        )
    if not entries:
        return _columns_of_array(np.empty(0), source)
    try:
        columns = [np.array([entry[field] for entry in entries]) for field in FIELDS]
    except (KeyError, TypeError, ValueError):
        columns = []
    shapes = [column.shape[1:] for column in columns if column.dtype.kind in "fiu"]
    if shapes != [(), (), (4,), ()]:
        raise UserError(f"{source}: {_fault(entries)}; write it as COCO's results are")
    image_ids, category_ids, boxes_ltwh_px, scores = columns
    return _Columns(
        source, image_ids, category_ids, boxes_ltwh_px.astype(np.float64), scores.astype(np.float64)
    )


def _fault(entries: list[Any]) -> str:
    """Take the slow second look at a list that was refused: which entry is wrong, and what is."""
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            return f"entry {number} is {entry!r:.80}, not an object with {', '.join(FIELDS)}"
        for field in FIELDS:
            if field not in entry:
                return f"entry {number} has no {field}"
            value = entry[field]
            if field == "bbox" and not _is_box(value):
                return f"entry {number} has the bbox {value!r:.80}, not 4 numbers left, top, width, height"
            if field != "bbox" and not _is_number(value):
                return f"entry {number} has the {field} {value!r:.80}, not a number"
    return "some number is too large for 64 bits"


def _is_box(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _whole(ids: NDArray[Any], field: str, source: str) -> NDArray[np.int64]:
    for entry in np.flatnonzero(~((ids == np.round(ids)) & (np.abs(ids) < 2**63)))[:1]:
        raise UserError(
            f"{source}: entry {entry} has the {field} {ids[entry]}, not a whole number; "
            "write the annotation file's"
        )
    return ids.astype(np.int64)


def _count(rows: NDArray[np.bool_]) -> str:
    number = np.count_nonzero(rows)
    return f"{number} are" if number > 1 else "1 is"
