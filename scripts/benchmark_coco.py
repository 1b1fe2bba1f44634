"""Measure start-up and scoring against DALI's and pycocotools' own code, on annotation files of COCO's size.

    python scripts/benchmark_coco.py make DIR --times 1    a made-up set of COCO's size, or times that
    python scripts/benchmark_coco.py startup DIR           up to the first batch, beyond the imports
    python scripts/benchmark_coco.py scoring DIR           the 12 numbers, which must agree to the last bit

All sides take turns, so that a noisy machine hits each of them; medians are printed.
"""

import argparse
import contextlib
import copy
import io
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from rich.table import Table

from data.build import open_training
from ssd.config import Check, DataConfig, Device, Precision, RuntimeConfig, TrainConfig
from ssd.evaluation.coco import NAMES, coco_numbers
from ssd.training.session import open_session

WIDTH, HEIGHT = 640, 480
BATCH_SIZE = 32


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("subject", choices=("make", "startup", "scoring"))
    parser.add_argument("folder", type=Path, metavar="DIR", help="data set in COCO layout; a new one to make")
    parser.add_argument(
        "--times", type=int, default=1, help="of what is made, by COCO's; default %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each side; default %(default)s")
    parser.add_argument("--detections", type=int, default=100, help="an image; default %(default)s")
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=STARTS, help="pycocotools takes 3 GB for COCO"
    )
    given = parser.parse_args(arguments)
    if min(given.times, given.rounds, given.detections) < 1:
        parser.error("give at least 1 for --times, --rounds and --detections")
    data = DataConfig(path=str(given.folder))
    if given.subject == "make":
        if given.folder.exists():
            parser.error(f"{given.folder} exists: name a new folder")
        return make(data, given.times)
    for file in (data.locate("train_annotations"), data.locate("val_annotations")):
        if not file.is_file():
            parser.error(f"{given.folder} is not in COCO layout: {file} does not exist")
    if given.subject == "startup":
        return measure_startup(data, given.rounds, given.skip)
    return measure_scoring(data.locate("val_annotations"), given.detections, given.rounds)


def make(data: DataConfig, times: int) -> None:
    """Write a set with COCO's counts and bytes a box; every image's file is a link to one picture."""
    data.locate("train_annotations").parent.mkdir(parents=True)
    picture = data.locate("train_annotations").parent.absolute() / "picture.jpg"
    Image.effect_noise((WIDTH, HEIGHT), 40).convert("RGB").save(picture)
    categories = [
        {"supercategory": "thing", "id": number, "name": f"class {number}"} for number in range(1, 81)
    ]
    for split, images, with_boxes, boxes in (
        ("train", 118_287 * times, 117_266 * times, 860_001 * times),
        ("val", 5_000, 4_952, 36_781),
    ):
        folder, file = data.locate(f"{split}_images"), data.locate(f"{split}_annotations")
        folder.mkdir()
        entries = []
        for number in range(1, images + 1):
            name = f"{number:012d}.jpg"
            (folder / name).symlink_to(picture)
            url = f"http://images.cocodataset.org/{split}2017/{name}"
            size = {"width": WIDTH, "height": HEIGHT}
            entries.append({"license": 3, "id": number, "file_name": name, "coco_url": url} | size)
        with file.open("w") as out:
            out.write(f'{{"categories": {json.dumps(categories)}, "images": {json.dumps(entries)}')
            for number, entry in enumerate(annotation_entries(images, with_boxes, boxes)):
                out.write((", " if number else ', "annotations": [') + json.dumps(entry))
            out.write("]}")
        print(f"{file}: {images} images, {boxes} boxes, {file.stat().st_size / 1e6:.0f} MB")


def annotation_entries(images: int, with_boxes: int, boxes: int) -> Iterator[dict[str, Any]]:
    """Yield annotations in no order of their images, as in COCO's files; a few in ten thousand are empty."""
    rng = np.random.default_rng(0)
    polygons = [(rng.random(2 * (3 + int(n))) * HEIGHT).round(2).tolist() for n in rng.exponential(22, 4096)]
    used = rng.permutation(images)[:with_boxes] + 1
    image_ids = rng.permutation(np.concatenate((used, rng.choice(used, boxes - with_boxes))))
    for number, image_id in enumerate(image_ids, start=1):
        width, height = (rng.random(2) ** 2 * (WIDTH, HEIGHT) * (rng.random() > 5e-4)).round(2).tolist()
        left, top = (rng.random(2) * (WIDTH - width, HEIGHT - height)).round(2).tolist()
        yield {
            "segmentation": [polygons[number % len(polygons)]],
            "area": width * height,
            "iscrowd": int(number % 83 == 0),
            "image_id": int(image_id),
            "bbox": [left, top, width, height],
            "category_id": number % 80 + 1,
            "id": number,
        }


def measure_startup(data: DataConfig, rounds: int, skipped: list[str]) -> None:
    """Start everybody in turns, each in a process of its own, and print medians.

    Ours is train.py's input with data.check=off: the first start parses both annotation files, the second
    maps the cache. On a busy machine CPU seconds, of all threads, are the steadier figure. Memory is what a
    process allocates beyond its imports, at its highest; pages of mapped files, which the system can drop and
    ranks share, are not in it.
    """
    starts: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for row, side in (
                ("ours, first start", "ours"),
                ("ours, second start", "ours"),
                ("DALI's COCO reader", "DALI"),
                ("pycocotools' COCO class", "pycocotools"),
            ):
                if side not in skipped:
                    starts[row].append(start(side, data, Path(cache)))
    table = Table("start", "seconds", "lowest", "highest", "CPU seconds", "MB", title="beyond the imports")
    for row, each in starts.items():
        seconds, cpu_seconds, megabytes = zip(*each, strict=True)
        figures = (statistics.median(seconds), min(seconds), max(seconds), statistics.median(cpu_seconds))
        table.add_row(row, *(f"{value:.2f}" for value in figures), f"{statistics.median(megabytes):.0f}")
    Console().print(table)


