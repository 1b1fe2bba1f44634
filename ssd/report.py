"""What does a report say? A run's folder, or the analysis of an evaluation → the sections of a page."""

import base64
import json
import os
import re
import shlex
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
from ssd.boxes import BOXES_PER_CELL, MAP_SIZES, SCALES_PX, cxcywh_to_ltrb, default_boxes, match, pairwise_iou
from ssd.cli import writing
from ssd.detect import SHOWN_SCORE
from ssd.evaluation.coco import NAMES, RECALL_LEVELS
from ssd.evaluation.errors import KINDS, Analysis
from ssd.image import PictureError, read_picture

Sections = dict[str, list[Markup]]

_GREY = "#94a3b8"
_POINTS = 1500  # of a curve
_TOLD = 50  # lines about bad images and steps
_CURVES = 8  # of precision and recall; of more classes the best, the worst and the most frequent
_CONFUSED = 20  # classes in the confusion matrix; of more those confused most
_CARDS = 11  # worst false positives, and as many misses: with the best and the median image 24 pictures
_CARD_PX, _CARD_BOXES = 560, 100
_MEANING = {
    "classification": "right place, wrong class",
    "localization": "right class, IoU with it 0.1 to 0.5",
    "both": "wrong class and wrong place",
    "duplicate": "right, but a surer detection has that object",
    "background": "nothing annotated there",
    "missed": "annotated, but nothing was detected there",
}


@dataclass(frozen=True)
class Start:
    """One start of a run as run.log has it: when, its command line, what was told from then on."""

    when: str
    command: str
    told: list[str]

    @property
    def overrides(self) -> list[str]:
        """The command line's key=value."""
        return [word for word in shlex.split(self.command)[1:] if "=" in word]

    def lines(self, *beginnings: str) -> list[str]:
        """Return what was told that begins like one of these."""
        return [line for line in self.told if line.startswith(beginnings)]

    def table(self) -> dict[str, str]:
        """Return the start-up table; a long value goes on in rows without a name."""
        rows: dict[str, str] = {}
        for line in self.lines("│"):
            name, _, value = line.strip("│").partition("│")
            key = name.strip() or next(reversed(rows), "")
            rows[key] = f"{rows.get(key, '')} {value.strip()}".strip()
        return rows


@dataclass(frozen=True)
class Run:
    """What a run's folder tells: starts, and the two kinds of records; any of them may be empty."""

    folder: Path
    starts: list[Start]
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]

    @property
    def best(self) -> int:
        """The place of the first evaluation of the highest AP, of which there must be one."""
        return int(np.argmax([record["AP"] for record in self.evaluations]))

    @property
    def last_step(self) -> int:
        """The last step recorded."""
        return max((record["step"] for record in self.training + self.evaluations), default=0)


def read_run(folder: Path) -> Run:
    """Read a run's folder. A file that isn't there, or a line that was cut short, tells nothing."""
    records, starts = [], []
    for line in _lines(folder / "metrics.jsonl"):
        with suppress(ValueError):
            records.append(json.loads(line))
    for line in _lines(folder / "run.log"):
        if begins := re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.+)", line):
            starts.append(Start(begins[1], begins[2], []))
        elif starts:
            starts[-1].told.append(line)
    kinds = ([record for record in records if key in record] for key in ("loss", "AP"))
    return Run(folder, starts, *kinds)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


# ---- how the run went


