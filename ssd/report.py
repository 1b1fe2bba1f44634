"""What does a report say? A run's folder, or the analysis of an evaluation → the sections of a page."""

import base64
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from ssd import page
from ssd.boxes import BOXES_PER_CELL, MAP_SIZES, SCALES_PX, default_boxes, match
from ssd.detect import SHOWN_SCORE
from ssd.evaluation.coco import NAMES, RECALL_LEVELS
from ssd.evaluation.errors import KINDS, Analysis
from ssd.image import PictureError, read_picture

_GREY = "#94a3b8"
# Lines of run.log that are shown begin with one of these.
_TOLD = ("stopped by", "error:", "bad image", "loss or gradient", "weights and momenta")
_SHOWN = 50  # at most this many lines
_TRAINING = {
    "Loss and its parts": ("loss", "loss_localization", "loss_confidence"),
    "Learning rate": ("learning_rate",),
    "Images per second": ("images_per_second",),
    "Share of time spent waiting for data": ("data_wait",),
}
_SMOOTH = 50  # points per smoothed curve
_CURVES = 8  # precision-recall curves: the most frequent classes
_CONFUSED = 20  # classes in the confusion matrix: the most confused
_CARDS = 11  # pictures of errors, and as many of misses; 24 in all with the best and the median image
_CARD_PX, _CARD_BOXES = 560, 100
_MEANING = {
    "classification": "right place, wrong class",
    "localization": "right class, but IoU only 0.1 to 0.5",
    "both": "wrong class and wrong place",
    "duplicate": "right, but the object already has a more confident detection",
    "background": "no object there",
    "missed": "object without a detection",
}


@dataclass(frozen=True)
class Run:
    """What a run's folder contains; any field may be empty.

    starts: the records of starts.jsonl. told: lines of run.log about problems. training, evaluations: the two
    kinds of records in metrics.jsonl.
    """

    folder: Path
    starts: list[dict[str, Any]]
    told: list[str]
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def best(self) -> dict[str, Any]:
        """The first evaluation with the highest AP, {} if there is none."""
        return max(self.evaluations, key=lambda record: record["AP"], default={})

    @property
    def detections(self) -> Path:
        """The file with the best evaluation's detections; it may be missing."""
        return next(self.folder.glob("detections_*.npy"), self.folder / "detections_STEP.npy")


def read_run(folder: Path) -> Run:
    """Read a run's folder, skipping missing files and truncated lines."""
    starts, records = _records(folder / "starts.jsonl"), _records(folder / "metrics.jsonl")
    told = [line for line in _lines(folder / "run.log") if line.startswith(_TOLD)]
    kinds = ([record for record in records if key in record] for key in ("loss", "AP"))
    return Run(folder, starts, told, *kinds)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _records(path: Path) -> list[dict[str, Any]]:
    records = []
    for line in _lines(path):
        with suppress(ValueError):
            records.append(json.loads(line))
    return records


def curve(records: Sequence[Mapping[str, Any]], key: str, most: int | None = None) -> NDArray[np.float64]:
    """Return steps and values, 2×N. More than `most` records are averaged down to `most` points.

    null, and COCO's −1 for nothing to count, become NaN.
    """
    points = np.array([(record["step"], record[key]) for record in records], np.float64).reshape(-1, 2)
    points[points < 0] = np.nan
    if most is not None and len(points) > most:
        points = np.array([part.mean(axis=0) for part in np.array_split(points, most)])
    return points.T


# ---- the run


def about_run(run: Run) -> list[Markup]:
    """Show what was trained, where, on what data, and what went wrong."""
    if not run.starts:
        return [page.text("There is no starts.jsonl, so it is unknown how the run was started.")]
    first, last = run.starts[0], run.starts[-1]
    words = [word for word in shlex.split(last["command"]) if "=" in word]
    changed = [word for word in words if not word.startswith("experiment=")]
    facts = last | {"overrides": " ".join(changed) or "none"}
    with suppress(OSError):
        ended = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime).replace(microsecond=0)
        facts["last record"] = f"{ended}, {ended - datetime.fromisoformat(first['started'])} after the start"
    parts = [page.facts(facts)]
    if len(run.starts) > 1:
        head = ("started", "after step", "command")
        parts.append(page.table(head, [[start[key] for key in head] for start in run.starts], "Starts"))
    if not run.told:
        return [*parts, page.text("No image was left out or replaced; every step was finite.")]
    caption = f"Stops and problems in run.log (first {_SHOWN} lines)"
    return [*parts, page.table(["line"], [[line] for line in run.told[:_SHOWN]], caption)]


