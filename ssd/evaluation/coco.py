"""How are COCO's 12 numbers computed? From detections and an annotation file, as pycocotools computes them.

Every decision and every sum follows pycocotools 2.0.11, so the numbers equal its own to the last bit.

Letters: G annotated boxes, D detections, T IoU thresholds, A area ranges, R recall levels, K categories.
A cell is one category in one image: detections are matched only to annotated boxes of the same cell.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask

from ssd.annotations import MOST_IMAGES, GroundTruthFile, Truth, find_positions, read_ground_truth
from ssd.errors import UserError

Results = list[dict[str, Any]] | NDArray[np.void] | str | Path

RESULT = np.dtype(
    [("image_id", np.int64), ("category_id", np.int64), ("bbox", np.float64, 4), ("score", np.float64)]
)
"""One detection in an array. The ids are integers because float64 can't tell ids of 2**53 and more apart."""

# The metric, IoU, area and maximum detections, as pycocotools prints them.
_SETTINGS = {
    "AP": ("Precision", "0.50:0.95", "all", 100),
    "AP50": ("Precision", "0.50", "all", 100),
    "AP75": ("Precision", "0.75", "all", 100),
    "AP_small": ("Precision", "0.50:0.95", "small", 100),
    "AP_medium": ("Precision", "0.50:0.95", "medium", 100),
    "AP_large": ("Precision", "0.50:0.95", "large", 100),
    "AR_1": ("Recall", "0.50:0.95", "all", 1),
    "AR_10": ("Recall", "0.50:0.95", "all", 10),
    "AR_100": ("Recall", "0.50:0.95", "all", 100),
    "AR_small": ("Recall", "0.50:0.95", "small", 100),
    "AR_medium": ("Recall", "0.50:0.95", "medium", 100),
    "AR_large": ("Recall", "0.50:0.95", "large", 100),
}
NAMES = tuple(_SETTINGS)

SIZES = ("small", "medium", "large")

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0, 1, 101)
AREAS = ("all", *SIZES)
# In square pixels, both ends included.
AREA_RANGES = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)])
DETECTIONS_PER_CELL = 100
# How many of a cell's best detections count toward recall; precision counts all of them.
RECALL_LIMITS = (1, 10, DETECTIONS_PER_CELL)


def coco_numbers(
    annotation_file: str | Path, detections: Results, image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    """Score detections against an annotation file.

    detections: a COCO results list ({image_id, category_id, bbox ltwh in pixels, score}), the path of a json
    file that holds one, or an array of RESULT.
    image_ids: score only these images; by default all images of the file.

    Returns the numbers of RECIPE 7, keyed by NAMES. As in pycocotools, a number is −1 if there is no ground
    truth for it; if there are no detections, all other numbers are 0. If an annotation has no `area`, the
    area of its box is used. Raises UserError, naming the first bad entry, for input that can't be scored.
    """
    return numbers_of(score(annotation_file, detections, image_ids))


def summary_lines(numbers: dict[str, float]) -> list[str]:
    """Return the exact 12 lines that pycocotools prints for these numbers."""
    lines = []
    for name, (kind, iou, area, limit) in _SETTINGS.items():
        setting = f"@[ IoU={iou:<9} | area={area:>6} | maxDets={limit:>3} ]"
        lines.append(f" Average {kind:<10} (A{kind[0]}) {setting} = {numbers[name]:0.3f}")
    return lines


class Found(NamedTuple):
    """Detected boxes, one per row; images and categories as in Truth."""

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]  # D×4
    scores: NDArray[np.float64]

    @property
    def cells(self) -> NDArray[np.int64]:
        """The cell of each box, numbered as in Truth."""
        return self.categories * MOST_IMAGES + self.images

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Found":
        """Return these rows."""
        return Found._make(column[rows] for column in self)


