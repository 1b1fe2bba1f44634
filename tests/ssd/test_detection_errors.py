"""Kinds of error and their costs against TIDE's paper, taken literally, slowly, one box at a time."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask

from ssd.detect import SHOWN_SCORE
from ssd.evaluation.coco import RECALL_LEVELS, coco_numbers, score
from ssd.evaluation.errors import KINDS, Analysis, explain
from tests.ssd.test_coco_numbers import SCENES, Scene, random_annotations, random_results, write

pytestmark = pytest.mark.unit

Entry = dict[str, Any]
EVERY_CLASS_TIED = Scene(images=12, categories=3, boxes=4, found=30, score_steps=4, crowd=0.2, grid_px=20)


def iou(entry: Entry, box: Entry) -> float:
    return float(mask.iou([entry["bbox"]], [box["bbox"]], [box["iscrowd"]])[0, 0])


def cell_of(entry: Entry) -> tuple[int, int]:
    return entry["category_id"], entry["image_id"]


def best(entry: Entry, boxes: list[Entry]) -> tuple[float, Entry | None]:
    box = max(boxes, key=lambda box: iou(entry, box), default=None)  # the first of equal ones
    return (iou(entry, box), box) if box else (0.0, None)


def by_score(entries: list[Entry]) -> list[Entry]:
    """Best first, equal scores by image, then as given."""
    return sorted(sorted(entries, key=lambda entry: entry["image_id"]), key=lambda entry: -entry["score"])


def look_at(truth: Entry, results: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Return the best 100 detections of each class and image, by class, then image, then falling score.

    Each with its `kind`, `iou` and `box`; and the boxes that are missed.
    """
    found: list[Entry] = []
    taken: list[Entry] = []
    seen = Counter[tuple[int, int]]()
    for entry in sorted(results, key=lambda entry: (*cell_of(entry), -entry["score"])):
        seen[cell_of(entry)] += 1
        if seen[cell_of(entry)] > 100:
            continue
        there = [box for box in truth["annotations"] if box["image_id"] == entry["image_id"]]
        plain = [box for box in there if not box["iscrowd"]]
        same = [box for box in plain if box["category_id"] == entry["category_id"]]
        other = [box for box in plain if box["category_id"] != entry["category_id"]]
        crowds = [box for box in there if box["iscrowd"] and box["category_id"] == entry["category_id"]]
        # COCO matches the last of equally near boxes.
        matched_iou, matched = best(entry, [box for box in same[::-1] if box not in taken])
        crowd_iou, crowd = best(entry, crowds[::-1])
        (same_iou, same_box), (other_iou, other_box) = best(entry, same), best(entry, other)
        outcome: tuple[str, float, Entry | None]
        if matched and matched_iou >= 0.5:
            taken.append(matched)
            outcome = ("right", matched_iou, matched)
        elif crowd and crowd_iou >= 0.5:
            outcome = ("ignored", crowd_iou, crowd)
        elif 0.1 <= same_iou < 0.5:
            outcome = ("localization", same_iou, same_box)
        elif other_iou >= 0.5:
            outcome = ("classification", other_iou, other_box)
        elif same_iou >= 0.5:
            outcome = ("duplicate", same_iou, same_box)
        elif max(same_iou, other_iou) < 0.1:
            outcome = ("background", max(same_iou, other_iou), None)
        else:
            outcome = ("both", other_iou, other_box)
        found.append(entry | dict(zip(("kind", "iou", "box"), outcome, strict=True)))
    covered = [e["box"] for e in found if e["kind"] in ("right", "classification", "localization")]
    missed = [box for box in truth["annotations"] if not box["iscrowd"] and box not in covered]
    return found, missed


