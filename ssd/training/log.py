"""What a run writes for people to look at, from metrics.jsonl to report.html, and the meters behind it."""

import errno
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ssd.batches import IMAGENET_MEAN, IMAGENET_STD, TrainBatch
from ssd.boxes import IMAGE_SIZE, cxcywh_to_ltrb, decode_offsets, default_boxes
from ssd.categories import Categories
from ssd.checkpoint import package_versions
from ssd.cli import as_plain, as_yaml, by_full_key, writing
from ssd.config import OnError, TrainConfig
from ssd.console import RunConsole
from ssd.errors import UserError
from ssd.evaluation.coco import NAMES, RECALL_LEVELS, Scored
from ssd.evaluation.errors import explain
from ssd.image import draw_boxes, grid, outline
from ssd.training.session import Session

REPORT_SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
REPORT_TIMEOUT_S = 600.0  # for the last report; on COCO it takes up to a minute
SHOWN_CLASSES = 100  # in TensorBoard: nobody looks at more
SCORE_EDGES = np.linspace(0, 1, 51)


class RunLog:
    """Writes the records of a run to its folder, on rank 0 only. Continues after `first_step` steps.

    Later records, and with redo_evaluation the evaluation at that step, will be written again, so
    metrics.jsonl and TensorBoard drop them. A record that can't be written raises UserError or, with
    checkpoint.on_error=continue, is reported and lost.
    """

    def __init__(
        self, folder: Path, config: TrainConfig, first_step: int, redo_evaluation: bool, console: RunConsole
    ) -> None:
        self._folder, self._config, self._first_step, self._console = folder, config, first_step, console
        with writing(folder, "hydra.run.dir"):
            cut_records(folder / "metrics.jsonl", first_step, redo_evaluation)
            self._board = SummaryWriter(str(folder), purge_step=first_step + 1 - redo_evaluation)

    def start(self, facts: Mapping[str, str]) -> None:
        """Write how the run was started to run.log and starts.jsonl, and its config to config.yaml.

        facts: the rows of the start-up table, also for starts.jsonl. TensorBoard gets the config as text, and
        as hyperparameters, by which its HPARAMS tab filters runs and shows their latest numbers.
        """
        versions = {"Python": platform.python_version()} | package_versions()
        known = {
            "started": f"{datetime.now():%F %T}",
            "after step": self._first_step,
            "command": shlex.join(sys.argv),
            "seed": self._config.seed,
            "commit": _commit(),
            "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
            "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        }
        text = as_yaml(self._config)
        with writing(self._folder, "hydra.run.dir"):
            self._console.copy_to(self._folder / "run.log", f"{known['started']} {known['command']}")
            with (self._folder / "starts.jsonl").open("a", encoding="utf-8") as file:
                print(json.dumps({**known, **facts}), file=file)
            (self._folder / "config.yaml").write_text(text, encoding="utf-8")
        with self._writing() as board:
            board.add_text("config", f"```yaml\n{text}```", self._first_step)
            keys = {
                key: value if isinstance(value, bool | int | float | str) else str(value)
                for key, value in by_full_key(as_plain(self._config)).items()
            }
            names, values, _ = hparams(keys, {f"evaluation/{name}": 0.0 for name in NAMES})
            for summary in (names, values):  # the third would mark the run as finished
                board._get_file_writer().add_summary(summary)
            board.flush()

    def record(self, group: str, record: dict[str, Any]) -> None:
        """Write a record, which has a `step`; its other values become TensorBoard scalars named group/key."""
        with self._writing():
            append_record(self._folder / "metrics.jsonl", record)
        with self._writing() as board:
            for key, value in record.items():
                if key != "step":
                    board.add_scalar(f"{group}/{key}", value, record["step"])

    def picture(self, group: str, name: str, picture: Image.Image, step: int) -> None:
        """Save a picture as pictures/step_NNNNNNNN/name.jpg and show it in TensorBoard as group/name."""
        path = self._folder / "pictures" / f"step_{step:08d}" / f"{name}.jpg"
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90, subsampling=0)  # with subsampling, thin coloured lines would bleed
        with self._writing() as board:
            board.add_image(f"{group}/{name}", np.asarray(picture), step, dataformats="HWC")

    def detections(self, detections: NDArray[np.void], step: int) -> None:
        """Save the best evaluation's detections, an array of RESULT, as detections_NNNNNNNN.npy."""
        path = self._folder / f"detections_{step:08d}.npy"
        with self._writing():
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, detections, allow_pickle=False)
            temporary.replace(path)
            for other in {*self._folder.glob("detections_*.npy")} - {path}:
                other.unlink()

    def analysis(self, scored: Scored, step: int) -> None:
        """Show in TensorBoard where detections fail, for up to SHOWN_CLASSES classes with the most boxes.

        A failure of the analysis is reported and doesn't end the run.
        """
        try:
            analysis = explain(scored)
        except Exception as error:
            self._console.say(f"the errors after step {step} can't be analysed for TensorBoard: {error!r}")
            return
        classes = np.argsort(-analysis.boxes, kind="stable")[:SHOWN_CLASSES]
        with self._writing() as board:
            for row in classes[analysis.boxes[classes] > 0].tolist():
                name, boxes = analysis.names[row], analysis.boxes[row]
                board.add_scalar(f"class_AP/{name}", analysis.ap[row], step)
                precision = analysis.precision[0, ::-1, row]
                right = np.where(precision > 0, np.maximum(np.ceil(RECALL_LEVELS[::-1] * boxes), 1), 0)
                wrong = right / np.where(precision > 0, precision, 1) - right
                counts = (right, wrong, np.zeros_like(right), boxes - right)
                curve = (*counts, precision, RECALL_LEVELS[::-1])
                board.add_pr_curve_raw(f"class/{name}", *curve, step, len(precision))
            for kind, cost in analysis.cost.items():
                board.add_scalar(f"AP50_lost_to/{kind}", cost, step)
            if len(analysis.detections):
                board.add_histogram("scores", analysis.detections["score"], step, bins=SCORE_EDGES)

    def close(self) -> None:
        """Write what is pending, and close."""
        with self._writing() as board:
            board.close()

    @contextmanager
    def _writing(self) -> Iterator[SummaryWriter]:
        """Yield TensorBoard's writer; handle failed writes in the block as checkpoint.on_error says."""
        try:
            yield self._board
        except OSError as error:
            # The writer's thread may have died with its file: the next event opens a new file.
            self._board.all_writers = None
            message = f"{self._folder}: records can't be written ({error.strerror or error})"
            if self._config.checkpoint.on_error is OnError["fail"]:
                raise UserError(f"{message}; make room, or give checkpoint.on_error=continue") from error
            self._console.say(f"{message}; training goes on (checkpoint.on_error=continue)")