def training(run: Run) -> list[Markup]:
    """Plot the records, raw and smoothed, and mark the evaluations."""
    if not run.training:
        return [page.text("No step has been recorded yet; logging.every_steps sets how often steps are.")]
    parts = [page.text("Faint lines: raw records. Strong lines: averages. Dotted lines: evaluations.")]
    for caption, keys in _TRAINING.items():
        axes = page.axes("step")
        for key, colour in zip(keys, page.COLOURS, strict=False):
            axes.plot(*curve(run.training, key), color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(*curve(run.training, key, _SMOOTH), color=colour, label=key if len(keys) > 1 else None)
        for record in run.evaluations:
            axes.axvline(record["step"], color=_GREY, linewidth=0.7, linestyle=":")
        parts.append(page.plot(axes, caption))
    return parts


def numbers(run: Run, published_ap: float | None) -> list[Markup]:
    """Show COCO's numbers of each evaluation, the best highlighted, and the experiment's published AP."""
    if not run.evaluations:
        return [page.text("No evaluation yet.")]
    tiles = {"best step": run.best["step"]} | {name: run.best[name] for name in NAMES[:6]}
    parts = [page.tiles(tiles if published_ap is None else tiles | {"published AP": published_ap})]
    for caption, names in (("AP", NAMES[:3]), ("AP by size", NAMES[3:6]), ("AR", NAMES[6:9])):
        axes = page.axes("step")
        for name in names:
            axes.plot(*curve(run.evaluations, name), ".-", label=name)
        if published_ap is not None and caption == "AP":
            axes.axhline(published_ap, color=_GREY, linestyle="--", label="published AP")
        parts.append(page.plot(axes, caption))
    head = ("step", "epoch", *NAMES)
    rows = [[record[name] for name in head] for record in run.evaluations]
    best = run.evaluations.index(run.best)
    return [*parts, page.table(head, rows, "All evaluations, the best highlighted", best)]


def default_box_matches(sample: Sequence[NDArray[np.float32]], images: int) -> list[Markup]:
    """Count how many objects of training images match each kind of default box (RECIPE 3).

    sample: the boxes of each sampled image, G×4 ltrb relative to the image. images: the number of all images.
    """
    boxes = default_boxes()
    claims = torch.zeros(len(boxes), dtype=torch.int64)
    for boxes_ltrb in map(torch.from_numpy, sample):
        claims += match(boxes_ltrb, torch.ones(len(boxes_ltrb)), boxes)[1]
    rows = []
    maps = claims.split([each * size**2 for each, size in zip(BOXES_PER_CELL, MAP_SIZES, strict=True)])
    for of_map, size, side_px, per_cell in zip(maps, MAP_SIZES, SCALES_PX, BOXES_PER_CELL, strict=False):
        shapes = [*of_map.view(per_cell, -1).sum(dim=1).tolist(), None, None][:6]
        never = float((of_map == 0).double().mean())
        rows.append((f"{size}×{size}, {side_px} px", *shapes, int(of_map.sum()), never))
    words = (
        f"{sum(map(len, sample)):,} objects of {len(sample):,} of {images:,} training images, without "
        "augmentation. Unmatched: the share of a map's default boxes that no object matches."
    )
    head = ("map, box side", "1:1", "1:1 larger", "2:1", "1:2", "3:1", "1:3", "all", "unmatched")
    return [page.text(words), page.table(head, rows, "Matches by feature map and width:height")]


# ---- where it fails


def failures(analysis: Analysis, paths: Mapping[int, str]) -> page.Sections:
    """Show an evaluation by class, by kind of error, and in pictures. paths: image files by image id."""
    return {
        "Classes": _classes(analysis),
        "Errors": [*_errors(analysis), _confusion(analysis)],
        "Pictures": _pictures(analysis, paths),
    }


def _classes(analysis: Analysis) -> list[Markup]:
    ap50, ap75 = analysis.precision.mean(axis=1)
    of_classes = (analysis.ap, ap50, ap75, analysis.recall, analysis.boxes, analysis.images)
    head = ("class", "AP", "AP50", "AP75", "recall", "boxes", "images")
    parts = [page.table(head, [*zip(analysis.names, *of_classes, strict=True)])]
    drawn = [k for k in np.argsort(-analysis.boxes, kind="stable")[:_CURVES] if analysis.boxes[k]]
    some = f", the {_CURVES} most frequent classes" if np.count_nonzero(analysis.boxes) > _CURVES else ""
    for precision, threshold in zip(analysis.precision, (0.5, 0.75), strict=True):
        axes = page.axes("recall", "precision")
        for k in drawn:
            axes.plot(RECALL_LEVELS, precision[:, k], label=analysis.names[k][:24])
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
        parts.append(page.plot(axes, f"Precision and recall at IoU {threshold}{some}"))
    return parts


def _errors(analysis: Analysis) -> list[Markup]:
    kinds = [(kind, analysis.counts[kind], analysis.cost[kind], _MEANING[kind]) for kind in KINDS]
    head = ("kind of error", "count", "AP50 lost", "meaning")
    caption = "Kinds of error as in TIDE (Bolya et al. 2020). AP50 lost: to errors of this kind only"
    parts = [page.table(head, kinds, caption)]
    of = analysis.numbers
    sizes = [(size, boxes, of[f"AP_{size}"], of[f"AR_{size}"]) for size, boxes in analysis.sizes.items()]
    parts.append(page.table(("size", "boxes", "AP", "AR_100"), sizes, "By size (area limits 32² and 96² px)"))
    axes = page.axes("AP50 lost")
    axes.barh(KINDS[::-1], [analysis.cost[kind] for kind in KINDS[::-1]])
    parts.append(page.plot(axes, "Cost of each kind of error"))
    axes = page.axes("score", "share correct")
    axes.plot(*analysis.calibration.T, ".-")
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=0.8)
    return [*parts, page.plot(axes, "Calibration: below the dashed line, scores are too high")]


