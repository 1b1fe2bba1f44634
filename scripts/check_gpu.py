"""Check a new GPU: python scripts/check_gpu.py, or with your own pictures: --data DIR.

Each check runs in its own process, so that a crash or a hang is a result and doesn't end the script:

crops  the training input, made while the device is busy, against the same input made by a CPU only; pictures
       decoded by the CPU and by the GPU
steps  scripts/benchmark.py in each number format, compiled and not; then the fastest of these with other
       batch sizes, other numbers of threads and the GPU's decoder
runs   train.py: two ranks keep the same weights; a run that is repeated, or stopped and resumed, has the same
       weights, momenta and evaluation, bit for bit

It prints one line per check, and which settings to use. If checks fail, they are named, all outputs are kept,
and the exit status is 1. Without a GPU the CPU takes its place, which tests the script but no GPU.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import torch
from torch.nn.functional import avg_pool2d

from data.demo import generate
from data.graph import STD, GraphOptions
from data.index import read_index
from data.loader import DaliTrainLoader
from data.sampling import BatchPlan
from ssd.checkpoint import learned, package_versions, step_file
from ssd.config import DataSource, default_threads

ROOT = Path(__file__).parent.parent
BENCHMARK, TRAIN = str(ROOT / "scripts" / "benchmark.py"), str(ROOT / "train.py")
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
CORES = len(os.sched_getaffinity(0)) // max(GPUS, 1)  # per GPU
RUNTIMES = ("amp", "bf16", "fp32", "tf32") if GPUS else ("bf16", "fp32")
DECODERS = ("cpu", "gpu") if GPUS else ("cpu",)

# Decoders round differently, but a patch that is more than 16 of 255 levels off shows something else.
LEVELS = sum(STD) / 3  # per unit of a normalized crop
PATCH_PX, PATCH_LEVELS = 10, 16.0
QUEUED_PRODUCTS = 4  # before each batch; about 80 ms on an H100
FASTER = 1.03  # a setting must be this many times as fast to replace one tried earlier
SHOWN = ("images a second", "share of a step waiting for data", "kernels a step", "host waits a step")
TELLING = re.compile(r"^error: .*|^[\w.]*(?:Error|Exception): .*|Signal \d+ \(SIG.*", re.MULTILINE)

Settings = dict[str, object]


class Checks:
    """Runs Python commands one after another, prints how each ended, and collects the failed ones."""

    def __init__(self, options: argparse.Namespace, logs: Path, scratch: Path) -> None:
        self.options, self.logs, self.scratch = options, logs, scratch
        self.failed: list[str] = []
        # Settings of the benchmark and of all runs.
        self.common: Settings = {"data.path": scratch / "data", "data.cache": scratch / "cache"}
        self.common |= {"model.backbone": options.backbone, "model.weights": "null"}

    def run(self, name: str, program: list[str], settings: Settings, may_not_fit: bool = False) -> str | None:
        """Return the command's output, and leave it to the caller to end the printed line; None if it failed.

        may_not_fit: running out of memory is not a failure.
        """
        print(f"{name:<50}", end="", flush=True)
        self.name, self.log = name, self.logs / f"{len(os.listdir(self.logs))}.log"
        ended, command = "", [sys.executable, *program, *written(settings)]
        with self.log.open("wb") as file:
            try:
                limit_s = 60 * self.options.minutes
                subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, timeout=limit_s, check=True)
            except subprocess.SubprocessError as error:
                ended = str(error).rpartition("]' ")[2]  # after the command
        output = self.log.read_text(errors="replace").strip()
        if not ended:
            return output
        if may_not_fit and "out of memory" in output:
            print("– does not fit in memory")
        else:
            self.fail(" ".join([ended, *TELLING.findall(output)[-1:]]))
        return None

    def fail(self, reason: str) -> None:
        """End the last command's line with the failure."""
        self.failed.append(self.name)
        print(f"FAILED: {reason} (see {self.log})")


