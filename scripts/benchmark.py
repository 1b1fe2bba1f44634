"""Measure training here: python scripts/benchmark.py data.path=DIR benchmark.of=… and any key of train.py.

step     the trainer's own step, with loading and checks, against a bare one: forward, loss, backward and
         optimizer on one batch that is already loaded. Also the share of a step spent waiting for data, the
         kernels that a step launches, and how often the host waits for the device in it
saving   steps while a checkpoint is written in the background, against steps without
startup  from the end of the imports to the first batch; with data.cache, the second call reads the cache
scoring  the 12 numbers of made-up detections on the validation split, against pycocotools
make     no measurement: writes a made-up data set of COCO's size to data.path

The two sides of a comparison alternate in one process, so that a noisy machine affects both. Medians over
the rounds and the spread of the ratios within them are printed; benchmark.out=FILE writes them as JSON. More
keys: benchmark.rounds=10, benchmark.steps=4 of each side per round, benchmark.warmup=3 before the first one.
"""

import contextlib
import io
import json
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch.autograd import DeviceType

from data.build import open_training
from ssd.batches import TrainBatch
from ssd.cli import check_file, run
from ssd.config import DataConfig, TrainConfig
from ssd.errors import UserError, require
from ssd.evaluation.coco import NAMES, coco_numbers
from ssd.evaluation.evaluator import write_report
from ssd.training.session import open_session
from ssd.training.state import blank_network
from ssd.training.trainer import Trainer

READ_AHEAD = 2  # batches; the default prefetch depth of DALI's pipeline
PROFILED_STEPS = 3
HOST_WAITS = {  # by device; on a CPU nothing waits, so count the operator that would wait on a GPU
    "cuda": ("cudaStreamSynchronize", "cudaEventSynchronize"),
    "cpu": ("aten::_local_scalar_dense",),
}
DETECTIONS_PER_IMAGE = 100

Figures = dict[str, float]
Work = Callable[[int], None]  # runs this many steps
Subject = Enum("Subject", ["step", "saving", "startup", "scoring", "make"])


@dataclass
class Measurement:
    """What to measure and for how long: rounds, steps of each side per round, steps before the first."""

    of: Subject = Subject.step
    rounds: int = 10
    steps: int = 4
    warmup: int = 3
    out: str | None = None

    def __post_init__(self) -> None:
        for key, limit in (("rounds", 2), ("steps", 1), ("warmup", 1)):  # a spread needs 2 rounds
            value = getattr(self, key)
            require(value >= limit, f"benchmark.{key}", value, f"give at least {limit}")


@dataclass
class BenchmarkConfig(TrainConfig):
    """A training run and what to measure in it."""

    benchmark: Measurement = field(default_factory=Measurement)


def main(config: BenchmarkConfig) -> None:
    """Measure, then print and write the figures."""
    plan, figures = config.benchmark, Figures()
    check_file(plan.out, "benchmark.out")
    if plan.of is Subject.make:
        make_set(config.data)
    elif plan.of is Subject.scoring:
        figures = measure_scoring(config.data.locate("val_annotations"), plan.rounds)
    else:
        folder = Path(HydraConfig.get().runtime.output_dir)
        # On the run's disk, but outside its folder, so that no run resumes from these checkpoints.
        with TemporaryDirectory(prefix="benchmark-", dir=folder.parent) as temporary:
            figures = measure_training(config, Path(temporary))
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    if figures and plan.out is not None:
        write_report(plan.out, "benchmark.out", figures)


def measure_training(config: BenchmarkConfig, folder: Path) -> Figures:
    """Open a training run and measure part of it; return the figures on rank 0, none on other ranks."""
    plan = config.benchmark
    start, start_kb = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_session(config, folder) as session:
        task, _ = open_training(config, None, session)
        batches = task.loader.batches(0)
        if plan.of is Subject.startup:
            next(batches)
            grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kb
            figures = {"seconds to the first batch": time.perf_counter() - start}
            figures["MB beyond the imports"] = grown_kb / 1000
        else:
            network = blank_network(config.model, task.categories.num_classes, config.seed)
            trainer = Trainer(config, network, task, session)
            trainer.network.train()
            trainer.console.start(0, trainer.last_step)
            measure = measure_step if plan.of is Subject.step else measure_saving
            figures = measure(trainer, batches, plan)
        return figures if session.ranks.is_main else {}