class Scored(NamedTuple):
    """Matched detections and the tables that COCO's numbers are means of.

    truth: in file order. found: sorted by cell, then by descending score (ties in input order); only the best
    100 of each cell.
    matched: A×T×D int32, the row of `truth` that each detection matches, −1 for none.
    right, wrong: A×T×D; a detection that is neither is ignored.
    to_find: A×G, the boxes that count in each area range.
    precision: T×R×K×A, the best at each recall level or beyond. recall: T×K×A×limits. Both are −1 if the
    category has no box to find in that area range.
    """

    annotated: GroundTruthFile
    truth: Truth
    found: Found
    matched: NDArray[np.int32]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    to_find: NDArray[np.bool_]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def score(annotation_file: str | Path, detections: Results, image_ids: Iterable[int] | None = None) -> Scored:
    """Match and count detections; takes and rejects the same input as coco_numbers."""
    annotated = read_ground_truth(Path(annotation_file))
    truth = annotated.truth
    found = _read_results(detections, annotated)
    if image_ids is not None:
        ids = np.array([*image_ids], dtype=np.int64)
        images = find_positions(ids, annotated.image_ids)
        if (images < 0).any():
            unknown = ids[images.argmin()]
            raise UserError(f"image_ids: {annotated.path} does not list {unknown}; give ids of its `images`")
        truth = truth.take(np.isin(truth.images, images))
        found = found.take(np.isin(found.images, images))
    found = found.take(np.lexsort((-found.scores, found.cells)))
    ranks = np.arange(len(found.cells)) - np.searchsorted(found.cells, found.cells)  # within the cell
    found, ranks = found.take(ranks < DETECTIONS_PER_CELL), ranks[ranks < DETECTIONS_PER_CELL]
    to_find = ~(truth.crowd | _outside_area_ranges(truth.areas))
    matched = _match(truth, found, to_find)
    # A detection is ignored if it matches a box that need not be found, or if it matches none and its own
    # area is outside the range.
    counts = np.pad(to_find, ((0, 0), (0, 1)))  # row −1 stands for "no box"
    right = np.stack([of_area[rows] for of_area, rows in zip(counts, matched, strict=True)])
    wrong = (matched < 0) & ~_outside_area_ranges(found.boxes_ltwh_px[:, 2:].prod(axis=1))[:, None]

    categories = len(annotated.category_ids)
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_LEVELS), categories, len(AREA_RANGES)), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), categories, len(AREA_RANGES), len(RECALL_LIMITS)), -1.0)
    starts = np.searchsorted(found.categories, np.arange(categories + 1))
    for area in range(len(AREA_RANGES)):
        boxes = np.bincount(truth.categories[to_find[area]], minlength=categories)
        for category in np.flatnonzero(boxes):
            rows = slice(starts[category], starts[category + 1])
            hits, misses = right[area, :, rows], wrong[area, :, rows]
            for column, limit in enumerate(RECALL_LIMITS):
                recall[:, category, area, column] = hits[:, ranks[rows] < limit].sum(axis=1) / boxes[category]
            order = np.argsort(-found.scores[rows], kind="stable")
            precision[:, :, category, area] = precision_of(hits[:, order], misses[:, order], boxes[category])
    return Scored(annotated, truth, found, matched, right, wrong, to_find, precision, recall)


def numbers_of(scored: Scored) -> dict[str, float]:
    """Average the tables into the numbers that coco_numbers returns."""
    numbers = {}
    for name, (kind, iou, area, limit) in _SETTINGS.items():
        if kind == "Precision":
            table = scored.precision[..., AREAS.index(area)]
            part = table if ":" in iou else table[np.isin(IOU_THRESHOLDS, float(iou))]
        else:
            part = scored.recall[:, :, AREAS.index(area), RECALL_LIMITS.index(limit)]
        counted = part[part > -1]
        numbers[name] = float(counted.mean()) if len(counted) else -1.0
    return numbers


# Input detections → columns

_FIELDS = RESULT.names or ()
_SHAPE = f"COCO's results, a list of objects with {', '.join(_FIELDS)}, the ids whole numbers"


def _read_results(results: Results, annotated: GroundTruthFile) -> Found:
    """Check detections and look up their images and categories in the annotation file."""
    source, entries = "detections", results
    if isinstance(results, str | Path):
        source = f"detections {results}"
        try:
            entries = json.loads(Path(results).read_bytes())
        except OSError as error:
            fix = "name a json file of COCO's results"
            raise UserError(f"{source} cannot be read ({error.strerror}); {fix}") from error
        except ValueError as error:
            raise UserError(f"{source}: not valid JSON, or truncated ({error}); write it again") from error
    if isinstance(entries, list):
        entries = _as_array(entries, source)
    elif not isinstance(entries, np.ndarray) or entries.dtype != RESULT:
        raise UserError(f"{source}: a {type(entries).__name__}; give {_SHAPE}")
    boxes_ltwh_px, scores = entries["bbox"], entries["score"]
    finite = np.isfinite(boxes_ltwh_px).all(axis=1) & np.isfinite(scores)
    if not finite.all():
        entry = finite.argmin()
        raise UserError(
            f"{source}: entry {entry} has the bbox {boxes_ltwh_px[entry].tolist()} and the score "
            f"{scores[entry]}, which must be finite; look for NaN in the model's weights"
        )
    images = find_positions(entries["image_id"], annotated.image_ids)
    categories = find_positions(entries["category_id"], annotated.category_ids)
    for field, positions, fix in (
        ("image_id", images, "give the file that lists these images"),
        ("category_id", categories, "write that file's ids, not the labels 1 to K"),
    ):
        if (positions < 0).any():
            entry = positions.argmin()
            raise UserError(
                f"{source}: entry {entry} has the {field} {entries[field][entry]}, which {annotated.path} "
                f"does not list (the first of {np.count_nonzero(positions < 0)} such entries); {fix}"
            )
    return Found(images, categories, boxes_ltwh_px, scores)