def start(side: str, data: DataConfig, cache: Path) -> tuple[float, float, float]:
    """Let a process import, then open the data; return its seconds, CPU seconds and megabytes."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=open_data, args=(side, data, cache, there))
    process.start()
    there.close()
    try:
        here.recv()  # it has imported
        before = highest = allocated_mb(process.pid)
        here.send(None)
        while not here.poll(0.005):
            highest = max(highest, allocated_mb(process.pid))
        seconds, cpu_seconds = here.recv()
    except EOFError:
        raise SystemExit(f"error: {side} failed, see above") from None
    process.join()
    return seconds, cpu_seconds, highest - before


def open_data(side: str, data: DataConfig, cache: Path, caller: Connection) -> None:
    """Be the measured process."""
    caller.send(None)
    caller.recv()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    STARTS[side](data, cache)
    caller.send((time.perf_counter() - begin, time.process_time() - cpu_begin))


def open_ours(data: DataConfig, cache: Path) -> None:
    """Take train.py's way to its first batch."""
    config = TrainConfig(
        name="startup",
        data=replace(data, batch_size=BATCH_SIZE, check=Check.off, cache=str(cache)),
        runtime=RuntimeConfig(device=Device.cpu, precision=Precision.fp32),
    )
    with open_session(config, cache) as session:
        task, _ = open_training(config, None, session)
        next(task.loader.batches(0))


def open_dali(data: DataConfig, _: Path) -> None:
    """Build DALI's reader and run its first batch: decoded and resized, nothing else."""
    pipeline = Pipeline(batch_size=BATCH_SIZE, num_threads=1, device_id=None)
    with pipeline:
        read: Any = fn.readers.coco(
            file_root=str(data.locate("train_images")),
            annotations_file=str(data.locate("train_annotations")),
            skip_empty=True,
            ratio=True,
            ltrb=True,
        )
        encoded, boxes_ltrb, labels = read
        images = fn.resize(fn.decoders.image(encoded), size=[300, 300])
        pipeline.set_outputs(images, boxes_ltrb, labels)
    pipeline.run()


def open_pycocotools(data: DataConfig, _: Path) -> None:
    """Open the training annotations."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints
        COCO(str(data.locate("train_annotations")))


STARTS = {"ours": open_ours, "DALI": open_dali, "pycocotools": open_pycocotools}


def allocated_mb(pid: int | None) -> float:
    """Return what a process has allocated and touched, its mapped files left out."""
    found = re.search(r"^RssAnon:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0  # a process that has ended has no such line


def measure_scoring(annotations: Path, per_image: int, rounds: int) -> None:
    """Print how long both sides take; exit with 1 where their numbers differ."""
    truth = json.loads(annotations.read_text(encoding="utf-8-sig"))
    detections = made_up(truth, per_image)
    table = Table("", "seconds, median", "lowest", "highest")
    seconds: dict[str, list[float]] = defaultdict(list)
    numbers = {}
    for _ in range(rounds):
        for name, score in (("coco_numbers", coco_numbers), ("pycocotools", pycocotools_numbers)):
            given = copy.deepcopy(detections)  # pycocotools writes into them
            begin = time.perf_counter()
            numbers[name] = score(annotations, given)
            seconds[name].append(time.perf_counter() - begin)
    for name, taken in seconds.items():
        table.add_row(name, *(f"{figure(taken):.2f}" for figure in (statistics.median, min, max)))
    Console().print(table)
    equal = numbers["coco_numbers"] == numbers["pycocotools"]
    print(f"{len(truth['images'])} images, {len(detections)} detections; equal to the last bit: {equal}")
    raise SystemExit(not equal)


def made_up(truth: dict[str, Any], per_image: int) -> list[dict[str, Any]]:
    """Make detections: an image's boxes, moved a little, then boxes at random; the same for the same file."""
    rng = np.random.default_rng(0)
    categories = [category["id"] for category in truth["categories"]]
    boxes = defaultdict(list)
    for annotation in truth["annotations"]:
        boxes[annotation["image_id"]].append((annotation["category_id"], annotation["bbox"]))
    detections = []
    for image in truth["images"]:
        moved = [(category, rng.normal(box_ltwh_px, 4.0)) for category, box_ltwh_px in boxes[image["id"]]]
        size_px = (image["width"], image["height"])
        corners_px = np.sort(rng.uniform(0, 1, (per_image, 2, 2)), axis=1) * size_px
        at_random = [
            (int(rng.choice(categories)), np.concatenate((left_top, right_bottom - left_top)))
            for left_top, right_bottom in corners_px
        ]
        detections += [
            {"image_id": image["id"], "category_id": category, "bbox": box_ltwh_px.tolist(), "score": score}
            for (category, box_ltwh_px), score in zip(
                [*moved, *at_random][:per_image], rng.uniform(0.05, 1, per_image).tolist(), strict=True
            )
        ]
    return detections


def pycocotools_numbers(annotations: Path, detections: list[dict[str, Any]]) -> dict[str, float]:
    """Return pycocotools' 12 numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(detections), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats.tolist(), strict=True))


if __name__ == "__main__":
    main()
