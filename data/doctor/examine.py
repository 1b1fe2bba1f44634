"""Every check of a data set: annotation files, ground truth as detections, pictures, split differences."""

import hashlib
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from data.doctor.findings import Finding, Kind, Severity
from data.doctor.report import DatasetReport, SplitReport, describe
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
"""Larger sets are sampled evenly down to this many; COCO's validation split is scored whole."""

THUMBNAIL, ALIKE = 16, 0.99
"""Side in pixels, and the correlation from which two thumbnails count as the same picture.

In BCCD, 498 pictures of COCO and the embedded set, no val picture reached 0.91 with a train picture. Copies
at JPEG quality 60, at another size or as PNG all reached 0.99; of copies cropped by 2 % a side, a fifth did.
"""

MOVING_FORMATS = ("PNG", "WEBP")  # among DALI's formats; TIFF pages and phones' MPO files aren't animations


@dataclass(frozen=True)
class _Split:
    """A split whose annotation file was examined. annotations: None if it has no usable image list.

    paths: N, one per image; "" if its file name can't be used.
    """

    name: str
    report: SplitReport
    annotations: Annotations | None
    paths: list[str]
    findings: list[Finding]


def examine(config: CheckDatasetConfig, console: RunConsole) -> DatasetReport:
    """Check everything once. Problems of the data go into the report; none is raised.

    Raises UserError if a path is not given.
    """
    data = config.data
    threads = data.threads or default_threads()
    splits = [_examine_annotation_file(split, data, console) for split in config.splits]
    findings: list[tuple[str, Finding]] = []
    for split in splits:
        of_pictures = _examine_pictures(split, threads, console)
        findings += [(split.name, finding) for finding in (*split.findings, *of_pictures)]
    findings += _compare_pictures(splits, threads, console)
    categories = {split.name: split.annotations.categories for split in splits if split.annotations}
    if len(categories) == len(Split):
        between = compare_categories(categories["train"], categories["val"])
        findings += [("both", finding) for finding in between]
    order = [*Kind]
    findings.sort(key=lambda each: order.index(each[1].kind))
    return DatasetReport({split.name: split.report for split in splits}, findings)


def _examine_annotation_file(split: Split, data: DataSource, console: RunConsole) -> _Split:
    name = split.value
    file = data.locate(f"{name}_annotations")
    # Absolute, so that a picture has one path even if the splits name its folder differently.
    folder = Path(os.path.abspath(data.locate(f"{name}_images")))
    console.say(f"{name}: reading the annotation file")
    annotations, defects = examine_annotations(file)
    findings = [Finding(Kind[defect.kind], defect.where, defect.detail) for defect in defects]
    report, paths = SplitReport(str(file), str(folder)), []
    if annotations:
        used, of_boxes = _judge_boxes(annotations, data.min_box_px)
        findings += of_boxes
        report = describe(annotations, used, str(file), str(folder))
        findings += [
            Finding(Kind.category_without_boxes, f"category {category!r}", "training uses none of its boxes")
            for category, count in report.boxes_of_class.items()
            if count == 0
        ]
        paths = [os.path.join(folder, each.decode()) if each else "" for each in annotations.file_names]
        if all(finding.kind.severity is not Severity.error for finding in findings):
            console.say(f"{name}: scoring the ground truth")
            source = Source(file, folder, split.value)
            try:
                if split is Split.train:  # select refuses a file without a usable box
                    select(annotations, source, Selection(min_box_px=data.min_box_px))
                every = Selection(split.value, crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)
                ap, scored = score_truth(select(annotations, source, every))
                report.ground_truth_ap, report.ground_truth_images_scored = ap, scored
                findings += _explain_truth(ap, annotations, str(file))
            except UserError as error:
                findings.append(Finding(Kind.refused, str(file), str(error)))
    if report.ground_truth_ap is None:
        findings.append(Finding(Kind.truth_unscored, str(file), "training refuses the file"))
    return _Split(name, report, annotations or None, paths, findings)


def _judge_boxes(annotations: Annotations, min_box_px: float) -> tuple[NDArray[np.bool_], list[Finding]]:
    """Return which boxes training uses, B, and findings about box geometry and duplicates."""
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
        detail = f"same as {annotations.where(int(first[same][box]))}: {_describe_box(annotations, box)}"
        findings.append(Finding(Kind.box_twice, annotations.where(box), detail))
    return first_fault >= kinds.index(Kind.box_clipped), findings