def about_run(run: Run, seed: int | None) -> Sections:
    """Say what was trained, where, on what, and what happened to it."""
    if not run.starts:
        return {"The run": [page.text("There is no run.log: how the run was started is not known.")]}
    first, last = run.starts[0], run.starts[-1]
    experiment = next((word for word in last.overrides if word.startswith("experiment=")), "conf/train.yaml")
    changed = " ".join(word for word in last.overrides if word != experiment) or "nothing"
    rows: dict[str, object] = {
        "command": last.command,
        f"differs from {experiment}": changed,
        "started": first.when,
    }
    with suppress(OSError):
        ended = datetime.fromtimestamp((run.folder / "metrics.jsonl").stat().st_mtime).replace(microsecond=0)
        rows["last record"] = f"{ended}, {ended - datetime.fromisoformat(first.when)} after the start"
    rows |= dict(line.split(" ", 1) for line in last.lines("commit ", "machine ", "versions "))
    parts = [page.facts(rows | {"seed": seed} | last.table())]
    if len(run.starts) > 1:
        history = []
        for start in run.starts:
            step = re.search(r"after step (\d+)", " ".join(start.lines("resuming ")))
            ended_by = start.lines("stopped by", "error:") or ["" if start is last else "without a word"]
            history.append((start.when, int(step[1]) if step else 0, " ".join(start.overrides), ended_by[-1]))
        parts.append(page.table(("started", "after step", "with", "ended"), history, "Starts and resumes"))
    told = [
        *dict.fromkeys(line for start in run.starts for line in start.lines("bad image", "loss or gradient"))
    ]
    if not told:
        return {"The run": [*parts, page.text("No image was left out or replaced; every step was finite.")]}
    head = f"{len(told)} bad images or steps not finite" + f", the first {_TOLD}" * (len(told) > _TOLD)
    return {"The run": [*parts, page.table([head], [[line] for line in told[:_TOLD]])]}


