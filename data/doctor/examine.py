"""Every look at a data set: annotation files, ground truth as detections, pictures, split against split."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.doctor.findings import Finding, Kind, Severity
from data.doctor.report import NOTHING, DatasetReport, SplitReport, TruthScore, describe
from data.index import CocoIndex, Selection, Source, select
from data.pictures import UPRIGHT, inspect_all, orientation
from ssd.annotations import Annotations, examine_annotations, inside_px
from ssd.batches import EvaluationBatch
from ssd.categories import Categories
from ssd.config import CheckDatasetConfig, DataSource, Split, default_threads
from ssd.console import RunConsole
from ssd.detect import Detections
from ssd.errors import UserError
from ssd.evaluation.coco import DETECTIONS_PER_CELL, IOU_THRESHOLDS, coco_numbers
from ssd.evaluation.evaluator import result_rows

SCORED_IMAGES = 5000
"""Of a larger set as many are scored, at equal distances; COCO's validation split is scored whole."""

THUMBNAIL, ALIKE = 16, 0.99
"""Pixels a side, and the correlation from which on two thumbnails are taken for one picture.

Of BCCD's pictures, 498 of COCO's and the embedded set's, none of val reached 0.91 with one of train. Copies
of JPEG quality 60, of another size or as PNG all reached 0.99, of those cropped by 2 % a side a fifth.
"""

MOVING_FORMATS = ("PNG", "WEBP")  # of those that DALI reads; a TIFF's pages and a phone's MPO do not move


@dataclass(frozen=True)
class _Split:
    """A split whose annotation file was examined; annotations: None where it has no image.

    paths: N, of its images; "" where the file names none.
    """

    report: SplitReport
    annotations: Annotations | None
    paths: list[str]
    findings: list[Finding]


def examine(config: CheckDatasetConfig, console: RunConsole) -> DatasetReport:
    """Look at everything once. What is wrong with the data goes into the report, nothing of it is raised.

    Raises UserError for paths that are not given.
    """
    data = config.data
    workers = data.threads or default_threads()
    splits = [_examine_annotation_file(split, data, console) for split in config.splits]
    listed = {os.path.normpath(path) for split in splits for path in split.paths}
    listed |= {os.path.abspath(split.report.annotation_file) for split in splits}
    findings = [
        (split.report.split.value, finding)
        for split in splits
        for finding in chain(split.findings, _examine_pictures(split, listed, workers, console))
    ]
    doubles = [*_find_doubles(splits)]
    findings += [*doubles, *_find_copies(splits, {finding.where for _, finding in doubles}, workers, console)]
    categories = {each.report.split: each.annotations.categories for each in splits if each.annotations}
    if len(categories) == len(Split):
        between = compare_categories(categories[Split.train], categories[Split.val])
        findings += [("both", finding) for finding in between]
    order = {kind: number for number, kind in enumerate(Kind)}
    findings.sort(key=lambda each: order[each[1].kind])
    return DatasetReport([split.report for split in splits], findings)


def _examine_annotation_file(split: Split, data: DataSource, console: RunConsole) -> _Split:
    file = data.locate(f"{split.value}_annotations")
    # Absolute, so that a picture has one path even if the two splits name its folder differently.
    folder = Path(os.path.abspath(data.locate(f"{split.value}_images")))
    source = Source(file, folder, split.value)
    console.say(f"{split.value}: reading the annotation file")
    annotations, defects = examine_annotations(file)
    findings = [Finding(Kind[defect.kind], defect.where, defect.detail) for defect in defects]
    if not annotations:
        findings.append(Finding(Kind.truth_unscored, str(file), "training does not open the file"))
        return _Split(SplitReport(split, file, folder, NOTHING, None), None, [], findings)
    used, of_boxes = _judge_boxes(annotations, data.min_box_px)
    statistics = describe(annotations, used)
    findings += of_boxes
    findings += [
        Finding(Kind.category_without_boxes, f"category {name!r}", "no box is used")
        for name, count in statistics.boxes_of_class.items()
        if count == 0
    ]
    truth = None
    if all(finding.kind.severity is not Severity.error for finding in findings):
        console.say(f"{split.value}: scoring the ground truth")
        try:
            if split is Split.train:  # which refuses a file that leaves it no image with a box
                select(annotations, source, Selection(min_box_px=data.min_box_px))
            every = Selection(split.value, crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)
            truth, of_truth = _examine_truth(select(annotations, source, every), annotations)
            findings += of_truth
        except UserError as error:
            findings.append(Finding(Kind.refused, str(file), str(error)))
    if truth is None:
        findings.append(Finding(Kind.truth_unscored, str(file), "training does not open the file"))
    paths = [os.path.join(folder, name.decode()) if name else "" for name in annotations.file_names]
    return _Split(SplitReport(split, file, folder, statistics, truth), annotations, paths, findings)


