"""Compare runs on one HTML page: python scripts/compare_runs.py runs/a runs/b … [out=compare.html]

A folder that holds runs stands for all of them. Runs that differ in the seed alone, among the keys that shape
what is learned, are of one config: the page shows their mean, deviation and 95 % interval, and whether each
other config differs from the first.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any

import mpmath
import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from ssd import page
from ssd.cli import check_file
from ssd.config import DataPaths
from ssd.errors import UserError, printable, require
from ssd.evaluation.coco import score
from ssd.report import read_run, write

LEVEL = 0.05  # of a test; intervals are of 1 − LEVEL
TESTED = ("AP", "AP50", "AP75")
SHOWN = (*TESTED, "AP_small", "AP_medium", "AP_large")
POINTS = 200  # of a loss's curve: noise would hide which of two is lower
STYLES = [*product(("solid", "dashed", "dotted"), page.COLOURS)]

# What is learned doesn't depend on them. Any other key makes another config, also one that is new or gone.
SHAPING_NOTHING = {
    *("name", "seed", "data.cache", "data.threads", "logging.every_steps", "logging.report", "resume.never"),
    *("evaluation.pictures", "evaluation.timeout_minutes", "checkpoint.keep", "checkpoint.on_error"),
    *("training.compare_replicas_every", "training.hang_timeout_minutes"),
}


@dataclass(frozen=True)
class Run:
    """What a run's folder tells. config: by full key, with the four paths that follow in place of data.path.

    scored_on: alike where numbers can be compared. detections: the best evaluation's file, if there is one.
    """

    name: str
    config: dict[str, Any]
    scored_on: str
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    detections: list[Path]


@dataclass(frozen=True)
class Config:
    """The runs of one config."""

    runs: list[Run]

    def __str__(self) -> str:
        more = len(self.runs) - 1
        return self.runs[0].name + (f" and {more} more" if more else "")

    @property
    def scored_on(self) -> str:
        """Name the images of its numbers."""
        return self.runs[0].scored_on

    def finals(self, number: str) -> list[float]:
        """Return a number at the last evaluation for each seed; its first run alone counts, if it has two."""
        of_seeds = {run.config.get("seed"): run for run in reversed(self.runs) if run.evaluations}
        return [run.evaluations[-1][number] for run in reversed(of_seeds.values())]


def main(words: Sequence[str]) -> None:
    """Read the runs, write the page, print its headline."""
    out = [word[4:] for word in ("out=compare.html", *words) if word.startswith("out=")][-1]
    check_file(out, "out")
    runs = [read(folder) for folder in find([Path(word) for word in words if not word.startswith("out=")])]
    by_shape: dict[str, Config] = {}
    for run in runs:
        shaping = {key: value for key, value in run.config.items() if key not in SHAPING_NOTHING}
        by_shape.setdefault(json.dumps(shaping, sort_keys=True), Config([])).runs.append(run)
    configs = [*by_shape.values()]
    headline, tests = seeds(configs)
    sections = {"Numbers": numbers(configs), "Curves": curves(configs)} | ({"Seeds": tests} if tests else {})
    sections |= {"Classes": classes(configs), "Keys that differ": [differing_keys(runs)]}
    about = f"runs: {len(runs)}, configs: {len(configs)}"
    write(out, "out", ("Runs compared", about), headline, sections)
    print(*headline, f"{about}: {out}", sep="\n")


def find(given: Sequence[Path]) -> list[Path]:
    """List the folders of runs, each once. Raises UserError for a path that is none and holds none."""
    require(bool(given), "RUN", None, "give the folders of runs, such as runs/NAME")
    folders: dict[Path, Path] = {}
    for path in given:
        held = [file.parent for file in path.glob("*/metrics.jsonl")]
        is_run = (path / "metrics.jsonl").exists()
        found = [path] if is_run else sorted(held, key=lambda folder: (len(folder.name), folder.name))
        if not found:
            raise UserError(f"{path} holds no run (metrics.jsonl), nor does a folder in it; give runs/NAME")
        for folder in found:
            folders.setdefault(folder.resolve(), folder)
    return [*folders.values()]


def read(folder: Path) -> Run:
    """Read a run's files. Raises UserError where they aren't such as train.py leaves."""
    try:
        config = _flat(OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
        data = DataPaths(**{key: config.pop(f"data.{key}", None) for key in vars(DataPaths())})
        config |= {f"data.{key}": str(data.locate(key)) for key in vars(data) if key != "path"}
        told = read_run(folder)
    except (OSError, YAMLError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} can't be read as a run ({reason}); leave it out") from error
    limit = config.get("data.limit")
    scored_on = config["data.val_annotations"] + (f" (data.limit={limit})" if limit else "")
    evaluations = [record for record in told.evaluations if None not in map(record.get, TESTED)]
    detections = [*folder.glob("detections_*.npy")]
    return Run(printable(str(folder)), config, scored_on, told.training, evaluations, detections)


def _flat(section: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


# ---- statistics


def chance(t: Any, freedom: float) -> Any:
    """Return how likely Student's t is to lie as far from 0 as `t`, or farther, on either side."""
    return mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)