def _as_array(entries: list[Any], source: str) -> NDArray[np.void]:
    """Turn a COCO results list into an array of RESULT. Raises UserError naming the first invalid entry."""
    if not entries:
        return np.empty(0, RESULT)
    columns = _columns(entries)
    if columns is None:
        number = next((n for n, entry in enumerate(entries) if _columns([entry]) is None), 0)
        raise UserError(f"{source}: entry {number} is {entries[number]!r:.200}; give {_SHAPE}")
    return np.rec.fromarrays(columns, RESULT)


def _columns(entries: list[Any]) -> list[NDArray[Any]] | None:
    """Return one array per field, None if a field is missing or has the wrong type or number of values."""
    try:
        columns = [np.array([entry[field] for entry in entries]) for field in _FIELDS]
    except (KeyError, TypeError, ValueError):  # missing field, entry that isn't an object, ragged box
        return None
    for field, column in zip(_FIELDS, columns, strict=True):
        wanted = RESULT[field]
        if column.dtype.kind not in "fiu" or column.shape[1:] != wanted.shape:
            return None
        # An id may be 42.0, but from 2**53 on a float can't tell neighboring ids apart.
        is_id = wanted.kind == "i"
        if is_id and column.dtype.kind == "f" and ((column != column.round()) | (abs(column) >= 2**53)).any():
            return None
    return columns


# Matching


def in_both(
    first: NDArray[np.int64], other: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield, for each value that both contain (ascending), its positions in the first and in the other."""
    common = np.intersect1d(first, other)
    places = []
    for values in (first, other):
        order = np.argsort(values, kind="stable")
        ranges = np.searchsorted(values, (common, common + 1), sorter=order).T
        places.append([order[start:end] for start, end in ranges.tolist()])
    yield from zip(*places, strict=True)


def _match(truth: Truth, found: Found, to_find: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the row of the annotated box that each detection matches, −1 for none: A×T×D.

    found: sorted by cell, best detections first. to_find: A×G.
    """
    matched = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), len(found.scores)), -1, dtype=np.int32)
    for rows, boxes in in_both(found.cells, truth.cells):
        crowd = truth.crowd[boxes]
        ious = mask.iou(found.boxes_ltwh_px[rows], truth.boxes_ltwh_px[boxes], crowd)
        near = (ious >= IOU_THRESHOLDS[0]).any(axis=1)  # the rest match nothing
        if near.any():
            choices = _match_cell(ious[near], crowd, to_find[:, boxes])
            matched[:, :, rows[near]] = np.append(boxes, -1)[choices]
    return matched


def _match_cell(
    ious: NDArray[np.float64], crowd: NDArray[np.bool_], to_find: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Match the detections of one cell, best first, each to the best box not yet taken.

    ious: D×G. crowd: G, boxes that any number of detections may match. to_find: A×G.
    Returns the index of the box that each detection matches, G for none: A×T×D.
    """
    # An extra column stands for "no match": it passes every threshold, is never used up and is chosen last.
    no_match = len(crowd)
    ious = np.pad(ious, ((0, 0), (0, 1)), constant_values=-1)
    reusable = np.append(crowd, True)
    counts = np.pad(to_find, ((0, 0), (0, 1)))
    close = ious[:, None] >= IOU_THRESHOLDS[:, None]  # D×T×(G+1)
    close[..., no_match] = True
    # Prefer boxes that count over ignored ones, then higher IoU, then the later box.
    by_iou = ious.argsort(axis=1, kind="stable").argsort(axis=1)
    preference = by_iou[:, None] + len(reusable) * counts  # D×A×(G+1)
    choices = np.empty((len(counts), len(IOU_THRESHOLDS), len(ious)), dtype=np.intp)  # A×T×D
    free = np.ones((*choices.shape[:2], len(reusable)), dtype=np.bool_)  # A×T×(G+1)
    areas, thresholds = np.ogrid[: free.shape[0], : free.shape[1]]
    for row in range(len(ious)):
        choice = np.where(close[row] & free, preference[row][:, None], -1).argmax(axis=2)
        free[areas, thresholds, choice] = reusable[choice]
        choices[..., row] = choice
    return choices


def _outside_area_ranges(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which of n areas lie outside each area range: A×n."""
    low, high = AREA_RANGES.T[:, :, None]
    outside: NDArray[np.bool_] = (areas < low) | (areas > high)
    return outside


def precision_of(hits: NDArray[np.bool_], misses: NDArray[np.bool_], to_find: int) -> NDArray[np.float64]:
    """Return the best precision at each recall level or beyond, 0 if the level is not reached: T×R.

    hits, misses: T×D, by descending score.
    """
    true, false = np.cumsum(hits, axis=1, dtype=np.float64), np.cumsum(misses, axis=1, dtype=np.float64)
    recall = true / to_find
    # np.spacing(1) changes the last bit of some quotients; without it AP50 differs from pycocotools.
    precision = true / (false + true + np.spacing(1))
    beyond = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    beyond = np.pad(beyond, ((0, 0), (0, 1)))
    reached = [np.searchsorted(of_threshold, RECALL_LEVELS) for of_threshold in recall]
    return np.take_along_axis(beyond, np.array(reached), axis=1)