def main() -> None:
    """Run all checks, print the results, and exit with 1 if any check failed."""
    parser = argparse.ArgumentParser(
        description="Check this machine's GPUs: crops, steps, whole runs.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="COCO-format folder; without it the embedded set is made")
    parser.add_argument("--crops", type=int, default=10_000, help="crops to compare per decoder")
    parser.add_argument("--steps", type=int, default=50, help="steps per measurement and per run")
    sizes, sizes_help = [32, 64, 128, 256], "batch sizes per GPU; all checks use the first"
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=sizes, metavar="N", help=sizes_help)
    parser.add_argument("--runtimes", nargs="+", default=RUNTIMES, help="number formats to measure")
    parser.add_argument("--backbone", default="resnet50", help="backbone of all networks")
    parser.add_argument("--minutes", type=float, default=20.0, help="time limit of each check")
    parser.add_argument("--crops-by", choices=DECODERS, help="only compare this decoder's crops, in-process")
    options = parser.parse_args()
    if options.crops < 1 or options.steps < 2 or min(options.batch_sizes) < 2:
        parser.error("give at least --crops 1 --steps 2 --batch-sizes 2")
    if not (options.data or Path()).is_dir() or (options.crops_by and options.data is None):
        parser.error(f"--data={options.data}: give a folder in COCO layout")
    if options.crops_by:
        print(compare_crops(options))
        return
    logs = Path(mkdtemp(prefix="check-gpu-"))
    # A process that hung may still write there.
    with TemporaryDirectory(dir=logs, ignore_cleanup_errors=True) as scratch:
        os.environ["TMPDIR"] = scratch  # for the files that torchrun and torch.compile leave
        checks = Checks(options, logs, Path(scratch))
        versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
        here = f"{GPUS} × {torch.cuda.get_device_name()}" if GPUS else "no GPU, using the CPU instead"
        print(f"{here}; CPU cores per device: {CORES}; {versions}")
        data = checks.scratch / "data"  # this path needs no quotes
        if options.data is None:
            generate(data, 3 * max(options.batch_sizes), 40)
        else:
            data.symlink_to(options.data.absolute())
        decoders = check_crops(checks)
        settings = check_steps(checks, decoders)
        check_runs(checks)
        print(f"what to set: {settings}")
    if checks.failed:
        raise SystemExit(f"error: failed: {'; '.join(checks.failed)}; all outputs are in {logs}")
    shutil.rmtree(logs)


def check_crops(checks: Checks) -> list[str]:
    """Compare each decoder's crops; return the decoders whose crops are right."""
    good = []
    for decoder in DECODERS:
        told: Settings = {"--crops-by": decoder, "--data": checks.scratch / "data"}
        told |= {"--crops": checks.options.crops, "--batch-sizes": checks.options.batch_sizes[0]}
        output = checks.run(f"crops, decoded by {decoder}", [__file__], told)
        if output is not None:
            print(output.splitlines()[-1])
            good.append(decoder)
    return good


