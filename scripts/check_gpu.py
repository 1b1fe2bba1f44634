"""The first minutes on a GPU: python scripts/check_gpu.py, or on pictures of your own with --data DIR.

Each check is a process of its own, so that a crash or a hang is a result and not the end:

crops  what training is fed with, made while the device works, against what a CPU alone makes; decoded by the
       CPU, the GPU, and the GPU's JPEG unit (DALI's default, which training never uses)
steps  scripts/benchmark.py in each number format, compiled and not; then the fastest of them with other batch
       sizes, threads and the GPU's decoder
runs   train.py: two ranks keep the same weights; a run that is made again, or stopped and resumed, has the
       same weights, momenta and evaluation, bit for bit

It prints a line a check and what to set, and exits with 1 where a check failed: that is named, its output is
kept, all else goes. Without a GPU the CPU stands in for it, which proves the script but no GPU.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

import torch
from torch.nn.functional import avg_pool2d

from data.demo import generate
from data.graph import STD, GraphOptions
from data.index import read_index
from data.loader import DaliTrainLoader
from data.sampling import BatchPlan
from ssd.checkpoint import load_run, package_versions, step_file
from ssd.config import DataSource, default_threads
from ssd.console import PlainConsole
from ssd.errors import UserError

ROOT = Path(__file__).parent.parent
BENCHMARK, TRAIN = str(ROOT / "scripts" / "benchmark.py"), str(ROOT / "train.py")
GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
CORES = len(os.sched_getaffinity(0)) // max(GPUS, 1)  # of a GPU
RUNTIMES = {"amp": 1, "bf16": 0, "fp32": 0, "tf32": 1}  # how many GPUs each needs
DECODERS = {"cpu": (0, 0.0), "gpu": (1, 0.0), "jpeg-unit": (1, 0.65)}  # and the JPEG unit's share

# Decoders round differently. A patch of a crop that is so far off, of 255 levels, shows something else.
PATCH_PX, PATCH_LEVELS = 10, 16.0
QUEUED_PRODUCTS = 4  # before each batch, some 80 ms of an H100
FASTER = 1.03  # by less no setting is preferred to one that was tried before it

Settings = dict[str, str | int]


class Checks:
    """Runs one command of python after another, prints how each ended, and knows which failed."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self._minutes = folder, minutes
        self.console = PlainConsole()
        self.name = self.output = ""  # of the last command
        self.failed: list[str] = []
        self.kept: Path | None = None  # where the output of those that failed is

    def run(self, name: str, *arguments: str, gpus: int = 0, may_not_fit: bool = False) -> bool:
        """Tell whether a command ran and succeeded; the caller then ends its line, by `fail` or a print.

        gpus: how many it needs. may_not_fit: it is no failure that memory is too small for it.
        """
        self.name, log = name, self.folder / "output.log"
        self.console.print(f"{name:<50}", end="")
        if gpus > GPUS:
            self.console.print(f"– needs {gpus} GPU{'s' * (gpus > 1)}")
            return False
        status, command = None, [sys.executable, *arguments]
        with log.open("wb") as file, suppress(subprocess.TimeoutExpired):
            status = subprocess.call(command, cwd=ROOT, stdout=file, stderr=file, timeout=self._minutes * 60)
        self.output = log.read_text(errors="replace").strip()
        if status is None:
            self.fail(f"no end after {self._minutes:g} minutes")
        elif status < 0:
            self.fail(f"ended by {signal.Signals(-status).name}")
        elif status > 0 and may_not_fit and "out of memory" in self.output:
            self.console.print("– more than the memory holds")
        elif status > 0:
            self.fail(telling_line(self.output))
        return status == 0

    def fail(self, reason: str) -> None:
        """End its line, and keep its output."""
        self.failed.append(self.name)
        self.kept = self.kept or Path(mkdtemp(prefix="check-gpu-failed-"))
        log = self.kept / f"{len(self.failed)}.log"
        log.write_text(f"{self.name}: {reason}\n\n{self.output}\n")
        self.console.print(f"FAILED: {reason} (see {log})")


def telling_line(output: str) -> str:
    """Return the line of a failed command's output that tells most."""
    # Of ranks the last, which torchrun calls the root cause; others were ended for it.
    for pattern in (
        r"^error: (?!another rank)(.*)",
        r"Signal \d+ \(SIG.*",
        r"^[\w.]*(?:Error|Exception): .*",
    ):
        if found := re.findall(pattern, output, re.MULTILINE):
            return str(found[-1])
    return output.rpartition("\n")[2]


