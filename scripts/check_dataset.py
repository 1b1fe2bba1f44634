"""Check a data set before training on it: python scripts/check_dataset.py data.path=DIR

Reads both annotation files and decodes every picture; prints figures and all that is wrong, and writes it as
json. Exit status 0 where training takes the set as it is, 1 elsewhere.
Keys and their values: conf/check_dataset.yaml.
"""

from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from data.doctor.config import CheckDatasetConfig
from data.doctor.examination import examine
from data.doctor.screen import progress_bar, show
from ssd.compose import parse, register
from ssd.errors import UserError
from ssd.evaluation.report import write_report

register("check_dataset_schema", CheckDatasetConfig)


@hydra.main(version_base="1.3", config_path="../conf", config_name="check_dataset")
def main(composed: DictConfig) -> None:
    """Compose, examine, print, write, judge."""
    # Names of files and classes are shown as they are: [x] is no style and :car: no emoji.
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
    try:
        config = parse(CheckDatasetConfig, composed)
        with progress_bar(console) as watch:
            report = examine(config, watch)
        write_report(Path(config.out), report.as_json())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    show(report, console)
    console.print(f"all of it: {config.out}")
    if not report.is_fit:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