def _confusion(analysis: Analysis) -> Markup:
    names, matrix = [*analysis.names, "background"], analysis.confusion
    confused = (matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal())[:-1]
    kept = [*np.sort(np.argsort(-confused, kind="stable")[:_CONFUSED]), len(names) - 1]
    some = f", the {_CONFUSED} most confused classes" if len(kept) < len(names) else ""
    names, matrix = [names[k] for k in kept], matrix[np.ix_(kept, kept)]
    rows = [(name, *row) for name, row in zip(names, matrix, strict=True)]
    shades = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    caption = f"Confusion matrix for scores of {SHOWN_SCORE} or more: rows annotated, columns detected{some}"
    return page.table(("", *names), rows, caption, shades=shades)


def _pictures(analysis: Analysis, paths: Mapping[int, str]) -> list[Markup]:
    cards, failed = [], []
    for image_id, reason, subject in _worth_seeing(analysis):
        try:
            cards.append({"reason": reason} | _card(analysis, image_id, subject, paths[image_id]))
        except PictureError as error:
            failed.append(error)
    words = "The most confident errors, the largest missed objects, the best and the median image."
    kinds = ("annotated", "missed", "right", *KINDS[:-1])
    parts = (
        [page.text(f"{words} Hover over a box for details."), page.pictures(cards, kinds, analysis.names)]
        if cards
        else []
    )
    return parts + [page.text(f"{len(failed)} pictures can't be shown; the first: {e}") for e in failed[:1]]


