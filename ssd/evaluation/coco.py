"""Where do COCO's 12 numbers come from? Detections and an annotation file in, the numbers of pycocotools out.

Every decision and every sum is that of pycocotools 2.0.11, so the numbers equal its own to the last bit.

Letters: G annotated boxes, D detections, T IoU thresholds, A area ranges, R recall levels, K categories.
A cell is one category on one image: detections are matched to the annotated boxes of their own cell alone.
"""

import json
from collections.abc import Iterable
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
"""An entry in an array of results, with whole ids: float64 does not tell apart those from 2**53 on."""

# What is averaged, IoU, area and detections an image, as pycocotools prints them.
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

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0, 1, 101)
# All, small, medium and large, in square pixels; both ends belong to the range.
AREA_RANGES = np.array([(0, 1e5**2), (0, 32**2), (32**2, 96**2), (96**2, 1e5**2)])
DETECTIONS_PER_CELL = 100
# Best detections of each cell that count for a recall; precision counts all of them.
RECALL_LIMITS = (1, 10, DETECTIONS_PER_CELL)


def coco_numbers(
    annotation_file: str | Path, detections: Results, image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    """Score detections against the annotation file as it stands.

    detections: COCO's results list ({image_id, category_id, bbox ltwh in pixels, score}), a path to a json
    file of one, or an array of RESULT.
    image_ids: score these images alone; by default every image of the file.

    Returns the numbers of RECIPE 7 by NAMES, −1 where the file has no ground truth to count (as pycocotools).
    Without any detection every number that counts something is 0. An annotation without `area` counts by its
    box's area. Raises UserError for a file or detections that can't be scored, naming the first bad entry.
    """
    return numbers_of(score(annotation_file, detections, image_ids))


def summary_lines(numbers: dict[str, float]) -> list[str]:
    """Return the 12 lines that pycocotools prints for these numbers, to the letter."""
    lines = []
    for name, (kind, iou, area, limit) in _SETTINGS.items():
        setting = f"@[ IoU={iou:<9} | area={area:>6} | maxDets={limit:>3} ]"
        lines.append(f" Average {kind:<10} (A{kind[0]}) {setting} = {numbers[name]:0.3f}")
    return lines


class Found(NamedTuple):
    """Detected boxes, a row each, otherwise as Truth."""

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    boxes_ltwh_px: NDArray[np.float64]  # D×4
    scores: NDArray[np.float64]

    @property
    def cells(self) -> NDArray[np.int64]:
        """The cell of each box, as Truth's."""
        return self.categories * MOST_IMAGES + self.images

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> "Found":
        """Return these rows."""
        return Found._make(column[rows] for column in self)


class Scored(NamedTuple):
    """Detections matched and counted; the numbers are means over its tables.

    truth: in the file's order. found: as given. counted: D, rows of `found`, by cell and falling score, the
    best 100 of each cell; the others count for nothing.
    matched: A×T×D int32, the row of `truth` that each counted detection matches, −1 for none.
    right, wrong: A×T×D; a detection that is neither counts for nothing there.
    to_find: A×G, boxes that count in an area range.
    precision: T×R×K×A, the best at each recall level or beyond. recall: T×K×A×limits. Both are −1 where a
    category has no box to find in that area range.
    """

    annotated: GroundTruthFile
    truth: Truth
    found: Found
    counted: NDArray[np.intp]
    matched: NDArray[np.int32]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    to_find: NDArray[np.bool_]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]


def score(annotation_file: str | Path, detections: Results, image_ids: Iterable[int] | None = None) -> Scored:
    """Match and count detections, given and refused as coco_numbers does."""
    annotated = read_ground_truth(Path(annotation_file))
    truth = annotated.truth
    found = _read_results(detections, annotated)
    if image_ids is not None:
        scored = _scored_images(image_ids, annotated)
        truth = truth.take(np.isin(truth.images, scored))
        found = found.take(np.isin(found.images, scored))
    # By cell and falling score, equal scores as they came; of each cell the best 100 alone.
    cells = found.cells
    counted = np.lexsort((-found.scores, cells))
    ranks = np.arange(len(cells)) - np.searchsorted(cells[counted], cells[counted])
    counted, ranks = counted[ranks < DETECTIONS_PER_CELL], ranks[ranks < DETECTIONS_PER_CELL]
    best = found.take(counted)
    to_find = ~(truth.crowd | _outside_area_ranges(truth.areas))
    matched = _match(truth, best, to_find)
    # A detection counts for nothing where it matches a box that need not be found, or matches none and lies
    # outside the area range itself.
    counts = np.pad(to_find, ((0, 0), (0, 1)))  # the row −1 is no box
    right = np.stack([of_area[rows] for of_area, rows in zip(counts, matched, strict=True)])
    wrong = (matched < 0) & ~_outside_area_ranges(best.boxes_ltwh_px[:, 2:].prod(axis=1))[:, None]
    precision, recall = _tabulate(truth, best, ranks, to_find, right, wrong, len(annotated.category_ids))
    return Scored(annotated, truth, found, counted, matched, right, wrong, to_find, precision, recall)