def measure_step(trainer: Trainer, batches: Iterator[TrainBatch], plan: Measurement) -> Figures:
    """Time the trainer's step, a bare step and the loader alone; count what a step launches."""
    batch, step, agreed = next(batches), trainer.train_step, trainer.agreed(batches)

    def ours(count: int) -> None:
        for _ in range(count):
            trainer.take_step(next(agreed))

    def bare(count: int) -> None:
        for _ in range(count):
            with step.runtime.autocast():
                offsets, logits = step.model(step.runtime.arrange(batch.images))
            loss = step.loss(offsets, logits, batch.target_offsets, batch.labels)
            step.scaler.scale(loss).backward()
            step.scaler.step(step.optimizer)
            step.scaler.update()
            step.optimizer.zero_grad()

    def load(count: int) -> None:
        for _ in range(count):
            next(batches)

    ours(plan.warmup)
    bare(plan.warmup)
    ours_s, bare_s = in_turns(trainer, plan, ours, bare)
    trainer.stopwatch.restart()
    ours(plan.steps)
    trainer.guard.read()
    _, waited = trainer.stopwatch.read()
    load(READ_AHEAD)  # batches that are ready already would seem to load in no time
    (load_s,) = in_turns(trainer, plan, load)
    time.sleep(1 + READ_AHEAD * statistics.median(load_s))  # until DALI's own kernels have finished
    launches = count_launches(lambda: step(batch, trainer.step, trainer.learning_rate), step.runtime.device)
    return {
        "seconds of the trainer's step": statistics.median(ours_s),
        "seconds of a bare step": statistics.median(bare_s),
        **spread("overhead as a share of a step", [1 - b / a for a, b in zip(ours_s, bare_s, strict=True)]),
        "share of a step waiting for data": waited,
        "images a second": trainer.global_batch / statistics.median(ours_s),
        "images a second of the loader alone": trainer.global_batch / statistics.median(load_s),
        **launches,
    }


def count_launches(step: Callable[[], object], device: torch.device) -> Figures:
    """Profile a step that loads nothing; count host waits and kernels (on a CPU, innermost operators)."""
    step()
    with torch.profiler.profile() as profile:
        for _ in range(PROFILED_STEPS):
            step()
    events = profile.events() or []
    if device.type == "cuda":
        name, on_gpu = "kernels a step", [event for event in events if event.device_type is DeviceType.CUDA]
        kernels = [event for event in on_gpu if not event.is_user_annotation and event.name[:3] != "Mem"]
    else:
        name = "operators a step"
        kernels = [event for event in events if event.name.startswith("aten::") and not event.cpu_children]
    waits = [event for event in events if event.name in HOST_WAITS[device.type]]
    return {name: len(kernels) / PROFILED_STEPS, "host waits a step": len(waits) / PROFILED_STEPS}


def measure_saving(trainer: Trainer, batches: Iterator[TrainBatch], plan: Measurement) -> Figures:
    """Measure how much longer steps take while a checkpoint is written, and the time to copy the state."""
    copies_s: list[float] = []
    agreed = trainer.agreed(batches)

    def plain(count: int) -> None:
        for _ in range(count):
            trainer.take_step(next(agreed))

    def beside_a_save(count: int) -> None:
        start = time.perf_counter()
        trainer.save()
        copies_s.append(time.perf_counter() - start)
        plain(count)

    plain(plan.warmup)
    beside_s, plain_s = in_turns(trainer, plan, beside_a_save, plain)
    return {
        "seconds of a step without saving": statistics.median(plain_s),
        **spread("step time while saving / without", [a / b for a, b in zip(beside_s, plain_s, strict=True)]),
        "seconds to copy the state": statistics.median(copies_s),
    }


def in_turns(trainer: Trainer, plan: Measurement, *works: Work) -> list[list[float]]:
    """Time all works in each round, reversing their order every round; return seconds a step[work][round]."""
    seconds: list[list[float]] = [[] for _ in works]
    for turn in range(plan.rounds):
        sides = list(zip(works, seconds, strict=True))
        for work, taken in sides if turn % 2 == 0 else reversed(sides):
            trainer.saver.wait()  # for a save that the previous side started
            trainer.guard.read()  # reading a value from the device waits for everything queued on it
            start = time.perf_counter()
            work(plan.steps)
            trainer.guard.read()
            taken.append((time.perf_counter() - start) / plan.steps)
    return seconds


