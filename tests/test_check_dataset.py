"""scripts/check_dataset.py as a user calls it: its table, its json, its verdict and exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssd.config import CheckDataConfig, CheckDatasetConfig, Split
from ssd.errors import UserError
from tests.conftest import ROOT
from tests.data.doctor.planted import plant_all, sound_set

pytestmark = pytest.mark.unit


def check_dataset(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/check_dataset.py"), *overrides],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_sound_set_ends_with_status_0(tmp_path: Path) -> None:
    sound_set(tmp_path / "set")
    ended = check_dataset(tmp_path, "data.path=set")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[:3] == [
        "train: reading the annotation file",
        "train: scoring the ground truth",
        "val: reading the annotation file",
    ]
    assert ended.stdout.splitlines()[-2:] == [
        "fit for training: nothing is wrong",
        "all of it: dataset_report.json",
    ]
    report = json.loads((tmp_path / "dataset_report.json").read_text())
    assert report["fit"] is True
    assert report["findings"] == []
    assert report["splits"]["train"]["images"] == 45
    assert report["splits"]["val"]["ground_truth_ap"] == 1


def test_bad_set_ends_with_status_1_and_all_that_is_wrong(tmp_path: Path) -> None:
    expected = plant_all(sound_set(tmp_path / "set"))
    ended = check_dataset(tmp_path, "data.path=set", "out=sub/report.json", "data.cache=cache")
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "not fit for training (" in ended.stdout
    for _, kind, _ in expected:
        assert f"{kind.severity.value} {kind.title}: " in ended.stdout
    report = json.loads((tmp_path / "sub/report.json").read_text())
    assert len(report["findings"]) >= len(expected)


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Rich takes [x] for a style and :x: for an emoji unless it is told not to."""
    names = ["sign [/b]", "[none]", ":car:"]
    root = sound_set(tmp_path / "set")
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}2017.json"
        content = json.loads(file.read_text())
        for category, name in zip(content["categories"], names, strict=True):
            category["name"] = name
        file.write_text(json.dumps(content))
    (root / "val2017/[red]not[bold].jpg").write_text("")
    ended = check_dataset(tmp_path, "data.path=set")
    assert (ended.returncode, ended.stderr) == (0, "")
    for name in (*names, "[red]not[bold].jpg", "info file not listed: 1"):
        assert name in ended.stdout


def test_a_report_that_cannot_be_written_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    ended = check_dataset(tmp_path, "data.path=nowhere", "out=.")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: out=. names the folder .; give out=NAME.json")


def test_missing_path_is_an_error_with_its_fix(tmp_path: Path) -> None:
    ended = check_dataset(tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: data.path=null: give data.path=DIR in COCO layout")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"splits": []}, r"splits=\[\]: give \[train\], \[val\]"),
        ({"splits": [Split.val, Split.val]}, r"splits=\['val', 'val'\]: give"),
        ({"data": CheckDataConfig(threads=0)}, "data.threads=0: give at least 1"),
        ({"data": CheckDataConfig(min_box_px=0)}, "data.min_box_px=0: give"),
    ],
)
def test_value_that_makes_no_sense_is_refused_with_its_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CheckDatasetConfig(**config)
