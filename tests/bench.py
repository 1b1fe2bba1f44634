"""Start train.py and evaluate.py as a user does, on the embedded set, for tests of whole runs."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from ssd.checkpoint import learned, step_file

ROOT = Path(__file__).parent.parent
IMAGES, STEPS_PER_EPOCH, LAST_STEP = 26, 6, 12  # global batch 4; each epoch drops its last 2 images
LIMIT_S = 300


@dataclass(frozen=True)
class Bench:
    """A folder with the embedded set, for runs; tests don't change the set."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "demo"

    def command(self, script: str, *overrides: str, ranks: int = 1) -> list[str]:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        return [sys.executable, *(launcher if ranks > 1 else []), str(ROOT / script), *overrides]

    def train_command(self, name: str, *overrides: str, ranks: int = 1) -> list[str]:
        where = (f"name={name}", f"hydra.run.dir={self.folder / name}", f"data.path={self.data}")
        short = (
            *("experiment=demo", "schedule.epochs=2", "schedule.milestones=[1]", "schedule.warmup_steps=2"),
            *("logging.every_steps=5", "logging.report=false", "evaluation.every=1", "evaluation.pictures=2"),
            f"data.batch_size={4 // ranks}",
        )
        return self.command("train.py", *where, *short, *overrides, ranks=ranks)

    def train(self, name: str, *overrides: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
        return run(self.train_command(name, *overrides, ranks=ranks))

    def uninterrupted(self, ranks: int) -> str:
        """Return the name of a finished, undisturbed run, which is made once; its output is in NAME.txt."""
        name = f"uninterrupted_{ranks}"
        output = self.folder / f"{name}.txt"
        with FileLock(self.folder / f"{name}.lock"):
            if not output.exists():
                output.write_text(succeeded(self.train(name, ranks=ranks)))
        return name

    def assert_ended_as(self, expected: str, name: str) -> None:
        """Compare the last weights and momenta and all records of two runs, except for times."""
        assert learned(self.checkpoint(name)) == learned(self.checkpoint(expected))
        assert without_times(self.records(name)) == without_times(self.records(expected))

    def checkpoint(self, name: str, step: int = LAST_STEP) -> Path:
        return step_file(self.folder / name / "checkpoints", step)

    def records(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=ROOT, check=False)


def start(command: list[str], output: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a command in the background, in a new session; its output goes to a file or is dropped."""
    with (output or Path("/dev/null")).open("ab") as file:
        return subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, start_new_session=True)


def wait_for(file: Path, *processes: subprocess.Popen[bytes]) -> None:
    """Wait until one of the running commands has made the file."""
    deadline = time.monotonic() + LIMIT_S
    while not file.exists():
        assert all(process.poll() is None for process in processes), "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def without_times(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in record.items() if key not in ("images_per_second", "data_wait")}
        for record in records
    ]