def _commit() -> str:
    """Return the commit of this code, marked if it was modified, or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run([*command, "--abbrev=40"], capture_output=True, text=True, check=False).stdout
    except OSError:  # no git here
        found = ""
    return found.strip() or "unknown"


def last_evaluation(folder: Path) -> dict[str, float]:
    """Return AP, AP50 and step of the last evaluation in a run's metrics.jsonl; {} if there is none."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    record: dict[str, float] = next((json.loads(line) for line in reversed(lines) if '"AP50"' in line), {})
    return {key: record[key] for key in ("AP", "AP50", "step") if record}


class ReportMaker:
    """Makes report.html in a separate process, one at a time, if it is wanted.

    The process uses no GPU, has low priority and logs to report.log. A failure is reported and ends nothing.
    """

    def __init__(self, session: Session, wanted: bool) -> None:
        self._session, self._wanted = session, wanted
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Start making the report, unless one is being made."""
        folder = self._session.folder
        if not self._wanted or self._is_working():
            return
        self.close()
        quoted = str(folder).replace('"', '\\"')  # for Hydra
        command = ["nice", "-n", "10", sys.executable, str(REPORT_SCRIPT), f'run="{quoted}"']
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            with (folder / "report.log").open("wb") as log:
                self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        except OSError as error:
            self._session.console.say(f"report.html can't be made: {error}")

    def _is_working(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def finish(self) -> None:
        """Make the final report and wait for it, until a signal arrives or REPORT_TIMEOUT_S is over."""
        self.close()
        self.begin()
        deadline = time.monotonic() + REPORT_TIMEOUT_S
        while self._is_working() and not self._session.signals.received and time.monotonic() < deadline:
            self._session.watchdog.alive()
            time.sleep(0.1)

    def close(self) -> None:
        """Stop a report that is still being made; say so if one has failed."""
        process, self._process = self._process, None
        if process and process.poll() is None:
            process.terminate()
            process.wait()
        elif process and process.returncode:
            path = self._session.folder / "report.log"
            self._session.console.say(
                f"report.html wasn't made, exit status {process.returncode}; {path} says why"
            )


def cut_records(path: Path, first_step: int, redo_evaluation: bool = False) -> None:
    """Remove from metrics.jsonl what a run that continues after `first_step` steps will write again.

    These are the records of later steps, with redo_evaluation also the evaluation at that step, and a last
    line that a killed process left incomplete.
    """
    if not path.exists():
        return
    size = 0
    for line in path.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        record = json.loads(line)
        step = record["step"]
        if step > first_step or (step == first_step and redo_evaluation and "AP" in record):
            break
        size += len(line)
    os.truncate(path, size)


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Append a record to metrics.jsonl as one line, with null for NaN and infinity.

    Raises OSError if the disk doesn't take all of it; no partial line is left then.
    """
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    line = json.dumps(finite, allow_nan=False).encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        if file.write(line) < len(line):
            file.truncate(size)
            raise OSError(errno.ENOSPC, "No space left on device")
        os.fsync(file.fileno())  # a checkpoint that survives a power cut relies on it