def reach(freedom: float, level: float = LEVEL) -> float:
    """Return the t whose `chance` is `level`; found by its logarithm, as t may lie in the thousands."""
    ratio = lambda log_t: mpmath.log(chance(mpmath.exp(log_t), freedom) / level)  # noqa: E731
    return math.exp(mpmath.findroot(ratio, (0, 12), solver="illinois"))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the mean of two values or more."""
    half = reach(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def welch(first: Sequence[float], other: Sequence[float], tests: int) -> tuple[float, float, float, float]:
    """Compare two means, each of two values or more: other − first, the ends of its interval, and p.

    Ends and p are nan where neither side has a spread. tests: how many are made, which they allow for
    (Bonferroni). Source: Welch 1947, "The generalization of 'Student's' problem …", Biometrika 34.
    """
    parts = [variance(values) / len(values) for values in (first, other)]
    error, difference = math.sqrt(sum(parts)), fmean(other) - fmean(first)
    if error == 0:
        return difference, math.nan, math.nan, math.nan
    freedom = error**4 / sum(part**2 / (len(of) - 1) for part, of in zip(parts, (first, other), strict=True))
    half, p = reach(freedom, LEVEL / tests) * error, float(chance(difference / error, freedom))
    return difference, difference - half, difference + half, min(p * tests, 1.0)


# ---- the page's parts


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names, the first of them if there are many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def numbers(configs: Sequence[Config]) -> list[Markup]:
    """Show each run's last numbers and its best; say what is odd about the runs."""
    rows, notes = [], []
    for config in configs:
        for run in config.runs:
            last = run.evaluations[-1] if run.evaluations else {}
            best = max(run.evaluations, key=lambda record: record["AP"], default={})
            loss = run.training[-1]["loss"] if run.training else None
            ends = (last.get("step"), *map(last.get, SHOWN), best.get("AP"), best.get("step"), loss)
            rows.append((run.name, run.config.get("seed"), *ends))
        lasts = sorted({run.evaluations[-1]["step"] for run in config.runs if run.evaluations})
        if len(lasts) > 1:
            notes.append(f"{config}: the last evaluations are after {lasts[0]} to {lasts[-1]} steps.")
        if len({run.config.get("seed") for run in config.runs}) < len(config.runs):
            notes.append(f"{config}: a seed is there twice; the first of its runs alone counts under Seeds.")
    head = ("run", "seed", "evaluated after", *SHOWN, "best AP", "after", "last loss")
    return [page.table(head, rows), *map(page.text, notes)]


def curves(configs: Sequence[Config]) -> list[Markup]:
    """Draw the runs' curves over each other, those of one config alike."""
    styled = [(config, *STYLES[k % len(STYLES)]) for k, config in enumerate(configs)]
    parts = [page.legend([(str(config), colour, dash) for config, dash, colour in styled])]
    for key in ("loss", "learning_rate", "AP", "AP50"):
        axes = page.axes("step")
        for config, dash, colour in styled:
            for run in config.runs:
                records = run.evaluations if key in TESTED else run.training
                points = np.array([(each["step"], each[key]) for each in records], np.float64).reshape(-1, 2)
                if key == "loss" and len(points) > POINTS:
                    points = np.array([part.mean(axis=0) for part in np.array_split(points, POINTS)])
                points[points < 0] = np.nan  # COCO's sign of nothing to count
                marker = "." if key in TESTED else ""
                axes.plot(*points.T, marker=marker, color=colour, linestyle=dash, linewidth=1.2)
        if key == "loss":
            axes.set_yscale("log", subs=(2, 5))
            axes.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}")
        parts.append(page.plot(axes, key.replace("_", " ")))
    return parts