def spread(name: str, values: list[float]) -> Figures:
    """Return the median, quartiles and extremes, each under its own name."""
    low, median, high = statistics.quantiles(values, n=4)
    extremes = {f"{name}, lowest": min(values), f"{name}, highest": max(values)}
    return {name: median, f"{name}, lower quartile": low, f"{name}, upper quartile": high, **extremes}


def measure_scoring(annotations: Path, rounds: int) -> Figures:
    """Return the seconds of both sides. Raises UserError if their numbers differ in any bit."""
    detections = made_up_detections(json.loads(annotations.read_bytes()))
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        numbers = []
        for name, score in (("coco_numbers", coco_numbers), ("pycocotools", pycocotools_numbers)):
            given = [dict(detection) for detection in detections]  # pycocotools changes them
            start = time.perf_counter()
            numbers.append(score(annotations, given))
            seconds[name].append(time.perf_counter() - start)
        if numbers[0] != numbers[1]:
            raise UserError(f"{annotations}: coco_numbers gives {numbers[0]}, pycocotools {numbers[1]}")
    return {f"seconds of {name}": statistics.median(taken) for name, taken in seconds.items()}


def made_up_detections(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Make the same number of detections for each image: its boxes, moved a little, then random boxes."""
    rng = np.random.default_rng(0)
    categories = [category["id"] for category in truth["categories"]]
    moved = defaultdict(list)
    for annotation in truth["annotations"]:
        box_ltwh_px = rng.normal(annotation["bbox"], 4.0).tolist()
        moved[annotation["image_id"]].append((annotation["category_id"], box_ltwh_px))
    detections = []
    for image in truth["images"]:
        boxes_ltwh_px = (rng.random((DETECTIONS_PER_IMAGE, 4)) * 300).tolist()
        at_random = zip(rng.choice(categories, DETECTIONS_PER_IMAGE).tolist(), boxes_ltwh_px, strict=True)
        for category, box in [*moved[image["id"]], *at_random][:DETECTIONS_PER_IMAGE]:
            found = {"image_id": image["id"], "category_id": category, "bbox": box, "score": rng.random()}
            detections.append(found)
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


def make_set(data: DataConfig) -> None:
    """Write a set with COCO's counts and bytes a box; every image's file is a link to one picture."""
    rng = np.random.default_rng(0)
    polygons = [(rng.random(2 * (3 + int(n))) * 480).round(2).tolist() for n in rng.exponential(22, 4096)]
    categories = [{"supercategory": "thing", "id": key, "name": f"class {key}"} for key in range(1, 81)]
    for split, count, boxes in (("train", 118_287, 860_001), ("val", 5_000, 36_781)):
        folder, file = data.locate(f"{split}_images"), data.locate(f"{split}_annotations")
        if folder.exists():
            raise UserError(f"{folder} exists; give a new folder, data.path=DIR")
        folder.mkdir(parents=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = folder.absolute().with_suffix(".jpg")
        Image.effect_noise((640, 480), 40).convert("RGB").save(picture)
        images, annotations = [], []
        for key in range(1, count + 1):
            name = f"{key:012d}.jpg"
            (folder / name).symlink_to(picture)
            url = f"http://images.cocodataset.org/{split}2017/{name}"
            images.append({"id": key, "file_name": name, "coco_url": url, "width": 640, "height": 480})
        image_ids = rng.integers(1, count, boxes, endpoint=True).tolist()
        boxes_ltwh_px = (rng.random((boxes, 4)) * (320, 240, 320, 240)).round(2).tolist()
        for number, (image_id, box) in enumerate(zip(image_ids, boxes_ltwh_px, strict=True)):
            entry = {"segmentation": [polygons[number % len(polygons)]], "area": box[2] * box[3]}
            entry |= {"iscrowd": int(number % 83 == 0), "image_id": image_id, "bbox": box}
            annotations.append(entry | {"category_id": number % 80 + 1, "id": number + 1})
        content = {"categories": categories, "images": images, "annotations": annotations}
        file.write_text(json.dumps(content))


if __name__ == "__main__":
    run(main, BenchmarkConfig, Path(__file__).parent.parent / "conf", "train")