class LossMeter:
    """Sums, on the device, of both parts of the loss over the steps taken, and the number of these steps.

    sums: 3 float32. They are part of checkpoints, so that a resumed run writes the same records.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device)

    def add(self, parts: Tensor, taken: Tensor) -> None:
        """Add one step. parts: 2 values, localisation and confidence. taken: a bool on the device."""
        counted = torch.cat([parts, torch.ones_like(parts[:1])])
        self.sums += torch.where(taken, counted, 0.0)


class Stopwatch:
    """Measures an interval of training, and how much of it is spent waiting for data.

    steps: taken in the interval, counted by the caller.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new interval, so that what came before (an evaluation, say) doesn't count."""
        self._start, self._waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the block as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Return the seconds per step and the share of them spent waiting for data."""
        elapsed = time.perf_counter() - self._start
        return elapsed / self.steps, self._waited / elapsed


def batch_picture(batch: TrainBatch, categories: Categories, most: int = 8) -> Image.Image:
    """Draw up to `most` images of a batch, with thin matched default boxes and named ground-truth boxes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    boxes = default_boxes()
    pictures = []
    first = (each[:most].cpu() for each in (batch.images, batch.target_offsets, batch.labels))
    for image, offsets, labels in zip(*first, strict=True):
        pixels = ((image.float() * std + mean) * 255).round().clamp(0, 255).byte()  # 3×300×300
        picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        positive = labels > 0
        matched_px = cxcywh_to_ltrb(boxes[positive]) * IMAGE_SIZE
        outline(picture, matched_px.tolist(), labels[positive].tolist())
        decoded_px = cxcywh_to_ltrb(decode_offsets(offsets, boxes)[positive]) * IMAGE_SIZE
        # Many default boxes share a ground-truth box; its decoded copies differ by rounding.
        truth = torch.cat([decoded_px.round(), labels[positive, None]], dim=1).unique(dim=0).int()
        truth_labels = truth[:, 4].tolist()
        names = [categories.name_of(label) for label in truth_labels]
        draw_boxes(picture, truth[:, :4].tolist(), truth_labels, names)
        pictures.append(picture)
    return grid(pictures)