def training(run: Run) -> Sections:
    """Plot the records as they are and smoothed, evaluations marked."""
    plots = {
        "Loss": ["loss"],
        "Its parts": ["loss_localization", "loss_confidence"],
        "Learning rate": ["learning_rate"],
        "Images a second": ["images_per_second"],
        "Share of time spent waiting for data": ["data_wait"],
    }
    if not run.training:
        return {
            "Training": [page.text("No step was recorded yet; logging.every_steps says how often that is.")]
        }
    steps = np.array([record["step"] for record in run.training])
    window, thin = np.ones(max(len(steps) // 25, 1)), slice(None, None, len(steps) // _POINTS + 1)
    parts = []
    for caption, keys in plots.items():
        axes = page.axes("step")
        for key, colour in zip(keys, page.COLOURS, strict=False):
            values = np.array([record[key] for record in run.training], dtype=np.float64)  # null becomes NaN
            known = np.convolve(np.isfinite(values), window, "same")
            smooth = np.convolve(np.nan_to_num(values), window, "same") / np.where(known, known, np.nan)
            axes.plot(steps[thin], values[thin], color=colour, alpha=0.35, linewidth=0.8)
            axes.plot(steps[thin], smooth[thin], color=colour, label=key if len(keys) > 1 else None)
        for record in run.evaluations:
            axes.axvline(record["step"], color=_GREY, linewidth=0.7, linestyle=":")
        parts.append(page.plot(axes, caption))
    return {"Training": [page.text("Faint: as recorded; strong: smoothed; dotted: evaluations."), *parts]}


def numbers(run: Run, published_ap: float | None) -> Sections:
    """Show COCO's numbers of each evaluation, the best marked, beside the AP published for the experiment."""
    if not run.evaluations:
        return {"Numbers": [page.text(f"No evaluation yet; step {run.last_step} is the last recorded.")]}
    best = run.evaluations[run.best]
    tiles = {"best, after step": best["step"]} | {name: float(best[name]) for name in NAMES[:6]}
    parts = [page.tiles(tiles if published_ap is None else tiles | {"AP published": published_ap})]
    for caption, names in (("AP", NAMES[:3]), ("AP by size", NAMES[3:6]), ("AR", NAMES[6:9])):
        axes = page.axes("step")
        for name in names:
            values = [record[name] if record[name] >= 0 else np.nan for record in run.evaluations]
            axes.plot([record["step"] for record in run.evaluations], values, ".-", label=name)
        if published_ap is not None and caption == "AP":
            axes.axhline(published_ap, color=_GREY, linestyle="--", label="AP published")
        parts.append(page.plot(axes, caption))
    head = ("step", "epoch", *NAMES)
    rows = [
        [record[name] for name in head[:2]] + [float(record[name]) for name in NAMES]
        for record in run.evaluations
    ]
    return {"Numbers": [*parts, page.table(head, rows, "Each evaluation, the best marked", run.best)]}


def default_box_matches(sample: Sequence[NDArray[np.float32]], images: int) -> Sections:
    """Count which default boxes the objects of training images match (RECIPE 3).

    sample: of some images the boxes, G×4 ltrb relative to it. images: how many images there are.
    """
    boxes = default_boxes()
    claims = torch.zeros(len(boxes), dtype=torch.int64)
    best = [torch.empty(0)]  # IoU of each object with its best default box
    for boxes_ltrb in map(torch.from_numpy, sample):
        claims += match(boxes_ltrb, torch.ones(len(boxes_ltrb)), boxes)[1]
        best.append(pairwise_iou(boxes_ltrb, cxcywh_to_ltrb(boxes)).amax(dim=1))
    ious = torch.cat(best)
    below = int((ious <= 0.5).sum())
    cells = [count * size**2 for size, count in zip(MAP_SIZES, BOXES_PER_CELL, strict=True)]
    rows, by_shape = [], np.zeros((len(cells), 8))
    for place, of_map in enumerate(claims.split(cells)):
        shapes = of_map.reshape(BOXES_PER_CELL[place], -1).sum(dim=1).tolist()
        by_shape[place, : len(shapes)] = shapes
        unclaimed = float((of_map == 0).double().mean())
        size = f"{MAP_SIZES[place]}×{MAP_SIZES[place]}, {SCALES_PX[place]} px"
        rows.append((size, *[*shapes, None, None][:6], sum(shapes), unclaimed))
    head = ("map, box side", "1:1", "1:1 larger", "2:1", "1:2", "3:1", "1:3", "all", "never claimed")
    seen = "all" if len(sample) == images else f"{len(sample):,}, evenly spaced, of"
    words = (
        f"{len(ious):,} objects of {seen} {images:,} training images, seen whole: {below:,} "
        f"({below / max(len(ious), 1):.1%}) overlap no default box by more than IoU 0.5 and are learned by "
        "their best one alone, unless a random crop enlarges them. Never claimed: the share of a map's "
        "default boxes that no object matches."
    )
    caption = "Matches by map and width:height"
    return {
        "Default boxes": [
            page.text(words),
            page.table(head, rows, caption, shades=by_shape / max(by_shape.max(), 1)),
        ]
    }


# ---- where it fails


def failures(analysis: Analysis, paths: Mapping[int, str]) -> Sections:
    """Show an evaluation by class, by kind of error and in pictures. paths: of the images, by id."""
    return {
        "Classes": _classes(analysis),
        "Errors": _errors(analysis),
        "Pictures": _pictures(analysis, paths),
    }


def _classes(analysis: Analysis) -> list[Markup]:
    of_classes = (analysis.ap, analysis.ap50, analysis.ap75, analysis.recall, analysis.boxes, analysis.images)
    head = ("class", "AP", "AP50", "AP75", "recall", "boxes", "images")
    parts = [page.table(head, [*zip(analysis.names, *of_classes, strict=True)])]
    annotated = np.flatnonzero(analysis.boxes)
    by_ap = annotated[np.argsort(-analysis.ap[annotated], kind="stable")].tolist()
    by_boxes = annotated[np.argsort(-analysis.boxes[annotated], kind="stable")].tolist()
    drawn = by_ap if len(by_ap) <= _CURVES else [*dict.fromkeys(by_ap[:3] + by_ap[-3:] + by_boxes)][:_CURVES]
    some = "" if drawn == by_ap else ", of the best, the worst and the most frequent classes"
    for at, threshold in enumerate((0.5, 0.75)):
        axes = page.axes("recall", "precision")
        for k in drawn:
            axes.plot(RECALL_LEVELS, analysis.precision[at, :, k], label=analysis.names[k][:24])
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
        parts.append(page.plot(axes, f"Precision by recall at IoU {threshold}{some}"))
    return parts


def _errors(analysis: Analysis) -> list[Markup]:
    kinds = [(kind, analysis.counts[kind], analysis.cost[kind], _MEANING[kind]) for kind in KINDS]
    head = ("kind of error", "how many", "AP50 lost", "what it is")
    parts = [page.table(head, kinds, "Kinds as in TIDE (Bolya et al. 2020); AP50 lost: by these alone")]
    sizes = [(size, int(row["boxes"]), row["AP"], row["AR_100"]) for size, row in analysis.by_size.items()]
    parts.append(page.table(("size", "boxes", "AP", "AR_100"), sizes, "By area, parted at 32² and 96² px"))
    axes = page.axes("AP50 lost")
    axes.barh(KINDS[::-1], [analysis.cost[kind] for kind in KINDS[::-1]], color=page.COLOURS[0])
    parts.append(page.plot(axes, "What each kind of error costs"))
    axes = page.axes("score", "share that is right")
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=0.8)
    scores, right, _ = analysis.calibration[analysis.calibration[:, 2] > 0].T
    axes.plot(scores, right, ".-")
    parts.append(page.plot(axes, "Calibration: below the dashed line scores are too high"))
    names, matrix, caption = [*analysis.names, "background"], analysis.confusion, ""
    if len(names) > _CONFUSED + 1:
        confused = (matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * matrix.diagonal())[:-1]
        kept = [*np.sort(np.argsort(-confused, kind="stable")[:_CONFUSED]).tolist(), len(names) - 1]
        names, matrix = [names[k] for k in kept], matrix[np.ix_(kept, kept)]
        caption = f", the {_CONFUSED} classes confused most"
    rows = [(name, *row) for name, row in zip(names, matrix, strict=True)]
    shades = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    caption = f"Confusion of scores from {SHOWN_SCORE}: rows annotated, columns detected{caption}"
    return [*parts, page.table(("", *names), rows, caption, shades=shades)]


def _pictures(analysis: Analysis, paths: Mapping[int, str]) -> list[Markup]:
    cards, failed = [], []
    for image_id, reason, subject in _worth_seeing(analysis):
        try:
            cards.append({"reason": reason} | _card(analysis, image_id, subject, paths[image_id]))
        except PictureError as error:
            failed.append(error)
    words = (
        "The surest errors, the largest not found, the best and the median image. Point at a box to see why."
    )
    kinds = ("annotated", "missed", "right", *KINDS[:-1])
    parts = [page.text(words), page.pictures(cards, kinds, analysis.names)] if cards else []
    return parts + [page.text(f"{len(failed)} pictures can't be shown: {error}") for error in failed[:1]]


def _worth_seeing(analysis: Analysis) -> list[tuple[int, str, NDArray[np.float64] | None]]:
    """Choose up to 24 times an image, by id; say why, and for which box. Of a kind each image comes once."""
    found, truths = analysis.detections, analysis.truths
    name_of = dict(zip(analysis.category_ids.tolist(), analysis.names, strict=True))
    not_found = truths[~truths["found"] & ~truths["crowd"]]
    chosen: list[tuple[int, str, NDArray[np.float64] | None]] = []
    for rows, key in ((found[np.isin(found["kind"], KINDS)], "score"), (not_found, "area")):
        rows = rows[np.argsort(-rows[key], kind="stable")]
        _, first = np.unique(rows["image_id"], return_index=True)
        for row in rows[np.sort(first)[:_CARDS]]:
            name, (width, height) = name_of[int(row["category_id"])], row["bbox"][2:].round().astype(int)
            missed = f"not found: {name}, {width}×{height} px"
            reason = missed if key == "area" else f"{row['kind']}: {name} {row['score']:.2f}"
            chosen.append((int(row["image_id"]), reason, row["bbox"]))
    images, objects = np.unique(truths["image_id"][~truths["crowd"]], return_counts=True)
    shown = found[(found["score"] >= SHOWN_SCORE) & (found["kind"] != "ignored")]
    shown = shown[np.isin(shown["image_id"], images)]
    at, is_right = np.searchsorted(images, shown["image_id"]), shown["kind"] == "right"
    right, wrong = (np.bincount(at[kind], minlength=len(images)) for kind in (is_right, ~is_right))
    order = np.lexsort((objects, right / (objects + wrong)))
    for what, place in (("the best image", -1), ("the median image", len(order) // 2)):
        for k in order[place:][:1]:
            reason = f"{what}: {right[k]} of {objects[k]} found, {wrong[k]} wrong"
            chosen.append((int(images[k]), reason, None))
    return chosen


def _card(
    analysis: Analysis, image_id: int, subject: NDArray[np.float64] | None, path: str
) -> dict[str, object]:
    """Return a picture, not turned by EXIF as in training, and its boxes, the surest on top."""
    picture = read_picture(path, upright=False)
    width, height = picture.size
    picture.thumbnail((_CARD_PX, _CARD_PX))
    picture.save(file := BytesIO(), "JPEG", quality=80)
    name_of = dict(zip(analysis.category_ids.tolist(), analysis.names, strict=True))
    truths, found = (rows[rows["image_id"] == image_id] for rows in (analysis.truths, analysis.detections))
    boxes = []
    for row in [*truths, *found[np.argsort(found["score"], kind="stable")][-_CARD_BOXES:]]:
        detected = "score" in row.dtype.names
        kind = str(row["kind"]) if detected else "missed" if row["missed"] else "annotated"
        name = name_of[int(row["category_id"])]
        note = f"{name} {kind}, IoU {row['iou' if detected else 'best_iou']:.2f}"
        box = {"ltwh": row["bbox"].round(1).tolist(), "kind": kind, "name": name, "note": note}
        box["score"] = float(row["score"]) if detected else None
        boxes.append(box | {"subject": bool(subject is not None and np.array_equal(row["bbox"], subject))})
    jpeg = base64.b64encode(file.getvalue()).decode()
    return {"name": Path(path).name, "width": width, "height": height, "jpeg": jpeg, "boxes": boxes}


# ---- the finding, and the page


def headline(run: Run | None, analysis: Analysis | None) -> list[str]:
    """Say in up to three sentences, from the numbers, what was reached, what is hard and what costs most."""
    told = []
    if run and run.evaluations:
        scores, best = [record["AP"] for record in run.evaluations], run.evaluations[run.best]
        last = run.best + 1 == len(scores)
        rises = "the highest and the last" if last else f"{scores[-1]:.3f} at the last"
        rises = f"{rises} of {len(scores)} evaluations" if len(scores) > 1 else "the only evaluation"
        reached = f"AP {best['AP']:.3f} and AP50 {best['AP50']:.3f} after step {best['step']}"
        told.append(f"{reached}, {rises}.")
    elif run:
        told.append(f"No evaluation yet: step {run.last_step} is the last recorded.")
    if analysis is None:
        return told
    if not len(analysis.detections):
        return [*told, "Nothing was detected."]
    sizes = {size: row for size, row in analysis.by_size.items() if row["boxes"]}
    if len(sizes) > 1:
        worst, *_, best_size = sorted(sizes, key=lambda size: sizes[size]["AP"])
        share = sizes[worst]["boxes"] / sum(row["boxes"] for row in sizes.values())
        told.append(
            f"{worst.capitalize()} objects, {share:.0%} of all, are found worst: AP {sizes[worst]['AP']:.3f} "
            f"against {sizes[best_size]['AP']:.3f} for {best_size} ones."
        )
    kind = max(KINDS, key=lambda kind: analysis.cost[kind])
    costs = f"Most AP50, {analysis.cost[kind]:.3f}, is lost to errors of the kind {kind} ({_MEANING[kind]})"
    annotated = np.flatnonzero(analysis.boxes)
    if len(annotated) > 1:
        hardest = annotated[analysis.ap[annotated].argmin()]
        costs += f"; the hardest class is {analysis.names[hardest]}, AP {analysis.ap[hardest]:.3f}"
    return [*told, costs + "."]


def write(given: str, key: str, about: tuple[str, str], finding: Sequence[str], sections: Sections) -> None:
    """Write a page, whole or not at all, to the file that a key gave. Raises UserError where that fails."""
    path = Path(given)
    with writing(path, key):
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # another may be at work on it
        temporary.write_text(page.page(*about, finding, sections), encoding="utf-8", errors="replace")
        temporary.replace(path)
