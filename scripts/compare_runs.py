"""Compare runs on one HTML page: python scripts/compare_runs.py runs/a runs/b … [out=compare.html]

A folder that contains runs stands for all of them. Runs whose settings differ only in the seed belong to one
config: the page shows each config's mean, standard deviation and 95% interval, and whether configs differ.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path
from statistics import fmean, stdev, variance
from typing import Any, cast

import mpmath
import numpy as np
from markupsafe import Markup
from omegaconf import OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from ssd import page, report
from ssd.cli import by_full_key, check_file
from ssd.config import DataSource
from ssd.errors import UserError, printable, require
from ssd.evaluation.coco import NAMES, score
from ssd.training.state import MUST_STAY

LEVEL = 0.05  # significance level of the tests; intervals have the confidence 1 − LEVEL
TESTED = NAMES[:3]  # AP, AP50, AP75
POINTS = 200  # per curve; with more, the noise of two losses hides which is lower

# The keys that tell configs apart: MUST_STAY, and keys that may change on resume but affect the numbers.
SHAPING = (
    *(key for key in MUST_STAY if key != "seed"),
    *("data.path", "data.train_images", "data.val_annotations", "data.decoder"),
    *("schedule.epochs", "schedule.max_steps", "training.patience"),
)


@dataclass(frozen=True)
class Run:
    """A run to compare. config: values by full key. scored_on: the validation set."""

    name: str
    config: dict[str, Any]
    scored_on: str
    told: report.Run


Configs = dict[str, list[Run]]


def main(words: Sequence[str]) -> None:
    """Read the runs, write the page, print the headline."""
    out = [word[4:] for word in ("out=compare.html", *words) if word.startswith("out=")][-1]
    check_file(out, "out")
    runs = [read(folder) for folder in find([Path(word) for word in words if not word.startswith("out=")])]
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(str([run.config.get(key) for key in SHAPING]), []).append(run)
    configs = {of[0].name + f" and {len(of) - 1} more" * (len(of) > 1): of for of in alike.values()}
    sets = sorted({run.scored_on for run in runs})
    headline, tests = seeds(configs, comparable=len(sets) == 1)
    sections = {"Numbers": [numbers(runs)], "Curves": curves(configs), "Seeds": tests}
    if len(sets) == 1:
        sections["Classes"] = classes(configs)
    else:
        headline.append(f"Numbers on different sets can't be compared: {', '.join(sets)}.")
    sections["Keys that differ"] = [differing_keys(runs)]
    about = f"runs: {len(runs)}, configs: {len(configs)}"
    page.write(out, "out", ("Runs compared", about), headline, sections)
    print(*headline, f"{about}: {out}", sep="\n")


def find(given: Sequence[Path]) -> list[Path]:
    """List the runs' folders, each once. Raises UserError for a path without any run."""
    require(bool(given), "RUN", None, "give the folders of runs, such as runs/NAME")
    folders: list[Path] = []
    for path in given:
        found = [file.parent for each in ("", "*/") for file in path.glob(f"{each}metrics.jsonl")]
        if not found:
            raise UserError(f"{path} holds no run (metrics.jsonl), nor does a folder in it; give runs/NAME")
        folders += sorted(found, key=lambda folder: (len(folder.name), folder.name))
    return [*dict.fromkeys(folders)]


def read(folder: Path) -> Run:
    """Read a run's files. Raises UserError if they don't look like those of train.py."""
    try:
        config = by_full_key(
            cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))
        )
        data = DataSource(config.get("data.path"), val_annotations=config.get("data.val_annotations"))
        scored_on, told = str(data.locate("val_annotations")), report.read_run(folder)
    except (OSError, YAMLError, ValueError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} can't be read as a run ({reason}); leave it out") from error
    if limit := config.get("data.limit"):
        scored_on += f" (data.limit={limit})"
    return Run(printable(str(folder)), config, scored_on, told)


def chance(t: Any, freedom: float) -> Any:
    """Return the two-sided p-value of Student's t."""
    return mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the mean's 95% confidence interval, for two or more values."""
    freedom, ends = len(values) - 1, (1, 13)  # t is 12.7 for two values and approaches 1.96
    t = float(mpmath.findroot(lambda t: chance(t, freedom) - LEVEL, ends, solver="illinois"))
    half = t * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def welch(first: Sequence[float], other: Sequence[float]) -> float:
    """Return the two-sided p-value of Welch's t-test of two or more values each; nan if both variances are 0.

    Source: Welch 1947, "The generalization of 'Student's' problem …", Biometrika 34.
    """
    parts = [variance(values) / len(values) for values in (first, other)]
    if sum(parts) == 0:
        return math.nan
    t = (fmean(other) - fmean(first)) / math.sqrt(sum(parts))
    per_freedom = [part**2 / (len(of) - 1) for part, of in zip(parts, (first, other), strict=True)]
    return float(chance(t, sum(parts) ** 2 / sum(per_freedom)))


