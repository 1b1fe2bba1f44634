"""Regenerate a run's report.html: python scripts/report.py run=runs/NAME

The page lists what is missing from the run's folder or data set. For a checkpoint without a run, use
python evaluate.py checkpoint=… report=FILE.html. Keys and their values: conf/report.yaml.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
from markupsafe import Markup
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError  # type: ignore[import-untyped]

from data.index import Selection, cache_folder, read_index
from ssd import page, report
from ssd.cli import check_file, parse
from ssd.cli import run as main_of_cli
from ssd.config import DataConfig, ReportConfig, TrainConfig
from ssd.errors import require
from ssd.evaluation.coco import score
from ssd.evaluation.errors import Analysis, explain

ROOT = Path(__file__).parent.parent
SAMPLE = 2000  # training images whose objects are matched with default boxes


def main(config: ReportConfig) -> None:
    """Read the folder, analyze the best evaluation, write the page."""
    fix = "give a run's folder; for a checkpoint alone: python evaluate.py checkpoint=… report=FILE.html"
    require(config.run is not None and Path(config.run).is_dir(), "run", config.run, fix)
    folder = Path(str(config.run))
    out = config.out or str(folder / "report.html")
    check_file(out, "out")
    run, name, published, analysis = report.read_run(folder), folder.name, None, None
    missing: list[str] = []
    failures: page.Sections = {}
    with noting(missing):
        trained = parse(TrainConfig, cast(DictConfig, OmegaConf.load(folder / "config.yaml")))
        name, published = trained.name, published_ap(run, trained.runtime.tf32)
        with noting(missing):  # without detections the section on default boxes is still possible
            analysis, paths = analyse_best(run, trained.data)
            failures |= report.failures(analysis, paths)
        failures["Default boxes"] = default_boxes(trained.data)
    sections = {"Missing": [page.text(each) for each in missing]} if missing else {}
    sections |= {"Numbers": report.numbers(run, published), **failures}
    sections |= {"Training": report.training(run), "The run": report.about_run(run)}
    page.write(out, "out", (name, str(folder)), report.headline(run, analysis), sections)


@contextmanager
def noting(missing: list[str]) -> Iterator[None]:
    """Record why a part can't be made, and continue."""
    try:
        yield
    except (OSError, ValueError, EOFError, YAMLError) as error:  # UserError is a ValueError
        missing.append(str(error))


def analyse_best(run: report.Run, data: DataConfig) -> tuple[Analysis, dict[int, str]]:
    """Analyze the detections of the best evaluation; also return the image files by id."""
    selection = Selection("val", data.limit, min_box_px=0.0, images_without_boxes=True)
    file = data.locate("val_annotations")
    index = read_index(file, data.locate("val_images"), selection, cache_folder(data.cache))
    scored = None if data.limit is None else index.image_ids.tolist()
    return explain(score(file, np.load(run.detections), scored)), index.paths()


def default_boxes(data: DataConfig) -> list[Markup]:
    """Match default boxes with the objects of an evenly spaced sample of training images."""
    selection = Selection("train", data.limit, data.crowd, data.min_box_px)
    files = data.locate("train_annotations"), data.locate("train_images")
    index = read_index(*files, selection, cache_folder(data.cache))
    sample = np.linspace(0, len(index) - 1, min(SAMPLE, len(index))).astype(int).tolist()
    return report.default_box_matches([index.boxes_of(image)[0] for image in sample], len(index))


def published_ap(run: report.Run, tf32: bool) -> float | None:
    """Return the AP that RECIPE 8 lists for the run's experiment, None if it has no row there."""
    command = run.starts[-1]["command"] if run.starts else ""
    found = re.search(r"experiment=coco_(\d)x(\d+)", command)
    recipe = (ROOT / "RECIPE.md").read_text(encoding="utf-8")
    row = found and re.search(r"\| {}×{} \| ([\d.]+) \| ([\d.]+) \|".format(*found.groups()), recipe)
    return float(row[1 + tf32]) if row else None


if __name__ == "__main__":
    main_of_cli(main, ReportConfig, ROOT / "conf", "report")