def _explain_truth(ap: float, annotations: Annotations, file: str) -> list[Finding]:
    """Say why the AP of the ground truth as detections is below 1.000."""
    if ap < 0:
        return [Finding(Kind.truth_unscored, file, "none of its boxes count in evaluation")]
    findings = [*_lost_truth(annotations)]
    if round(ap, 3) < 1 and not findings:
        detail = f"scored as detections, the ground truth has an AP of {ap:.3f}, not 1.000"
        findings = [Finding(Kind.truth_unlike, file, detail)]
    return findings


def score_truth(index: CocoIndex) -> tuple[float, int]:
    """Score the ground truth as if a network had detected it: the evaluator must give it an AP of 1.000.

    It takes the path of detections: the index's relative boxes and labels → pixels and category ids → scores.
    If ids are shifted, sizes swapped or boxes lost on the way, the AP shows it before the network is blamed.
    index: every image of the annotation file, without crowd boxes, which evaluation ignores.
    Returns the AP, −1 if no box counts, and the number of images scored. Raises UserError.
    """
    scored = np.linspace(0, len(index) - 1, min(len(index), SCORED_IMAGES)).astype(np.int64)
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
    return coco_numbers(index.source.annotation_file, rows, batch.image_ids)["AP"], len(scored)


def _lost_truth(annotations: Annotations) -> Iterator[Finding]:
    """Yield boxes that can't be matched: clipping changes one too much, or the image has too many."""
    images, counted = annotations.images, ~annotations.crowd
    size = annotations.boxes_ltwh_px[:, 2:]
    inside = np.maximum(inside_px(annotations.boxes_ltwh_px, annotations.sizes_px[images]), 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        kept = np.where((size > 0).all(axis=1), inside.prod(axis=1) / size.prod(axis=1), 0)
    too_little = kept < IOU_THRESHOLDS[-1]  # the strictest threshold in AP (RECIPE 7)
    for box in np.flatnonzero(too_little & counted).tolist():
        detail = f"only {kept[box]:.0%} of it lies inside the image: {_describe_box(annotations, box)}"
        yield Finding(Kind.truth_lost, annotations.where(box), detail)
    cells = images[counted] * (len(annotations.categories.ids) + 1) + annotations.labels[counted]
    _, first, counts = np.unique(cells, return_index=True, return_counts=True)
    crowded = counts > DETECTIONS_PER_CELL
    for box, count in zip(np.flatnonzero(counted)[first[crowded]].tolist(), counts[crowded], strict=True):
        category = annotations.categories.id_of(annotations.labels[box])
        detail = f"it has {count} boxes of category {category}; at most {DETECTIONS_PER_CELL} are scored"
        yield Finding(Kind.truth_lost, f"image {annotations.image_ids[images[box]]}", detail)


def _examine_pictures(split: _Split, threads: int, console: RunConsole) -> Iterator[Finding]:
    """Yield what is wrong with the image files."""
    folder = split.report.image_folder
    if not os.path.isdir(folder):
        yield Finding(Kind.folder_missing, folder, "the folder does not exist")
        return
    if split.annotations is None:
        return
    sizes_px = split.annotations.sizes_px
    inside = os.path.join(os.path.realpath(folder), "")
    for image, path in enumerate(split.paths):
        real = os.path.realpath(path)
        if path and not real.startswith(inside):
            shown = real.encode(errors="backslashreplace").decode()  # the name may not be UTF-8
            yield Finding(Kind.link_leaves_folder, path, f"images[{image}]: it points to {shown}")
    # An image without a size in the annotation file is already an error, and there is nothing to compare.
    images = [image for image, path in enumerate(split.paths) if path and sizes_px[image].all()]
    paths = [split.paths[image] for image in images]
    with console.counting(len(paths), f"{split.name}: decoding {len(paths)} pictures") as count:
        defects = inspect_all(paths, sizes_px[images], True, threads, count)
    for number, (image, path) in enumerate(zip(images, paths, strict=True)):
        if defect := defects.get(number):
            yield Finding(Kind[defect.kind], path, f"images[{image}]: {defect.detail}")
        else:
            yield from _look_beside_pixels(path, f"images[{image}]")


def _compare_pictures(
    splits: list[_Split], threads: int, console: RunConsole
) -> Iterator[tuple[str, Finding]]:
    """Yield files with the same bytes in any splits, and val pictures that look like a train picture.

    A picture looks like another if it was, for example, re-encoded or resized.
    """
    console.say("comparing the pictures")
    pictures = [(split.name, path) for split in splits for path in dict.fromkeys(split.paths)]
    pictures = [(name, path) for name, path in pictures if os.path.isfile(path)]
    with ThreadPoolExecutor(threads) as pool:
        looks = [*pool.map(_fingerprint, (path for _, path in pictures))]
    first: dict[bytes, tuple[str, str]] = {}
    thumbnails: dict[str, dict[str, NDArray[np.float32]]] = {"train": {}, "val": {}}
    for (name, path), (digest, thumbnail) in zip(pictures, looks, strict=True):
        other_name, other = first.setdefault(digest, (name, path))
        if other_name != name:
            yield "both", Finding(Kind.picture_in_both, path, f"same bytes as {other} in {other_name}")
        elif other != path:
            yield name, Finding(Kind.picture_twice, path, f"same bytes as {other}")
        else:
            thumbnails[name][path] = thumbnail
    if not all(thumbnails.values()):
        return
    train, val = (np.stack([*each.values()]) for each in thumbnails.values())
    train_paths, val_paths = ([*each] for each in thumbnails.values())
    for start in range(0, len(val), 256):  # to save memory
        likeness = val[start : start + 256] @ train.T
        for path, row in zip(val_paths[start:], likeness, strict=False):
            if row.max() >= ALIKE:
                detail = f"it looks like {train_paths[row.argmax()]} in train"
                yield "both", Finding(Kind.picture_alike, path, detail)


def _fingerprint(path: str) -> tuple[bytes, NDArray[np.float32]]:
    """Return a file's digest and its thumbnail's gray levels, shifted to mean 0 and scaled to length 1.

    The levels are all 0 for a uniform or unreadable picture.
    """
    digest, thumbnail = os.fsencode(path), np.zeros(THUMBNAIL**2, np.float32)
    with suppress(Exception):  # Pillow's readers raise almost anything; decoding reports it
        content = Path(path).read_bytes()
        digest = hashlib.blake2b(content).digest()
        with warnings.catch_warnings(action="ignore"), Image.open(BytesIO(content)) as picture:
            picture.draft("L", (8 * THUMBNAIL, 8 * THUMBNAIL))  # decode a JPEG no larger than needed
            grey = picture.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
        levels = np.asarray(grey, dtype=np.float32).ravel()
        levels -= levels.mean()
        if (length := np.linalg.norm(levels)) > THUMBNAIL:
            thumbnail = levels / length
    return digest, thumbnail


def _look_beside_pixels(path: str, entry: str) -> Iterator[Finding]:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
            moves = picture.format in MOVING_FORMATS and getattr(picture, "is_animated", False)
            held = orientation(picture)
    except Exception as error:  # Pillow's readers raise almost anything; DALI has decoded the picture
        yield Finding(Kind.exif_unreadable, path, f"{entry}: {error}")
        return
    if moves:
        yield Finding(Kind.animated, path, f"{entry}: it has more than one frame")
    if held != UPRIGHT:
        yield Finding(Kind.exif_rotation, path, f"{entry}: orientation {held} (1 is upright)")


def compare_categories(train: Categories, val: Categories) -> Iterator[Finding]:
    """Yield each category that one split lacks or that has another id or name there.

    Training learns the categories of train; evaluation scores them against those of val.
    """
    # Reversed, so that the first entry of a duplicate name counts.
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
            if train_names.get(id_, name) in val_ids:  # else reported with train's name
                yield Finding(Kind.category_missing, where, f"id {id_} in val, missing from train")
        elif train_ids[name] != val_ids[name]:
            detail = f"id {train_ids[name]} in train, {val_ids[name]} in val"
            yield Finding(Kind.category_renumbered, where, detail)


def _describe_box(annotations: Annotations, box: int) -> str:
    image = np.searchsorted(annotations.box_starts, box, side="right") - 1
    bbox = ", ".join(f"{value:.10g}" for value in annotations.boxes_ltwh_px[box])
    width, height = annotations.sizes_px[image]
    return f"bbox [{bbox}] in image {annotations.image_ids[image]} of {width}×{height} pixels"