def numbers_of(scored: Scored) -> dict[str, float]:
    """Average what was counted: coco_numbers of it."""
    precision, *precision_by_size = np.moveaxis(scored.precision, -1, 0)  # T×R×K each
    recall, *recall_by_size = np.moveaxis(scored.recall, 2, 0)  # T×K×limits each
    averaged = (
        precision, precision[IOU_THRESHOLDS == 0.5], precision[IOU_THRESHOLDS == 0.75], *precision_by_size,
        recall[..., 0], recall[..., 1], recall[..., 2], *(by_size[..., 2] for by_size in recall_by_size),
    )  # fmt: skip
    counted = [part[part > -1] for part in averaged]
    return {
        name: float(part.mean()) if len(part) else -1.0 for name, part in zip(NAMES, counted, strict=True)
    }


def _scored_images(image_ids: Iterable[int], annotated: GroundTruthFile) -> NDArray[np.int64]:
    """Return the positions of these images in the annotation file."""
    ids = np.array(list(image_ids), dtype=np.int64)
    positions = find_positions(ids, annotated.image_ids)
    if (positions < 0).any():
        unknown = ids[positions < 0]
        raise UserError(
            f"image_ids: {annotated.path} does not list {unknown[0]} (nor {len(unknown) - 1} others); "
            "give ids of its `images`"
        )
    return positions


# Detections as they come → columns

_FIELDS = ("image_id", "category_id", "bbox", "score")
_SHAPE = f"COCO's results, a list of objects with {', '.join(_FIELDS)}"


def _read_results(results: Results, annotated: GroundTruthFile) -> Found:
    """Check detections and find their images and categories in the annotation file."""
    source = f"detections {results}" if isinstance(results, str | Path) else "detections"
    entries = _load(Path(results)) if isinstance(results, str | Path) else results
    if isinstance(entries, np.ndarray) and entries.dtype == RESULT:
        image_ids, category_ids, boxes_ltwh_px, scores = (entries[field] for field in _FIELDS)
    elif isinstance(entries, list):
        image_ids, category_ids, boxes_ltwh_px, scores = _columns_of_list(entries, source)
    else:
        raise UserError(f"{source}: a {type(entries).__name__}; give {_SHAPE}")
    finite = np.isfinite(boxes_ltwh_px).all(axis=1) & np.isfinite(scores)
    if not finite.all():
        entry = finite.argmin()
        raise UserError(
            f"{source}: entry {entry} has the bbox {boxes_ltwh_px[entry].tolist()} and the score "
            f"{scores[entry]}, which must be finite; look for NaN in the model's weights"
        )
    images = _positions(image_ids, annotated.image_ids)
    categories = _positions(category_ids, annotated.category_ids)
    for field, ids, positions, fix in (
        ("image_id", image_ids, images, "give the file that lists these images"),
        ("category_id", category_ids, categories, "write that file's ids, not the labels 1 to K"),
    ):
        if (positions < 0).any():
            entry = positions.argmin()
            rounded = ids.dtype.kind != "i" and abs(ids[entry]) >= 2**53
            raise UserError(
                f"{source}: entry {entry} has the {field} {ids[entry]}, which {annotated.path} does not "
                f"list (the first of {np.count_nonzero(positions < 0)} such entries); "
                + ("give ids of that size as integers" if rounded else fix)
            )
    return Found(images, categories, boxes_ltwh_px, scores)


def _positions(ids: NDArray[Any], known_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each id stands among the known ones, −1 where it doesn't; a float may be rounded."""
    positions = find_positions(ids, known_ids)
    return positions if ids.dtype.kind == "i" else np.where(np.abs(ids) < 2**53, positions, -1)


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"detections {path} cannot be read ({error.strerror}); name a json file of COCO's results"
        ) from error
    except ValueError as error:
        raise UserError(
            f"detections {path}: not valid JSON, or truncated ({error}); write it again"
        ) from error