def _judge_boxes(annotations: Annotations, min_box_px: float) -> tuple[NDArray[np.bool_], list[Finding]]:
    """Return which boxes training uses, B, and what is wrong with the geometry of any."""
    size = annotations.boxes_ltwh_px[:, 2:]
    inside = inside_px(annotations.boxes_ltwh_px, annotations.sizes_px[annotations.images])
    faults = {
        Kind.box_inverted: size.min(axis=1) < 0,
        Kind.box_empty: size.min(axis=1) == 0,
        Kind.box_outside: inside.min(axis=1) <= 0,
        Kind.box_small: inside.min(axis=1) < min_box_px,
        Kind.box_clipped: (inside < size).any(axis=1),
    }
    kinds = [*faults]
    first_fault = np.select([*faults.values()], range(len(kinds)), len(kinds))
    findings = [
        Finding(kinds[first_fault[box]], annotations.where(box), _describe_box(annotations, box))
        for box in np.flatnonzero(first_fault < len(kinds)).tolist()
    ]
    rows = np.column_stack([annotations.images, annotations.labels, annotations.boxes_ltwh_px])
    _, first, same = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    for box in np.flatnonzero(first[same] != np.arange(len(rows))).tolist():
        detail = f"{annotations.where(int(first[same][box]))} is the same: {_describe_box(annotations, box)}"
        findings.append(Finding(Kind.box_twice, annotations.where(box), detail))
    return first_fault >= kinds.index(Kind.box_clipped), findings


def _examine_truth(index: CocoIndex, annotations: Annotations) -> tuple[TruthScore, list[Finding]]:
    """Score the ground truth as detections; say why it is below 1.000. index: as for score_truth."""
    where = str(index.source.annotation_file)
    lost = [*_lost_truth(annotations)]
    truth = score_truth(index, annotations.images[[box for box, _ in lost]])
    if truth.ap < 0:
        return truth, [Finding(Kind.truth_unscored, where, "it has no box that counts")]
    if round(truth.ap, 3) == 1:
        return truth, []
    detail = f"the ground truth as detections has an AP of {truth.ap:.3f}, not 1.000"
    return truth, [finding for _, finding in lost] or [Finding(Kind.truth_unlike, where, detail)]


def score_truth(index: CocoIndex, besides: NDArray[np.int64]) -> TruthScore:
    """Score ground truth as if a network had found it: the evaluator must give it an AP of 1.000.

    It takes the way of detections: the index's relative boxes and labels → pixels and category ids → scores.
    If ids are shifted, sizes exchanged or boxes lost on that way, the number says so before a network is
    blamed. index: every image of the annotation file, without crowd boxes, which an evaluation passes over.
    besides: images that are scored in any case, of a set too large to be scored whole. Raises UserError.
    """
    scored = np.linspace(0, len(index) - 1, min(len(index), SCORED_IMAGES)).astype(np.int64)
    scored = np.union1d(scored, besides)
    found = [
        Detections(torch.tensor(boxes_ltrb), torch.ones(len(labels)), torch.tensor(labels).long())
        for boxes_ltrb, labels in map(index.boxes_of, scored.tolist())
    ]
    batch = EvaluationBatch(
        images=torch.empty(len(scored), 0),
        image_ids=index.image_ids[scored].tolist(),
        sizes_px=torch.tensor(index.sizes_px[scored], dtype=torch.float32),
    )
    rows = result_rows(batch, found, index.categories)
    return TruthScore(coco_numbers(index.source.annotation_file, rows, batch.image_ids)["AP"], len(scored))