def numbers(runs: Sequence[Run]) -> Markup:
    """Show the last numbers and the best AP of each run."""
    rows = []
    for run in runs:
        best, trained = run.told.best, (run.told.training or [{}])[-1]
        last = (run.told.evaluations or [{}])[-1]
        ends = (*map(last.get, ("step", *NAMES[:6])), best.get("AP"), best.get("step"), trained.get("loss"))
        rows.append((run.name, run.config.get("seed"), *ends))
    return page.table(("run", "seed", "last step", *NAMES[:6], "best AP", "best step", "last loss"), rows)


def curves(configs: Configs) -> list[Markup]:
    """Draw the curves of all runs in one plot per metric, one color per config."""
    colours = dict(zip(configs, cycle(page.COLOURS), strict=False))
    parts = [page.legend([*colours.items()])]
    for key in ("loss", "learning_rate", "AP", "AP50"):
        axes = page.axes("step")
        for name, run in [(name, run) for name, runs in configs.items() for run in runs]:
            records, style = (run.told.evaluations, ".-") if key in TESTED else (run.told.training, "-")
            axes.plot(*report.curve(records, key, POINTS), style, color=colours[name], linewidth=1.2)
        parts.append(page.plot(axes, key.replace("_", " ")))
    return parts


def seeds(configs: Configs, comparable: bool) -> tuple[list[str], list[Markup]]:
    """Show mean, deviation and interval of each config with two or more seeds; test each against the first.

    Returns the page's headline and the parts.
    """
    lasts: dict[str, dict[Any, dict[str, Any]]] = {}  # last evaluation by config and seed
    for name, runs in configs.items():
        evaluated = [run for run in runs if run.told.evaluations]
        lasts[name] = {run.config.get("seed"): run.told.evaluations[-1] for run in evaluated}
    enough = [name for name in lasts if len(lasts[name]) > 1]
    told, rows = [], []
    for number, name in product(TESTED, enough):
        first, values = ([last[number] for last in lasts[of].values()] for of in (enough[0], name))
        mean, (low, high) = fmean(values), interval(values)
        says = f"AP of {name}: {mean:.3f}, 95% interval {low:.3f} to {high:.3f}"
        tested: tuple[float | str | None, ...] = (None, None, "")
        if comparable and name != enough[0]:
            difference, p = mean - fmean(first), welch(first, values)
            found = "the configs differ" if p < LEVEL else "no significant difference"
            says += f"; {difference:+.3f} against {enough[0]}, p = {p:.2g}: {found}"
            tested = difference, p, found
        rows.append((f"{number} of {name}", len(values), mean, stdev(values), low, high, *tested))
        if number == "AP":
            told.append(f"{says}.")
    if few := sum(len(of_seeds) < 3 for of_seeds in lasts.values()):
        told.append(f"{few} of {len(lasts)} configs have fewer than 3 seeds: intervals are wide or missing.")
    if not rows:
        return told, [page.text("No config has two evaluated seeds.")]
    head = ("", "seeds", "mean", "std. dev.", "95% from", "to", "difference", "p", "result")
    caption = f"Last evaluations; Welch's t-test against {enough[0]}, p not corrected for multiple tests"
    return told, [page.table(head, rows, caption)]


def classes(configs: Configs) -> list[Markup]:
    """Show AP by class at the best evaluation, averaged over a config's runs, and why it is missing."""
    aps: dict[str, Any] = {}  # K of each config
    names: list[str] = []
    parts = []
    for config, runs in configs.items():
        try:
            of_runs = []
            for run in runs:
                if run.config.get("data.limit"):
                    raise UserError(f"scored on {run.scored_on}")
                scored = score(run.scored_on, np.load(run.told.detections))
                of_runs.append(scored.precision[..., 0].mean(axis=(0, 1)))
                names = scored.annotated.names
            aps[config] = np.mean(of_runs, axis=0)
        except (OSError, ValueError, EOFError) as error:
            parts.append(page.text(f"Not shown: {config}: {error}."))
    if aps:
        (first, base), *others = aps.items()
        head = ("class", f"AP of {first}", *(f"{other}: difference" for other, _ in others))
        rows = [*zip(names, base, *(of - base for _, of in others), strict=True)]
        parts.append(page.table(head, rows, "AP by class at the best evaluation"))
    return parts


def differing_keys(runs: Sequence[Run]) -> Markup:
    """Show the keys whose values differ between runs."""
    columns = {}
    for key in dict.fromkeys(key for run in runs for key in run.config):
        values = [run.config.get(key, "no such key") for run in runs]
        shown = [value if isinstance(value, str) else json.dumps(value) for value in values]
        if len({*shown}) > 1:
            columns[key] = shown
    return page.table(("run", *columns), [*zip([run.name for run in runs], *columns.values(), strict=True)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, usage="%(prog)s RUN … [out=FILE.html]")
    parser.add_argument("words", nargs="+", metavar="RUN", help="a run's folder, or one that contains runs")
    try:
        main(parser.parse_args().words)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