def seeds(configs: Sequence[Config]) -> tuple[list[str], list[Markup]]:
    """Show mean, deviation and interval of configs of two seeds or more, and test each against the first.

    Returns the page's headline besides.
    """
    sets = [*dict.fromkeys(config.scored_on for config in configs)]
    told = [f"Numbers on different sets can't be compared: {listed(sets)}."] if len(sets) > 1 else []
    ends = [
        (run.evaluations[-1]["AP"], run.name) for config in configs for run in config.runs if run.evaluations
    ]
    ap, name = max(ends, default=(-1.0, ""))
    if ap > 0 and len(configs) > 1 and not told:
        told.append(f"{name} ends with the highest AP, {ap:.3f}.")
    few = [str(config) for config in configs if len(config.finals("AP")) < 2]
    if few:
        told.append(f"No interval and no test without two evaluated seeds: {listed(few)}.")
    enough = [config for config in configs if str(config) not in few]
    tested = [config for config in enough[1:] if config.scored_on == enough[0].scored_on]
    means, differences = [], []
    for number, config in product(TESTED, enough):
        values, base = config.finals(number), enough[0].finals(number)
        wide = "two seeds: the interval is wide" if len(values) == 2 else ""
        shown = (len(values), fmean(values), stdev(values), *interval(values), wide)
        means.append((f"{number} of {config}", *shown))
        if config in tested:
            difference, low, high, p = welch(base, values, len(tested))
            says = f"{'higher' if difference > 0 else 'lower'} by more than seeds explain"
            says = "no spread, no test" if math.isnan(p) else says if p < LEVEL else "no difference is shown"
            says += "; two seeds are few" if min(len(base), len(values)) == 2 else ""
            differences.append((f"{number} of {config}", difference, low, high, p, says))
            if number == "AP":
                test = f"{difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}, p = {p:.2g}"
                told.append(f"AP of {config} against {enough[0]}: {test.replace('-', '−')}: {says}.")
    parts = []
    if means:
        head = ("", "seeds", "mean", "deviation", "95 % from", "to", "")
        parts.append(page.table(head, means, "Last evaluations over seeds, intervals by Student's t"))
    if differences:
        several = f", allowing for {len(tested)} comparisons (Bonferroni)" if len(tested) > 1 else ""
        caption = f"Against {enough[0]}: Welch's t-test{several}"
        parts.append(page.table(("", "difference", "95 % from", "to", "p", ""), differences, caption))
    return [*told[:4], *[f"{len(told) - 4} more comparisons are under Seeds."] * (len(told) > 4)], parts


def classes(configs: Sequence[Config]) -> list[Markup]:
    """Show AP by class at the best evaluation, the mean of a config's runs; say which runs have none."""
    aps: dict[str, Any] = {}  # K of each config
    names: list[str] = []
    missing: dict[str, list[str]] = {}
    for config in configs:
        of_runs = []
        for run in config.runs:
            try:
                if run.scored_on != configs[0].scored_on or run.config.get("data.limit"):
                    raise UserError(f"scored on {run.scored_on}")
                if not run.detections:
                    raise UserError("the folder holds no detections_*.npy")
                scored = score(run.scored_on, np.load(run.detections[0]))
                of_runs.append(scored.precision[..., 0].mean(axis=(0, 1)))
                names = scored.annotated.names
            except (OSError, ValueError, EOFError) as error:
                missing.setdefault(str(error), []).append(run.name)
        if of_runs:
            aps[str(config)] = np.mean(of_runs, axis=0)
    parts = [page.text(f"Not shown: {listed(runs)}: {reason}.") for reason, runs in missing.items()]
    if aps:
        (first, base), *others = aps.items()
        head = ("class", f"AP of {first}", *(f"{other}: difference" for other, _ in others))
        rows = [*zip(names, base, *(of - base for _, of in others), strict=True)]
        parts.append(page.table(head, rows, "AP by class at the best evaluation"))
    return parts


def differing_keys(runs: Sequence[Run]) -> Markup:
    """Show the keys of which not all runs have the same value."""
    columns = {}
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [run.config.get(key, "no such key") for run in runs]
        shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
        if len({*shown}) > 1:
            columns[key] = shown
    return page.table(("run", *columns), [*zip([run.name for run in runs], *columns.values(), strict=True)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s RUN … [out=FILE.html]")
    parser.add_argument("words", nargs="+", metavar="RUN", help="a run's folder, or one that holds runs")
    try:
        main(parser.parse_args().words)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
