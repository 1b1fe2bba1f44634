"""What a run leaves to look at, from metrics.jsonl to report.html, and the meters of what is recorded."""

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
from ssd.evaluation.coco import NAMES, RECALL_LEVELS
from ssd.evaluation.errors import Analysis
from ssd.image import draw_boxes, grid, outline
from ssd.training.session import Session

REPORT_SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"
REPORT_TIMEOUT_S = 600.0  # of the last report; COCO's takes a minute
SHOWN_CLASSES = 100  # in TensorBoard: more can't be looked at
SCORE_EDGES = np.linspace(0, 1, 51)
SAME_BOX_PX = 0.25  # far above the rounding, and far below what a picture could show apart


class RunLog:
    """The records of one run in its folder; rank 0 alone has one. It goes on after `first_step` steps.

    redo_evaluation: that step's evaluation will be done again. on_error: what a record that can't be written
    does: raise UserError, or say so and write metrics as soon as that is possible; pictures and TensorBoard's
    events are lost then.
    """

    def __init__(
        self, folder: Path, first_step: int, redo_evaluation: bool, on_error: OnError, console: RunConsole
    ) -> None:
        self._folder, self._first_step, self._on_error, self._console = folder, first_step, on_error, console
        # From then on the first writer of this start has TensorBoard forget what was recorded before.
        self._purge: int | None = first_step + 1 - redo_evaluation
        self._board: SummaryWriter | None = None
        with writing(folder, "hydra.run.dir"):
            self._metrics = MetricsFile(folder / "metrics.jsonl", first_step, redo_evaluation)

    def start(self, config: TrainConfig, facts: Mapping[str, str]) -> None:
        """Write how the run is started, to run.log and starts.jsonl, and the config that it goes on with.

        facts: more for starts.jsonl, the rows of the start-up table. A config that differs from the last
        start's is a text in TensorBoard too; by the first's keys TensorBoard filters runs, and shows the last
        of each number beside them.
        """
        when, command = f"{datetime.now():%F %T}", shlex.join(sys.argv)
        versions = {"Python": platform.python_version()} | package_versions()
        code = {
            "commit": _commit(),
            "machine": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} cores",
            "versions": ", ".join(f"{package} {version}" for package, version in versions.items()),
        }
        known = {"started": when, "after step": self._first_step, "command": command, "seed": config.seed}
        with writing(self._folder, "hydra.run.dir"):
            lines = [f"{key} {value}" for key, value in code.items()]
            self._console.copy_to(self._folder / "run.log", f"{when} {command}", *lines)
            with (self._folder / "starts.jsonl").open("a", encoding="utf-8") as file:
                print(json.dumps({**known, **code, **facts}), file=file)
        path, text = self._folder / "config.yaml", as_yaml(config)
        numbers = {f"evaluation/{name}": 0.0 for name in NAMES}
        with self._writing():
            is_new = not path.exists() or path.read_bytes() != text.encode()
            path.write_text(text, encoding="utf-8")
            if is_new:
                with self._tensorboard() as board:
                    board.add_text("config", f"```yaml\n{text}```", self._first_step)
                    keys = {
                        key: value if isinstance(value, bool | int | float | str) else str(value)
                        for key, value in by_full_key(as_plain(config)).items()
                    }
                    names, values, _ = hparams(keys, numbers)  # the third: the run is over
                    for summary in (names, values):
                        board._get_file_writer().add_summary(summary)
                    board.flush()

    def record(self, group: str, record: dict[str, Any]) -> None:
        """Write a record with its `step`; in TensorBoard each other value is a scalar named group/key."""
        with self._writing():
            self._metrics.write(record)
        with self._writing(), self._tensorboard() as board:
            for key, value in record.items():
                if key != "step":
                    board.add_scalar(f"{group}/{key}", value, record["step"])

    def picture(self, group: str, name: str, picture: Image.Image, step: int) -> None:
        """Save a picture as pictures/step_NNNNNNNN/name.jpg and show it in TensorBoard as group/name."""
        path = self._folder / "pictures" / f"step_{step:08d}" / f"{name}.jpg"
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, quality=90, subsampling=0)  # subsampled colours would bleed out of thin lines
        with self._writing(), self._tensorboard() as board:
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

    def analysis(self, analysis: Analysis, step: int) -> None:
        """Show in TensorBoard where detections fail; of many classes those with the most boxes."""
        classes = np.argsort(-analysis.boxes, kind="stable")[:SHOWN_CLASSES]
        with self._writing(), self._tensorboard() as board:
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
        """Flush and close everything."""
        self._metrics.close()
        if self._board is not None:
            with self._writing():
                self._board.close()

    @contextmanager
    def _tensorboard(self) -> Iterator[SummaryWriter]:
        """Give TensorBoard's writer; one that fails, maybe in its own thread, is replaced the next time."""
        board, self._board = self._board, None
        board, self._purge = board or SummaryWriter(str(self._folder), purge_step=self._purge), None
        yield board
        self._board = board

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            message = f"{self._folder}: records can't be written ({error.strerror or error})"
            if self._on_error is OnError["fail"]:
                raise UserError(f"{message}; make room, or give checkpoint.on_error=continue") from error
            self._console.say(f"{message}; training goes on (checkpoint.on_error=continue)")


