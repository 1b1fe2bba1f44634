"""Measure start-up beyond the imports: python scripts/benchmark_startup.py DIR (see make_large_set.py).

Ours is train.py's input up to its first batch, with data.check=off: the first start parses both annotation
files, the second maps the cache. Beside it stand DALI's own COCO reader up to its first batch, and
pycocotools' COCO class, which makes no batch. They start in turns, each in a process of its own; medians are
printed. On a busy machine CPU seconds, of all threads, are the steadier figure.

Memory is what a process has allocated beyond its imports, at its highest (RssAnon, read from outside 200
times a second). Pages of mapped files are not in it: the system can drop them, and ranks share them.
"""

import argparse
import contextlib
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.pipeline import Pipeline
from pycocotools.coco import COCO
from rich.console import Console
from rich.table import Table

from data.build import open_training
from ssd.config import Check, DataConfig, Device, Precision, RuntimeConfig, TrainConfig
from ssd.training.session import open_session

BATCH_SIZE = 32
SAMPLE_S = 0.005


@dataclass(frozen=True)
class Start:
    """One start of one contender: seconds on the clock and of CPU time, and megabytes at the highest."""

    seconds: float
    cpu_seconds: float
    megabytes: float


def main(arguments: list[str]) -> None:
    """Run the command line; with --contender, be one of the measured processes."""
    parser = argparse.ArgumentParser(description="Measure start-up beyond the imports.")
    parser.add_argument("folder", type=coco_folder, metavar="DIR", help="data set in COCO layout")
    parser.add_argument("--rounds", type=rounds, default=3, help="starts of each, default %(default)s")
    parser.add_argument(
        "--skip", nargs="+", default=[], choices=CONTENDERS, help="pycocotools needs 3 GB a times of COCO"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.contender is None:
        Console().print(_table(_measure_all(options.folder, options.rounds, options.skip)))
    else:
        print("ready", flush=True)
        sys.stdin.readline()
        start, cpu_start = time.perf_counter(), time.process_time()
        CONTENDERS[options.contender](options.folder, options.cache)
        print(time.perf_counter() - start, time.process_time() - cpu_start)


def coco_folder(text: str) -> Path:
    """Read a data set's folder on the command line."""
    data = DataConfig(path=text)
    for file in (data.locate("train_annotations"), data.locate("val_annotations")):
        if not file.is_file():
            raise argparse.ArgumentTypeError(f"{text!r} is not in COCO layout: {file} does not exist")
    return Path(text)


def rounds(text: str) -> int:
    """Read a number of rounds on the command line."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 on")
    return int(text)


def open_ours(folder: Path, cache: Path) -> None:
    """Take train.py's way to its first batch."""
    config = TrainConfig(
        name="startup",
        data=DataConfig(path=str(folder), batch_size=BATCH_SIZE, check=Check.off, cache=str(cache)),
        runtime=RuntimeConfig(device=Device.cpu, precision=Precision.fp32),
    )
    with open_session(config, cache) as session:
        task, _ = open_training(config, None, session)
        next(task.loader.batches(0))


def open_dali(folder: Path, _: Path) -> None:
    """Build DALI's reader and run its first batch: decoded and resized, nothing else."""
    pipeline = Pipeline(batch_size=BATCH_SIZE, num_threads=1, device_id=None)
    with pipeline:
        outputs = fn.readers.coco(
            file_root=str(folder / "train2017"),
            annotations_file=str(folder / "annotations" / "instances_train2017.json"),
            skip_empty=True,
            ratio=True,
            ltrb=True,
        )
        encoded, boxes_ltrb, labels = cast(list[DataNode], outputs)
        images = fn.resize(fn.decoders.image(encoded), size=[300, 300])
        pipeline.set_outputs(images, boxes_ltrb, labels)
    pipeline.run()


def open_pycocotools(folder: Path, _: Path) -> None:
    """Open the training annotations."""
    with contextlib.redirect_stdout(sys.stderr):  # it talks
        COCO(str(folder / "annotations" / "instances_train2017.json"))


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "ours": open_ours,
    "DALI": open_dali,
    "pycocotools": open_pycocotools,
}


def _measure_all(folder: Path, rounds: int, skipped: list[str]) -> dict[str, list[Start]]:
    """Start each contender so many times, in turns, so that a noisy machine hits all of them."""
    starts: dict[str, list[Start]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            for row, contender in (
                ("ours, first start", "ours"),
                ("ours, second start", "ours"),
                ("DALI's COCO reader", "DALI"),
                ("pycocotools' COCO class", "pycocotools"),
            ):
                if contender not in skipped:
                    starts.setdefault(row, []).append(_measure(contender, folder, Path(cache)))
    return starts


def _measure(contender: str, folder: Path, cache: Path) -> Start:
    """Start a process, let it import, and watch its memory while it opens the data."""
    command = [sys.executable, __file__, str(folder), "--contender", contender, "--cache", str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has imported
        before = highest = _anonymous_megabytes(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        while not select.select([process.stdout], [], [], SAMPLE_S)[0]:
            highest = max(highest, _anonymous_megabytes(process.pid))
        figures = process.stdout.readline().split()
    if process.returncode:
        raise SystemExit(f"error: {contender} ended with status {process.returncode}, see above")
    seconds, cpu_seconds = map(float, figures)
    return Start(seconds, cpu_seconds, highest - before)


def _anonymous_megabytes(pid: int) -> float:
    """Return what a process has allocated and touched, its mapped files left out."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^RssAnon:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0  # a process that has ended has no such line


def _table(starts: dict[str, list[Start]]) -> Table:
    columns = ("start", "seconds", "lowest", "highest", "CPU seconds", "MB")
    table = Table(*columns, title="beyond the imports, medians")
    for row, each in starts.items():
        seconds = [start.seconds for start in each]
        cpu_seconds = statistics.median(start.cpu_seconds for start in each)
        megabytes = statistics.median(start.megabytes for start in each)
        figures = (statistics.median(seconds), min(seconds), max(seconds), cpu_seconds)
        table.add_row(row, *(f"{value:.2f}" for value in figures), f"{megabytes:.0f}")
    return table


if __name__ == "__main__":
    main(sys.argv[1:])