def compare_crops(options: argparse.Namespace) -> str:
    """Compare a decoder's crops with those of a CPU graph, in levels of 255; return the figures as text.

    Raises SystemExit with this text if crops look different, UserError if a batch can't be made.
    """
    batch_size, device = options.batch_sizes[0], torch.device("cuda" if GPUS else "cpu")
    paths = DataSource(path=str(options.data))
    index = read_index(paths.locate("train_annotations"), paths.locate("train_images"))
    plan = BatchPlan(index, batch_size, seed=0)
    device_id = 0 if GPUS else None
    tried = GraphOptions(batch_size, torch.float32, CORES, device_id, options.crops_by == "gpu")
    crops = DaliTrainLoader(plan, tried).batches(0)
    reference = DaliTrainLoader(plan, GraphOptions(batch_size, torch.float32, CORES, None)).batches(0)
    work = torch.ones([8192 if GPUS else 64] * 2, device=device)
    means, worst = [], []
    for _ in range(-(-options.crops // batch_size)):
        wanted = next(reference).images.to(device)
        for _ in range(QUEUED_PRODUCTS):
            work @ work
        off = (next(crops).images - wanted).abs().mean(dim=1) * LEVELS  # N×300×300
        means.append(off.mean((1, 2)).cpu())
        worst.append(avg_pool2d(off, PATCH_PX).amax((1, 2)).cpu())
    mean, patches = torch.cat(means), torch.cat(worst)
    off_by = f"{mean.mean():.3f} of 255 levels, {patches.max():.0f} in the worst patch"
    told = f"{len(patches)} crops, off by {off_by}"
    if different := int((~(patches <= PATCH_LEVELS)).sum()):  # NaN too
        raise SystemExit(f"error: {told}: {different} look different")
    return told


def check_steps(checks: Checks, decoders: list[str]) -> str:
    """Measure steps, changing one setting at a time and keeping the fastest; return the fastest settings."""
    options, threads = checks.options, default_threads(max(GPUS, 1))
    formats = [(runtime, compiled) for runtime in options.runtimes for compiled in ("false", "true")]
    stages: list[list[Settings]] = [
        [{"runtime": runtime, "runtime.compile": compiled} for runtime, compiled in formats],
        [{"data.batch_size": size} for size in options.batch_sizes[1:]],
        [{"data.threads": count} for count in (threads // 2, threads * 2) if 1 <= count <= CORES],
        [{"data.decoder": decoder} for decoder in decoders if decoder == "gpu"],
    ]
    out, speed = checks.scratch / "figures.json", 0.0
    plan = checks.common | {"hydra.run.dir": checks.scratch / "steps", "benchmark.out": out}
    plan |= {"benchmark.rounds": 2, "benchmark.steps": options.steps // 2, "benchmark.warmup": 1}
    size = options.batch_sizes[0]
    fastest: Settings = {"data.decoder": "cpu", "data.batch_size": size, "data.threads": threads}
    for stage in stages:
        for changed in stage:
            settings = fastest | changed
            name = f"steps, {' '.join(written(changed))}"
            if checks.run(name, [BENCHMARK], plan | settings, may_not_fit=speed > 0) is None:
                continue
            figures = json.loads(out.read_text())
            print(", ".join(f"{figures[name]:.4g} {name}" for name in SHOWN if name in figures))
            if figures["images a second"] > FASTER * speed:
                speed, fastest = figures["images a second"], settings
        if not speed:
            return "nothing, no steps could be measured"
    return f"{' '.join(written(fastest))} (the fastest on one device, {speed:.4g} images/s)"


def check_runs(checks: Checks) -> None:
    """Run the trainer on two ranks; then on one: a whole run, its first half again, and that half resumed."""
    half, size = checks.options.steps // 2, checks.options.batch_sizes[0]
    of_all = checks.common | {"runtime": "amp" if GPUS else "bf16", "data.batch_size": size}
    of_all |= {"schedule.epochs": 2 * half, "schedule.milestones": "[]", "schedule.max_steps": 2 * half}
    of_all |= {"data.limit": 2 * half * size, "evaluation.epochs": "[0]", "evaluation.pictures": 0}
    of_all |= {"checkpoint.every_epochs": "null", "checkpoint.every_steps": half, "logging.report": "false"}
    if GPUS == 1:
        print("runs, two ranks: – needs 2 GPUs")
    else:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", TRAIN]
        told = of_all | {"hydra.run.dir": checks.scratch / "ranks", "training.compare_replicas_every": 1}
        if checks.run(f"runs, two ranks over {'NCCL' if GPUS else 'gloo'}", torchrun, told) is not None:
            print("the same weights and momenta after every step")
    of_all |= {"runtime.deterministic": "true"}
    runs = ("uninterrupted", "whole", 2 * half), ("repeated", "again", half), ("resumed", "again", 2 * half)
    for name, folder, steps in runs:
        told = of_all | {"hydra.run.dir": checks.scratch / folder, "schedule.max_steps": steps}
        if checks.run(f"runs, {name}", [TRAIN], told) is None:
            return
        file = step_file(Path("checkpoints"), steps)
        whole, own = learned(checks.scratch / "whole" / file), learned(checks.scratch / folder / file)
        differing = [key for key in whole if whole[key] != own[key]]
        if differing:
            checks.fail(f"{differing[0]} and {len(differing) - 1} others differ after step {steps}")
        else:
            print(f"{len(whole)} tensors after step {steps}" + " are the same" * (folder != "whole"))


def written(settings: Settings) -> list[str]:
    """Return settings as command-line arguments."""
    return [f"{key}={value}" for key, value in settings.items()]


if __name__ == "__main__":
    main()