def _columns_of_list(entries: list[Any], source: str) -> list[NDArray[Any]]:
    if not entries:
        return [np.empty(0, RESULT)[field] for field in _FIELDS]
    columns = _columns(entries)
    if columns is None:
        number = next((n for n, entry in enumerate(entries) if _columns([entry]) is None), 0)
        raise UserError(f"{source}: entry {number} is {entries[number]!r:.200}; give {_SHAPE}")
    return columns


def _columns(entries: list[Any]) -> list[NDArray[Any]] | None:
    """Return the fields of results, None where one is missing or not as many numbers as it should be."""
    try:
        columns = [np.array([entry[field] for entry in entries]) for field in _FIELDS]
    except (KeyError, TypeError, ValueError):  # a field is missing, an entry is no object, a box is ragged
        return None
    if [column.shape[1:] for column in columns if column.dtype.kind in "fiu"] != [(), (), (4,), ()]:
        return None
    return [*columns[:2], *(column.astype(np.float64) for column in columns[2:])]


# Columns → precision and recall


def _tabulate(  # noqa: PLR0913 - all that precision and recall are made of
    truth: Truth,
    found: Found,
    ranks: NDArray[np.int64],
    to_find: NDArray[np.bool_],
    right: NDArray[np.bool_],
    wrong: NDArray[np.bool_],
    categories: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Count: precision and recall as in Scored. found: by cell. ranks: of each detection in its cell."""
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
    return precision, recall


def _match(truth: Truth, found: Found, to_find: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return the row of the annotated box that each detection matches, −1 for none: A×T×D.

    found: by cell, a cell's detections best first. to_find: A×G.
    """
    matched = np.full((len(AREA_RANGES), len(IOU_THRESHOLDS), len(found.scores)), -1, dtype=np.int32)
    by_cell = np.argsort(truth.cells, kind="stable")
    box_cells, row_cells = truth.cells[by_cell], found.cells
    cells = np.intersect1d(box_cells, row_cells)
    box_ranges = np.searchsorted(box_cells, (cells, cells + 1)).T
    row_ranges = np.searchsorted(row_cells, (cells, cells + 1)).T
    for box_range, row_range in zip(box_ranges, row_ranges, strict=True):
        boxes, rows = by_cell[slice(*box_range)], slice(*row_range)
        crowd = truth.crowd[boxes]
        ious = mask.iou(found.boxes_ltwh_px[rows], truth.boxes_ltwh_px[boxes], crowd)
        near = np.flatnonzero((ious >= IOU_THRESHOLDS[0]).any(axis=1))  # the others match nothing
        if len(near):
            choices = _match_cell(ious[near], crowd, to_find[:, boxes])
            matched[:, :, rows.start + near] = np.append(boxes, -1)[choices]
    return matched


def _match_cell(
    ious: NDArray[np.float64], crowd: NDArray[np.bool_], to_find: NDArray[np.bool_]
) -> NDArray[np.intp]:
    """Match the detections of one cell, best first, each to the best box that no better one has taken.

    ious: D×G. crowd: G, boxes that any number of detections may match. to_find: A×G.
    Returns which box each matches, G for none: A×T×D.
    """
    # One more column is "no match": never below a threshold, never used up, and the last choice.
    no_match = len(crowd)
    ious = np.pad(ious, ((0, 0), (0, 1)), constant_values=-1)
    reusable = np.append(crowd, True)
    counts = np.pad(to_find, ((0, 0), (0, 1)))
    close = ious[:, None] >= IOU_THRESHOLDS[:, None]  # D×T×(G+1)
    close[..., no_match] = True
    # A box that counts is preferred to an ignored one, then the higher IoU, then the later box.
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
    """Tell for each area range which areas lie outside it, A×n."""
    low, high = AREA_RANGES.T[:, :, None]
    outside: NDArray[np.bool_] = (areas < low) | (areas > high)
    return outside


def precision_of(hits: NDArray[np.bool_], misses: NDArray[np.bool_], to_find: int) -> NDArray[np.float64]:
    """Return the best precision at each recall level or beyond, 0 where it is not reached, T×R.

    hits, misses: T×D, of falling score.
    """
    true, false = np.cumsum(hits, axis=1, dtype=np.float64), np.cumsum(misses, axis=1, dtype=np.float64)
    recall = true / to_find
    # np.spacing(1) moves the last bit of some quotients: without it AP50 is not pycocotools'.
    precision = true / (false + true + np.spacing(1))
    beyond = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    beyond = np.pad(beyond, ((0, 0), (0, 1)))
    reached = [np.searchsorted(of_threshold, RECALL_LEVELS) for of_threshold in recall]
    return np.take_along_axis(beyond, np.array(reached), axis=1)
