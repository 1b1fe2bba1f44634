"""Measure the 12 numbers against pycocotools: python scripts/benchmark_evaluation.py ANNOTATIONS.json

The detections are made here, so many an image: first each box of the image, moved a little, then boxes at
random. Both sides get them as the list that a results file holds, in turns, and must agree to the last bit.
"""

import argparse
import contextlib
import copy
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table

from ssd.errors import UserError
from ssd.evaluation.coco import NAMES, coco_numbers

Detections = list[dict[str, Any]]


def main() -> None:
    """Run the command line; exit with 1 where the two sides differ."""
    parser = argparse.ArgumentParser(description="Measure the 12 numbers against pycocotools.")
    parser.add_argument("annotations", type=Path, help="COCO annotation file, of 5,000 images, say")
    parser.add_argument("--detections", type=int, default=100, help="an image, default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, default %(default)s")
    options = parser.parse_args()
    if options.detections < 1 or options.rounds < 1:
        parser.error("--detections and --rounds begin at 1")
    try:
        truth = json.loads(options.annotations.read_text(encoding="utf-8-sig"))
        detections = made_up(truth, options.detections)
        ours, theirs = in_turns(options.annotations, detections, options.rounds)
    except (OSError, ValueError, KeyError, UserError) as error:
        raise SystemExit(f"error: {options.annotations}: {error!r}; give a COCO annotation file") from None
    table = Table("", "seconds, median", "lowest", "highest")
    for name, (seconds, _) in {"coco_numbers": ours, "pycocotools": theirs}.items():
        table.add_row(name, *(f"{f(seconds):.2f}" for f in (statistics.median, min, max)))
    Console().print(table)
    equal = ours[1] == theirs[1]
    print(f"{len(truth['images'])} images, {len(detections)} detections; equal to the last bit: {equal}")
    raise SystemExit(not equal)


def made_up(truth: dict[str, Any], per_image: int) -> Detections:
    """Make detections; the same file gives the same ones."""
    chance = np.random.default_rng(0)
    categories = [category["id"] for category in truth["categories"]]
    boxes = defaultdict(list)
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append((annotation["category_id"], annotation["bbox"]))
    detections = []
    for image in truth["images"]:
        at_random = np.sort(chance.uniform(0, 1, (per_image, 2, 2)), axis=1) * (
            image["width"],
            image["height"],
        )
        picked = chance.choice(categories, per_image)
        found = [(category, list(chance.normal(box, 4.0))) for category, box in boxes[image["id"]]]
        found += [
            (int(category), [*first, *(last - first)])
            for category, (first, last) in zip(picked, at_random, strict=True)
        ]
        scores = chance.uniform(0.05, 1, per_image)
        detections += [
            {
                "image_id": image["id"],
                "category_id": c,
                "bbox": [float(v) for v in box],
                "score": float(score),
            }
            for (c, box), score in zip(found[:per_image], scores, strict=True)
        ]
    return detections


def in_turns(
    annotations: Path, detections: Detections, rounds: int
) -> list[tuple[list[float], dict[str, float]]]:
    """Let both sides score the detections, in each round; return each side's seconds and its numbers."""
    sides: list[Callable[[Path, Detections], dict[str, float]]] = [coco_numbers, pycocotools_numbers]
    seconds: list[list[float]] = [[] for _ in sides]
    numbers: list[dict[str, float]] = [{} for _ in sides]
    for _ in range(rounds):
        for side, work in enumerate(sides):
            given = copy.deepcopy(detections)  # pycocotools writes into them
            start = time.perf_counter()
            numbers[side] = work(annotations, given)
            seconds[side].append(time.perf_counter() - start)
    return list(zip(seconds, numbers, strict=True))


def pycocotools_numbers(annotations: Path, detections: Detections) -> dict[str, float]:
    """Return what pycocotools makes of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(detections), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


if __name__ == "__main__":
    main()