def main() -> None:
    """Check, print, judge."""
    parser = argparse.ArgumentParser(description="Check this machine's GPUs: crops, steps, whole runs.")
    parser.add_argument("--data", type=Path, help="COCO-format folder; default: the embedded set, made anew")
    parser.add_argument("--crops", type=int, default=10_000, help="of each decoder, default %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="of each run, default %(default)s")
    parser.add_argument(
        "--batch-sizes",
        type=int,
        nargs="+",
        default=[32, 64, 128, 256],
        metavar="N",
        help="images a GPU: all checks take the first, default %(default)s",
    )
    parser.add_argument("--runtimes", nargs="+", default=[*RUNTIMES], choices=RUNTIMES, help="default: all")
    parser.add_argument("--backbone", default="resnet50", help="default %(default)s")
    parser.add_argument("--minutes", type=float, default=20.0, help="a check may take, default %(default)s")
    parser.add_argument("--crops-by", choices=DECODERS, help="do only this check, and in this process")
    options = parser.parse_args()
    if options.crops < 1 or options.steps < 2 or min(options.batch_sizes) < 2:
        parser.error("give at least --crops 1 --steps 2 --batch-sizes 2")
    if not (options.data or Path()).is_dir() or (options.crops_by and options.data is None):
        parser.error(f"--data={options.data}: give a folder in COCO layout")
    if options.crops_by:
        print(compare_crops(options))
        return
    # What hung may still write there.
    with TemporaryDirectory(prefix="check-gpu-", ignore_cleanup_errors=True) as temporary:
        checks = Checks(Path(temporary), options.minutes)
        os.environ["TMPDIR"] = temporary  # what torchrun and torch.compile leave goes there, and with it
        here = f"{GPUS} × {torch.cuda.get_device_name()}" if GPUS else "no GPU, the CPU stands in"
        versions = ", ".join(f"{package} {version}" for package, version in package_versions().items())
        checks.console.print(f"{here}; CPU cores for each: {CORES}; {versions}")
        data = checks.folder / "data"  # a name that needs no quotes
        if options.data is None:
            generate(data, 3 * max(options.batch_sizes), 40)
        else:
            data.symlink_to(options.data.absolute())
        decodes_well = check_crops(checks, options)
        settings = check_steps(checks, options, decodes_well)
        check_runs(checks, options)
        checks.console.print(f"what to set: {settings}")
    if checks.failed:
        raise SystemExit(f"error: failed: {'; '.join(checks.failed)}; their output is in {checks.kept}")


def check_crops(checks: Checks, options: argparse.Namespace) -> bool:
    """Compare each decoder's crops; tell whether the GPU decodes as data.decoder=gpu would have it."""
    passed = {}
    for decoder, (gpus, _) in DECODERS.items():
        arguments = f"--data={checks.folder / 'data'}", f"--crops={options.crops}", f"--crops-by={decoder}"
        sizes = f"--batch-sizes={options.batch_sizes[0]}"
        passed[decoder] = checks.run(f"crops, decoded by {decoder}", __file__, *arguments, sizes, gpus=gpus)
        if passed[decoder]:
            checks.console.print(checks.output.rpartition("\n")[2])
    return passed["gpu"]


def compare_crops(options: argparse.Namespace) -> str:
    """Compare a decoder's crops with a CPU graph's, in levels of 255; return the figures.

    Raises SystemExit with them where crops failed or look different.
    """
    on_gpu, hw_decoder_load = DECODERS[options.crops_by]
    batch_size, device = options.batch_sizes[0], torch.device("cuda" if GPUS else "cpu")
    paths = DataSource(path=str(options.data))
    index = read_index(paths.locate("train_annotations"), paths.locate("train_images"))
    plan = BatchPlan(index, batch_size, seed=0)
    threads, device_id = (CORES, 0) if GPUS else (1, None)
    tried = GraphOptions(batch_size, torch.float32, threads, device_id, on_gpu > 0, hw_decoder_load)
    loader = DaliTrainLoader(plan, tried)
    reference = DaliTrainLoader(plan, GraphOptions(batch_size, torch.float32, CORES, None)).batches(0)
    crops, levels = loader.batches(0), torch.tensor(STD, device=device).view(3, 1, 1)
    work = torch.ones([8192 if GPUS else 64] * 2, device=device)
    figures, failures = [torch.empty(3, 0)], []
    for step in range(-(-options.crops // batch_size)):
        wanted = next(reference).images.to(device)
        for _ in range(QUEUED_PRODUCTS):
            work @ work
        try:
            off = (next(crops).images - wanted).abs() * levels  # N×3×300×300
        except UserError as error:
            failures.append(str(error))
            crops = loader.batches(step + 1)
            continue
        patches = avg_pool2d(off.mean(dim=1), PATCH_PX)  # N×30×30
        figures.append(torch.stack([off.mean((1, 2, 3)), off.amax((1, 2, 3)), patches.amax((1, 2))]).cpu())
    mean, largest, worst = torch.cat(figures, dim=1)
    different = int((~(worst <= PATCH_LEVELS)).sum())  # NaN too
    off_by = f"{mean.mean():.3f} in the mean, {max(largest, default=0):.0f} at most"
    told = f"{len(mean)} crops, off by {off_by}, of 255 levels"
    if different or failures:
        told += f", {different} look different; {len(failures)} batches failed {failures[:1]}"
        raise SystemExit(f"error: {told}")
    return told


def check_steps(checks: Checks, options: argparse.Namespace, decodes_well: bool) -> str:
    """Measure steps, changing one setting after another in the fastest; return that one."""
    threads = default_threads(max(GPUS, 1))
    formats = [(runtime, compiled) for runtime in options.runtimes for compiled in ("false", "true")]
    stages: list[list[Settings]] = [
        [{"runtime": runtime, "runtime.compile": compiled} for runtime, compiled in formats],
        [{"data.batch_size": size} for size in options.batch_sizes[1:]],
        [{"data.threads": count} for count in (threads // 2, threads * 2) if 1 <= count <= CORES],
        [{"data.decoder": "gpu"}] * decodes_well,
    ]
    fastest: Settings = {"data.decoder": "cpu", "data.batch_size": options.batch_sizes[0]}
    fastest["data.threads"] = threads
    speed, out = 0.0, checks.folder / "figures.json"
    of_steps = [BENCHMARK, *of_run(checks, options, "steps"), "benchmark.rounds=2"]
    of_steps += [f"benchmark.steps={options.steps // 2}", f"benchmark.out={out}"]
    for stage in stages:
        for changed in stage:
            settings = fastest | changed
            name, gpus = f"steps, {written(changed)}", RUNTIMES[str(settings["runtime"])]
            arguments = *of_steps, *written(settings).split()
            if not checks.run(name, *arguments, gpus=gpus, may_not_fit=speed > 0):
                continue
            figures = json.loads(out.read_text())
            launched = "kernels a step" if GPUS else "operators a step"
            checks.console.print(
                f"{figures['images a second']:6.4g} images/s, "
                f"{figures['share of a step waiting for data']:4.0%} waiting for data, "
                f"{figures[launched]:5.0f} {launched}, {figures['host waits a step']:.0f} host waits"
            )
            if figures["images a second"] > FASTER * speed:
                speed, fastest = figures["images a second"], settings
        if not speed:
            return "nothing, no steps could be measured"
    return f"{written(fastest)} (the fastest on one device, {speed:.4g} images/s)"


def check_runs(checks: Checks, options: argparse.Namespace) -> None:
    """Run the trainer on two ranks; then on one, again as far as halfway, and resumed there."""
    half, size = options.steps // 2, options.batch_sizes[0]
    of_all: Settings = {"runtime": "amp" if GPUS else "bf16", "data.batch_size": size}
    of_all |= {"schedule.epochs": 2 * half, "schedule.milestones": "[]"}
    of_all |= {"evaluation.epochs": "[0]", "evaluation.pictures": 0}
    of_all |= {"checkpoint.every_epochs": "null", "checkpoint.every_steps": half}
    two = of_all | {"data.limit": 4 * half * size, "training.compare_replicas_every": 1}
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", TRAIN
    arguments = *of_run(checks, options, "ranks"), *written(two | {"schedule.max_steps": 2 * half}).split()
    name = f"runs, two ranks over {'NCCL' if GPUS else 'gloo'}"
    if checks.run(name, *torchrun, *arguments, gpus=2 * (GPUS > 0)):
        checks.console.print("the same weights and momenta after every step")
    one = of_all | {"data.limit": 2 * half * size, "runtime.deterministic": "true"}
    runs = ("uninterrupted", "whole", 2 * half), ("made again", "again", half), ("resumed", "again", 2 * half)
    for name, folder, steps in runs:
        arguments = *of_run(checks, options, folder), *written(one | {"schedule.max_steps": steps}).split()
        if not checks.run(f"runs, {name}", TRAIN, *arguments):
            return
        whole, own = learned(checks.folder / "whole", steps), learned(checks.folder / folder, steps)
        differing = [name for name, bits in whole.items() if bits != own[name]]
        if differing:
            checks.fail(
                f"{len(differing)} of {len(whole)} tensors differ after step {steps}: {differing[0]}, …"
            )
        else:
            checks.console.print(
                f"{len(whole)} tensors after step {steps}" + " are the same" * (folder != "whole")
            )


def learned(run: Path, step: int) -> dict[str, bytes]:
    """Return the bits of weights, statistics, momenta and scores in a step's checkpoint."""
    saved = load_run(step_file(run / "checkpoints", step))
    momenta = {
        f"momentum {key}": each["momentum_buffer"] for key, each in saved["optimizer"]["state"].items()
    }
    tensors = saved["model"] | momenta | {"scores": torch.tensor(saved["scores"])}
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def of_run(checks: Checks, options: argparse.Namespace, name: str) -> list[str]:
    """Return what the benchmark and all runs are told: where to read and write, what to learn."""
    folder = checks.folder
    return [
        *(f"name={name}", f"hydra.run.dir={folder / name}", f"data.path={folder / 'data'}"),
        *(f"data.cache={folder / 'cache'}", f"model.backbone={options.backbone}", "model.weights=null"),
    ]


def written(settings: Settings) -> str:
    """Write settings as they are given to train.py."""
    return " ".join(f"{key}={value}" for key, value in settings.items())


if __name__ == "__main__":
    main()