def mean_ap50(truth: Entry, found: list[Entry], missed: list[Entry]) -> float:
    aps = []
    for category_id in {box["category_id"] for box in truth["annotations"] if not box["iscrowd"]}:
        boxes = [b for b in truth["annotations"] if b["category_id"] == category_id and not b["iscrowd"]]
        to_find = len([box for box in boxes if box not in missed])
        hits = [e["kind"] == "right" for e in by_score(found) if e["category_id"] == category_id]
        if not to_find:
            aps.append(0.0 if hits else 1.0)
            continue
        points = [(sum(hits[:n]) / to_find, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
        aps.append(np.mean([max([p for r, p in points if r >= level], default=0) for level in RECALL_LEVELS]))
    return float(np.mean(aps)) if aps else 0.0


def literal_cost(truth: Entry, found: list[Entry], missed: list[Entry]) -> dict[str, float]:
    counted = [entry for entry in found if entry["kind"] != "ignored"]
    now = mean_ap50(truth, counted, [])
    cost = {"missed": mean_ap50(truth, counted, missed) - now}
    for kind in KINDS[:-1]:
        fixed = []
        for entry in by_score(counted):
            if entry["kind"] == kind and kind in ("classification", "localization"):
                fixed.append(entry | {"kind": "right", "category_id": entry["box"]["category_id"]})
            elif entry["kind"] != kind:
                fixed.append(entry)
        # Of those that are right about one box now the lower-scoring ones are suppressed.
        boxes = [entry["box"] for entry in fixed if entry["kind"] == "right"]
        first = [next(e for e in fixed if e["kind"] == "right" and e["box"] is box) for box in boxes]
        kept = [entry for entry in fixed if entry["kind"] != "right" or any(entry is e for e in first)]
        cost[kind] = mean_ap50(truth, kept, []) - now
    return cost


def check(file: Path, truth: Entry, results: list[Entry]) -> Analysis:
    """Compare everything with what the loops above find."""
    analysis = explain(score(file, results))
    found, missed = look_at(truth, results)
    rows, boxes = analysis.detections, truth["annotations"]
    assert rows["kind"].tolist() == [entry["kind"] for entry in found]
    assert rows["iou"].tolist() == [entry["iou"] for entry in found]
    concerned = [next((n for n, box in enumerate(boxes) if box is e["box"]), -1) for e in found]
    assert rows["truth"].tolist() == concerned
    for field in ("image_id", "bbox", "score"):
        assert rows[field].tolist() == [entry[field] for entry in found]
    category_ids = sorted(category["id"] for category in truth["categories"])
    assert [category_ids[row] for row in rows["category"]] == [entry["category_id"] for entry in found]
    assert analysis.cost == pytest.approx(literal_cost(truth, found, missed), abs=1e-12)
    kinds = [entry["kind"] for entry in found] + ["missed"] * len(missed)
    assert analysis.counts == {kind: kinds.count(kind) for kind in KINDS}

    truths = analysis.truths
    right_about = [entry["box"] for entry in found if entry["kind"] == "right"]
    for told, box in zip(truths["kind"].tolist(), boxes, strict=True):
        counted = "found" if box in right_about else "missed" if box in missed else "mistaken"
        assert told == ("crowd" if box["iscrowd"] else counted)
    nearest = [[iou(e, box) for e in found if e["image_id"] == box["image_id"]] for box in boxes]
    assert truths["iou"].tolist() == [max(ious, default=0.0) for ious in nearest]

    # Each box and each shown detection once, found ones on the diagonal.
    shown = [entry for entry in found if entry["score"] >= SHOWN_SCORE and entry["kind"] != "ignored"]
    confusion = analysis.confusion
    assert confusion[:-1].sum(axis=1).tolist() == analysis.boxes.tolist()
    detected = [[e["category_id"] for e in shown].count(number) for number in category_ids]
    assert confusion[:, :-1].sum(axis=0).tolist() == detected
    assert confusion.diagonal().sum() == len([entry for entry in shown if entry["kind"] == "right"])

    tenths: dict[int, list[tuple[float, bool]]] = {}
    for entry in [entry for entry in found if entry["kind"] != "ignored"]:
        inside = tenths.setdefault(min(int(entry["score"] * 10), 9), [])
        inside.append((entry["score"], entry["kind"] == "right"))
    points = [np.mean(tenths[tenth], axis=0) for tenth in sorted(tenths)]
    assert analysis.calibration == pytest.approx(np.array(points).reshape(-1, 2))

    numbers, (ap50, ap75) = coco_numbers(file, results), analysis.precision.mean(axis=1)
    by_class = {"AP": analysis.ap, "AP50": ap50, "AP75": ap75, "AR_100": analysis.recall}
    for name, values in by_class.items():
        assert numbers[name] == pytest.approx(values[values > -1].mean() if (values > -1).any() else -1)
    assert analysis.numbers == numbers
    plain = [box for box in boxes if not box["iscrowd"]]
    for number, category_id in enumerate(category_ids):
        of_class = [box["image_id"] for box in plain if box["category_id"] == category_id]
        assert (analysis.boxes[number], analysis.images[number]) == (len(of_class), len({*of_class}))
        assert (analysis.ap[number] == -1) == (not of_class)
    return analysis


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "scene", [*SCENES.values(), EVERY_CLASS_TIED], ids=[*SCENES.keys(), "everything tied"]
)
def test_random_sets_give_what_the_paper_says(tmp_path: Path, scene: Scene, seed: int) -> None:
    draws = np.random.default_rng(seed)
    truth = random_annotations(scene, draws)
    results = random_results(scene, truth, draws)
    analysis = check(write(tmp_path, truth), truth, results)
    if scene == Scene():
        assert min(analysis.counts.values()) > 0
        assert min(analysis.cost.values()) > 0


@pytest.mark.real_data
def test_eval_pair_gives_the_kinds_of_the_paper_s_own_code(test_data: Path) -> None:
    """As tidecv 1.0.1 finds them there, detection by detection."""
    truth_file, results_file = sorted((test_data / "eval_pair").glob("*.json"))
    assert [*explain(score(truth_file, results_file)).counts.values()] == [83, 1, 0, 1, 0, 97]


BOXES = [(1, 5, [10, 10, 40, 40]), (1, 7, [100, 10, 40, 40]), (2, 5, [10, 10, 40, 40]), (2, 7, [9, 99, 9, 9])]


def planted(**changes: Any) -> tuple[Entry, list[Entry]]:
    """Two boxes of each of two classes, each found with the score .8; the changes go into the first one's."""
    fields = ("image_id", "category_id", "bbox")
    boxes = [dict(zip(fields, box, strict=True)) for box in BOXES]
    truth = {
        "images": [{"id": 2}, {"id": 1}],
        "categories": [{"id": 7, "name": "seven"}, {"id": 5}, {"id": 6, "name": None}],
        "annotations": [box | {"iscrowd": 0} for box in boxes],
    }
    found = [box | {"score": 0.8} for box in boxes]
    return truth, [found[0] | changes, *found[1:]]


EXTRA = {"image_id": 1, "category_id": 5, "score": 0.9}
NEAR, SHORT = EXTRA | {"bbox": [10, 10, 40, 39]}, EXTRA | {"bbox": [10, 10, 40, 12]}
HALF = 51 / 101  # AP of one box of two, found by the best detection: the recall levels up to .5


@pytest.mark.parametrize(
    ("kind", "changes", "extra", "cost"),
    [
        # In the halves below: what AP50 the class 5 has, and the class 7.
        ("background", {}, EXTRA | {"bbox": [300, 300, 40, 40]}, 1 - (2 / 3 + 1) / 2),
        ("both", {}, EXTRA | {"bbox": [100, 10, 40, 10]}, 1 - (2 / 3 + 1) / 2),
        ("duplicate", {"score": 0.95}, NEAR, 1 - (HALF + (1 - HALF) * 2 / 3 + 1) / 2),
        ("localization", {"bbox": [10, 10, 40, 12], "score": 0.9}, None, 1 - (HALF / 2 + 1) / 2),
        # Fixed, it and the right one are not both counted: the higher score stays.
        ("localization", {}, SHORT, 1 - (2 / 3 + 1) / 2),
        ("localization", {}, SHORT | {"score": 0.1}, 0.0),
        ("classification", {"category_id": 7, "score": 0.9}, None, 1 - (HALF + 2 / 3) / 2),
        ("classification", {"category_id": 6, "score": 0.9}, None, 1 - (HALF + 1) / 2),
        ("missed", None, None, 1 - (HALF + 1) / 2),
    ],
)
def test_one_planted_error(
    tmp_path: Path, kind: str, changes: Entry | None, extra: Entry | None, cost: float
) -> None:
    truth, results = planted(**changes or {})
    results = results[changes is None :] + ([extra] if extra else [])
    analysis = check(write(tmp_path, truth), truth, results)
    assert analysis.names == ["5", "6", "seven"]
    assert analysis.counts == dict.fromkeys(KINDS, 0) | {kind: 1}
    assert analysis.cost == pytest.approx(dict.fromkeys(KINDS, 0) | {kind: cost})


def test_confusion_says_what_a_box_was_taken_for(tmp_path: Path) -> None:
    truth, results = planted(category_id=7, score=0.9)
    wrong = {"image_id": 1, "bbox": [10, 10, 40, 40], "category_id": 6}
    results += [wrong | {"score": 0.7}, wrong | {"score": SHOWN_SCORE - 0.01}]
    confusion = check(write(tmp_path, truth), truth, results).confusion  # of 5, 6, 7 and background
    assert confusion.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 2, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("emptied", [(), ("annotations",), ("annotations", "categories", "images")])
def test_where_there_is_nothing_nothing_breaks(tmp_path: Path, emptied: tuple[str, ...]) -> None:
    truth, results = planted()
    truth |= {section: [] for section in emptied}
    for given in ([], [] if "images" in emptied else results):
        check(write(tmp_path, truth), truth, given)
    missed = {"missed": 1.0} if not emptied else {}
    assert explain(score(write(tmp_path, truth), [])).cost == dict.fromkeys(KINDS, 0.0) | missed