def _lost_truth(annotations: Annotations) -> Iterator[tuple[int, Finding]]:
    """Yield each box that can't be found again: clipping changes it too much, or the image has too many."""
    images, counted = annotations.images, ~annotations.crowd
    size = annotations.boxes_ltwh_px[:, 2:]
    inside = np.maximum(inside_px(annotations.boxes_ltwh_px, annotations.sizes_px[images]), 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        kept = np.where((size > 0).all(axis=1), inside.prod(axis=1) / size.prod(axis=1), 0)
    too_little = kept < IOU_THRESHOLDS[-1]  # the strictest that AP averages over (RECIPE 7)
    for box in np.flatnonzero(too_little & counted).tolist():
        detail = f"only {kept[box]:.0%} of it lies inside the image: {_describe_box(annotations, box)}"
        yield box, Finding(Kind.truth_lost, annotations.where(box), detail)
    cells = images[counted] * (len(annotations.categories.ids) + 1) + annotations.labels[counted]
    _, first, counts = np.unique(cells, return_index=True, return_counts=True)
    crowded = counts > DETECTIONS_PER_CELL
    for box, count in zip(np.flatnonzero(counted)[first[crowded]].tolist(), counts[crowded], strict=True):
        category = annotations.categories.id_of(annotations.labels[box])
        detail = f"it has {count} boxes of category {category}; at most {DETECTIONS_PER_CELL} are scored"
        yield box, Finding(Kind.truth_lost, f"image {annotations.image_ids[images[box]]}", detail)


def _examine_pictures(
    split: _Split, listed: set[str], threads: int, console: RunConsole
) -> Iterator[Finding]:
    """Yield what is wrong with the image files. listed: normalised paths of files that belong there."""
    folder = split.report.image_folder
    if not folder.is_dir():
        yield Finding(Kind.folder_missing, str(folder), "there is no such folder")
        return
    if split.annotations is None:
        return
    sizes_px = split.annotations.sizes_px
    yield from _links_out_of(folder, split.paths)
    # What has no size in the annotation file is an error already, and there is nothing to compare it with.
    images = [image for image, path in enumerate(split.paths) if path and sizes_px[image].all()]
    paths = [split.paths[image] for image in images]
    with console.counting(len(paths), f"{split.report.split.value}: decoding {len(paths)} pictures") as count:
        defects = inspect_all(paths, sizes_px[images], True, threads, count)
    for number, (image, path) in enumerate(zip(images, paths, strict=True)):
        if defect := defects.get(number):
            yield Finding(Kind[defect.kind], path, f"images[{image}]: {defect.detail}")
        else:
            yield from _look_beside_pixels(path, f"images[{image}]")
    found = [
        os.path.normpath(os.path.join(above, name)) for above, _, names in os.walk(folder) for name in names
    ]
    for path in sorted(set(found) - listed):
        yield Finding(Kind.file_not_listed, _printable(path), "no entry of `images` names it")


def _find_doubles(splits: list[_Split]) -> Iterator[tuple[str, Finding]]:
    """Yield each picture whose file holds the very bytes of one before it, in its split or the other."""
    alike: dict[int, list[tuple[str, str]]] = {}  # by size, so that few files are read
    for split in splits:
        for path in filter(os.path.isfile, dict.fromkeys(split.paths)):
            alike.setdefault(os.path.getsize(path), []).append((split.report.split.value, path))
    for pictures in alike.values():
        first: dict[bytes, tuple[str, str]] = {}
        for split_name, path in pictures if len(pictures) > 1 else ():
            with suppress(OSError):  # told by those who decode it
                content = hashlib.blake2b(Path(path).read_bytes()).digest()
                other_split, other = first.setdefault(content, (split_name, path))
                if other_split != split_name:
                    yield "both", Finding(Kind.picture_in_both, path, f"it is {other} of {other_split}")
                elif other != path:
                    yield split_name, Finding(Kind.picture_twice, path, f"it is {other}, byte by byte")


def _find_copies(
    splits: list[_Split], told: set[str], threads: int, console: RunConsole
) -> Iterator[tuple[str, Finding]]:
    """Yield each validation picture that looks like one of train: encoded anew, or of another size.

    told: paths of pictures that are passed over.
    """
    paths = {split.report.split: [*filter(os.path.isfile, dict.fromkeys(split.paths))] for split in splits}
    if len(paths) < len(Split) or not all(paths.values()):
        return
    console.say("comparing the pictures of train and val")
    with ThreadPoolExecutor(threads) as pool:
        train, val = (np.stack([*pool.map(_thumbnail, paths[split])]) for split in Split)
    for start in range(0, len(val), 256):  # so that little memory is taken
        likeness = val[start : start + 256] @ train.T
        for path, row in zip(paths[Split.val][start:], likeness, strict=False):
            if row.max() >= ALIKE and path not in told:
                detail = f"it looks like {paths[Split.train][row.argmax()]} of train"
                yield "both", Finding(Kind.picture_alike, path, detail)


def _thumbnail(path: str) -> NDArray[np.float32]:
    """Return a thumbnail's grey levels with mean 0 and length 1; all 0 of an even or unreadable picture."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            picture.draft("L", (8 * THUMBNAIL, 8 * THUMBNAIL))  # of a JPEG that is enough to decode
            grey = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    except Exception:  # Pillow's readers raise almost anything; told by those who decode it
        return np.zeros(THUMBNAIL**2, np.float32)
    levels = np.asarray(grey, dtype=np.float32).ravel()
    levels -= levels.mean()
    length = np.linalg.norm(levels)
    return levels / length if length > THUMBNAIL else 0 * levels


def _links_out_of(folder: Path, paths: list[str]) -> Iterator[Finding]:
    """Yield every file that lies elsewhere, because it or a folder above it is a link."""
    real_folder = cache(os.path.realpath)  # slow, and nearly all files lie in one folder
    inside = os.path.join(real_folder(folder), "")
    for image, path in enumerate(paths):
        above, name = os.path.split(path)
        real = os.path.join(real_folder(above), name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if path and not real.startswith(inside):
            detail = f"images[{image}]: it lies at {_printable(real)}"
            yield Finding(Kind.link_leaves_folder, path, detail)


def _look_beside_pixels(path: str, entry: str) -> Iterator[Finding]:
    """Yield what a picture that training reads holds besides the pixels that training sees."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            moves = picture.format in MOVING_FORMATS and getattr(picture, "is_animated", False)
            frames = getattr(picture, "n_frames", 1)
            held = orientation(picture)
    except Exception as error:  # Pillow's readers raise almost anything; DALI has decoded the picture
        yield Finding(Kind.exif_unreadable, path, f"{entry}: {error}")
        return
    if moves:
        yield Finding(Kind.animated, path, f"{entry}: it has {frames} frames")
    if held != UPRIGHT:
        yield Finding(Kind.exif_rotation, path, f"{entry}: orientation {held} of 1 to 8, where 1 is upright")


def compare_categories(train: Categories, val: Categories) -> Iterator[Finding]:
    """Yield each category that one split lacks, or that has another id or name there.

    Training learns the categories of one split, those of the other score it.
    """
    # Backwards, so that of a name that stands there twice the first counts.
    train_ids, val_ids = (dict(zip(each.names[::-1], each.ids[::-1], strict=True)) for each in (train, val))
    train_names, val_names = (dict(zip(each.ids, each.names, strict=True)) for each in (train, val))
    for name in dict.fromkeys((*train.names, *val.names)):
        where = f"category {name!r}"
        if name not in val_ids:
            id_ = train_ids[name]
            if val_names.get(id_, name) not in train_ids:
                detail = f"id {id_} is {name!r} in train, {val_names[id_]!r} in val"
                yield Finding(Kind.category_renamed, where, detail)
            else:
                yield Finding(Kind.category_missing, where, f"id {id_} in train, missing from val")
        elif name not in train_ids:
            id_ = val_ids[name]
            if train_names.get(id_, name) in val_ids:  # else told of train's name
                yield Finding(Kind.category_missing, where, f"id {id_} in val, missing from train")
        elif train_ids[name] != val_ids[name]:
            detail = f"id {train_ids[name]} in train, {val_ids[name]} in val"
            yield Finding(Kind.category_renumbered, where, detail)


def _describe_box(annotations: Annotations, box: int) -> str:
    image = np.searchsorted(annotations.box_starts, box, side="right") - 1
    bbox = ", ".join(f"{value:.10g}" for value in annotations.boxes_ltwh_px[box])
    width, height = annotations.sizes_px[image]
    return f"bbox [{bbox}] in image {annotations.image_ids[image]} of {width}×{height} pixels"


def _printable(path: str) -> str:
    """Return a path of the disk as text that can be written: its bytes need not be UTF-8."""
    return path.encode(errors="backslashreplace").decode()
