"""Check a data set before training on it: python scripts/check_dataset.py data.path=DIR

Reads both annotation files, decodes every picture, prints figures and problems, and writes them all as json.
The exit status is 0 if training accepts the set, else 1.
Keys and their values: conf/check_dataset.yaml.
"""

from pathlib import Path

from data.doctor.examine import examine
from ssd.cli import check_file, run
from ssd.config import CheckDatasetConfig
from ssd.console import PlainConsole, RunConsole
from ssd.evaluation.evaluator import write_report


def main(config: CheckDatasetConfig) -> None:
    """Examine the data set, print and write the report, set the exit status."""
    check_file(config.out, "out")
    with RunConsole(is_main=True) as progress:
        report = examine(config, progress)
    console = PlainConsole()
    report.show(console)
    write_report(config.out, "out", report.as_json())
    console.print(f"full report: {config.out}")
    if not report.is_fit:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main, CheckDatasetConfig, Path(__file__).parent.parent / "conf", "check_dataset")