def _worth_seeing(analysis: Analysis) -> list[tuple[int, str, list[float]]]:
    """Choose up to 24 examples: image id, reason, and the box concerned; each image once per kind."""
    found, truths = analysis.detections, analysis.truths[analysis.truths["kind"] != "crowd"]
    errors, lost = found[np.isin(found["kind"], KINDS)], truths[truths["kind"] != "found"]
    surest = errors[np.argsort(-errors["score"], kind="stable")]
    largest = lost[np.argsort(-lost["bbox"][:, 2:].prod(axis=1), kind="stable")]
    chosen: list[tuple[int, str, list[float]]] = []
    for rows in (surest, largest):
        _, first = np.unique(rows["image_id"], return_index=True)
        for row in rows[np.sort(first)[:_CARDS]]:
            name, (width, height) = analysis.names[row["category"]], row["bbox"][2:]
            reason = f"{row['kind']}: {name} {row['score']:.2f}"
            if rows is largest:
                reason = f"missed: {name}, {width:.0f}×{height:.0f} px"
            chosen.append((int(row["image_id"]), reason, row["bbox"].tolist()))
    shown = found[(found["score"] >= SHOWN_SCORE) & (found["kind"] != "ignored")]
    is_right = shown["kind"] == "right"
    objects, right, wrong = (
        Counter(rows["image_id"].tolist()) for rows in (truths, shown[is_right], shown[~is_right])
    )
    ranked = sorted(
        objects, key=lambda image: (right[image] / (objects[image] + wrong[image]), objects[image])
    )
    for what, images in (("best", ranked[-1:]), ("median", ranked[len(ranked) // 2 :][:1])):
        for image in images:
            told = f"{right[image]} of {objects[image]} found, {wrong[image]} wrong"
            chosen.append((image, f"the {what} image: {told}", []))
    return chosen


def _card(analysis: Analysis, image_id: int, subject: list[float], path: str) -> dict[str, object]:
    """Return a picture, without EXIF rotation (as in training), and its boxes, the most confident on top."""
    picture = read_picture(path, upright=False)
    width, height = picture.size
    picture.thumbnail((_CARD_PX, _CARD_PX))
    picture.save(file := BytesIO(), "JPEG", quality=80)
    truths, found = (rows[rows["image_id"] == image_id] for rows in (analysis.truths, analysis.detections))
    boxes = []
    for row in [*truths, *found[np.argsort(found["score"], kind="stable")][-_CARD_BOXES:]]:
        name, kind = analysis.names[row["category"]], str(row["kind"])
        kind = "annotated" if kind in ("found", "mistaken", "crowd") else kind
        box = {"ltwh": row["bbox"].round(1).tolist(), "kind": kind, "name": name}
        box["score"] = None if np.isnan(row["score"]) else float(row["score"])
        box["note"] = f"{name} {kind}, IoU {row['iou']:.2f}"
        boxes.append(box | {"subject": row["bbox"].tolist() == subject})
    jpeg = base64.b64encode(file.getvalue()).decode()
    return {"name": Path(path).name, "width": width, "height": height, "jpeg": jpeg, "boxes": boxes}


def headline(run: Run | None, analysis: Analysis | None) -> list[str]:
    """Summarize in up to three sentences: the best AP, what is hardest, and which errors cost most."""
    told = []
    if run and run.best:
        count = len(run.evaluations)
        reached = "AP {AP:.3f} and AP50 {AP50:.3f} after step {step}".format(**run.best)
        told.append(f"{reached}, the {f'best of {count} evaluations' if count > 1 else 'only evaluation'}.")
    elif run:
        told.append("No evaluation yet.")
    if analysis is None:
        return told
    if not len(analysis.detections):
        return [*told, "Nothing was detected."]
    aps = {size: analysis.numbers[f"AP_{size}"] for size, boxes in analysis.sizes.items() if boxes}
    if len(aps) > 1:
        worst, *_, best = sorted(aps, key=lambda size: aps[size])
        share = analysis.sizes[worst] / sum(analysis.sizes.values())
        told.append(
            f"{worst.capitalize()} objects ({share:.0%} of all) have the lowest AP, {aps[worst]:.3f}; "
            f"{best} objects have the highest, {aps[best]:.3f}."
        )
    kind = max(KINDS, key=lambda kind: analysis.cost[kind])
    costs = f"The most costly kind of error is {kind} ({_MEANING[kind]}), {analysis.cost[kind]:.3f} of AP50"
    annotated = np.flatnonzero(analysis.boxes)
    if len(annotated) > 1:
        hardest = annotated[analysis.ap[annotated].argmin()]
        costs += f"; the hardest class is {analysis.names[hardest]}, AP {analysis.ap[hardest]:.3f}"
    return [*told, costs + "."]