def _commit() -> str:
    """Name the commit of this code, and whether it was changed since, where that can be told."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run([*command, "--abbrev=40"], capture_output=True, text=True, check=False).stdout
    except OSError:  # no git here
        found = ""
    return found.strip() or "unknown"


def last_evaluation(folder: Path) -> dict[str, float]:
    """Return AP and AP50 of the last evaluation in a run's metrics.jsonl, and its step; {} without any."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    record: dict[str, float] = next((json.loads(line) for line in reversed(lines) if '"AP50"' in line), {})
    return {key: record[key] for key in ("AP", "AP50", "step") if record}


class ReportMaker:
    """Makes report.html in a process beside training, one at a time; rank 0 alone has one.

    It takes no GPU, gives way to every other process and prints to report.log. A failure is told and ends
    nothing.
    """

    def __init__(self, folder: Path, console: RunConsole) -> None:
        self._folder, self._console = folder, console
        self._process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        """Begin to make it, unless that is going on."""
        if self.is_working():
            return
        quoted = str(self._folder).replace('"', '\\"')  # for Hydra
        command = ["nice", "-n", "10", sys.executable, str(REPORT_SCRIPT), f'run="{quoted}"']
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        try:
            with (self._folder / "report.log").open("wb") as log:
                self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        except OSError as error:
            self._console.say(f"report.html can't be made: {error}")

    def is_working(self) -> bool:
        """Tell whether it is being made; say so once where that has failed."""
        status = self._process.poll() if self._process else 0
        if status:
            path = self._folder / "report.log"
            reason = path.read_text(errors="replace").strip().rpartition("\n")[2] if path.exists() else ""
            self._console.say(f"report.html wasn't made, exit status {status} ({path}): {reason}")
        if status is not None:
            self._process = None
        return self._process is not None

    def finish(self, session: Session) -> None:
        """Make it once more, of the whole run; a signal ends the waiting, as does REPORT_TIMEOUT_S."""
        self.close()
        self.begin()
        deadline = time.monotonic() + REPORT_TIMEOUT_S
        while self.is_working() and not session.signals.received and time.monotonic() < deadline:
            session.watchdog.alive()
            time.sleep(0.1)

    def close(self) -> None:
        """End what is still being made."""
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None


class MetricsFile:
    """metrics.jsonl: one json object a record, in the order of steps, also after a resume."""

    def __init__(self, path: Path, first_step: int, redo_evaluation: bool = False) -> None:
        """Open the file to go on after `first_step` steps; records that will be written again are cut off.

        These are those of later steps and, with redo_evaluation, that step's evaluation; a last line that a
        killed process left half written goes too. Raises UserError naming a line before it that is no record.
        """
        content = path.read_bytes() if path.exists() else b""
        self._size = 0
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                step: int = record["step"]
                if step > first_step or (step == first_step and redo_evaluation and "AP" in record):
                    break
            except (ValueError, KeyError, TypeError) as error:
                fix = f"is no record of a step ({line[:40]!r}…); correct or remove it"
                raise UserError(f"{path}: line {number} {fix}") from error
            self._size += len(line)
        if self._size < len(content):
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(content[: self._size])
            temporary.replace(path)
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, with null for NaN and infinity, after those that could not be written before.

        Raises OSError where the disk doesn't take it; nothing is lost then, and no half line stays.
        """
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        self._unwritten += json.dumps(finite, allow_nan=False).encode() + b"\n"
        self._file.truncate(self._size)
        written = self._file.write(self._unwritten)
        if written != len(self._unwritten):  # the disk took only a part
            self._file.truncate(self._size)
            raise OSError(f"{self._file.name}: {written} of {len(self._unwritten)} bytes were written")
        os.fsync(self._file.fileno())  # a checkpoint that outlives a power cut relies on it
        self._size += written
        self._unwritten = b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LossMeter:
    """Sums of both parts of the loss and the number of steps they are over, for steps taken; on the device.

    sums: 3, float32. They go into checkpoints: a resumed run writes the records of an uninterrupted one.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, device=device)

    def add(self, parts: Tensor, taken: Tensor) -> None:
        """Count one step. parts: 2, localisation and confidence. taken: a bool on the device."""
        counted = torch.cat([parts, torch.ones_like(parts[:1])])
        self.sums += torch.where(taken, counted, 0.0)


class Stopwatch:
    """Time of an interval of training and how much of it went into waiting for data.

    steps: taken in it; whoever takes one counts it.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Start a new interval; what came before (an evaluation, say) isn't counted."""
        self._start, self._waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def read(self) -> tuple[float, float]:
        """Return seconds a step and the share of them that went into waiting for data."""
        elapsed = time.perf_counter() - self._start
        return elapsed / self.steps, self._waited / elapsed


def batch_picture(batch: TrainBatch, categories: Categories, most: int = 8) -> Image.Image:
    """Draw up to `most` images of a batch: matched default boxes thin, their ground-truth boxes named."""
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
        truth_px, truth_labels = _distinct(decoded_px, labels[positive])
        names = [categories.name_of(label) for label in truth_labels.tolist()]
        draw_boxes(picture, truth_px.tolist(), truth_labels.tolist(), names)
        pictures.append(picture)
    return grid(pictures)


def _distinct(boxes_ltrb_px: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Keep of boxes K×4 with labels K one of each; many default boxes share a ground-truth box.

    Its decoded copies differ by rounding. They are compared with each other: rounded to a grid, an edge near
    one of its lines could fall to both sides.
    """
    apart_px = (boxes_ltrb_px[:, None] - boxes_ltrb_px).abs().amax(dim=2)  # K×K
    same = (apart_px < SAME_BOX_PX) & (labels[:, None] == labels)
    first = ~same.tril(diagonal=-1).any(dim=1)
    return boxes_ltrb_px[first], labels[first]
