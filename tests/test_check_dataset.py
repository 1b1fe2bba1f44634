"""scripts/check_dataset.py as a user calls it: table, json, verdict and exit status."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.data.doctor.planted import plant_all, sound_set

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def check_dataset(*overrides: str) -> object:
    """Run the script in this process, in a tenth of the time; return its exit code or message."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["check_dataset.py", *overrides])
        try:
            runpy.run_path(str(ROOT / "scripts/check_dataset.py"), run_name="__main__")
        except SystemExit as ended:
            return ended.code
    return 0


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_sound_set_ends_with_status_0(folder: Path) -> None:
    sound_set(folder / "set")
    command = [sys.executable, str(ROOT / "scripts/check_dataset.py"), "data.path=set"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[:3] == [
        "train: reading the annotation file",
        "train: scoring the ground truth",
        "val: reading the annotation file",
    ]
    assert ended.stdout.splitlines()[-2:] == [
        "fit for training: no problems found",
        "full report: dataset_report.json",
    ]
    report = json.loads((folder / "dataset_report.json").read_text())
    assert report["fit"] is True
    assert report["findings"] == []
    assert report["splits"]["train"]["images"] == 45
    assert report["splits"]["val"]["ground_truth_ap"] == 1


def test_all_that_is_wrong_is_shown_and_names_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default Rich reads [x] as a style and :x: as an emoji, and lets ESC through."""
    root = sound_set(folder / "set")
    for split in ("train", "val"):
        file = root / f"annotations/instances_{split}2017.json"
        content = json.loads(file.read_text())
        for category, name in zip(
            content["categories"], ["sign [/b]", "[none]", ":car:\x1b[2J"], strict=True
        ):
            category["name"] = name
        file.write_text(json.dumps(content))
    expected = plant_all(root)
    assert check_dataset("data.path=set", "out=sub/report.json") == 1
    shown = capsys.readouterr().out
    for name in ("sign [/b]", "[none]", ":car:�[2J", "not fit for training ("):
        assert name in shown
    assert "\x1b" not in shown
    for _, kind, _ in expected:
        assert f"{kind.severity.value} {kind.title}: " in shown
    report = json.loads((folder / "sub/report.json").read_text())
    assert len(report["findings"]) >= len(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.path=nowhere", "out=."], "error: out=. names the folder .; give out=NAME"),
        ([], "error: data.path=null: give data.path=DIR in COCO layout"),
        (["splits=[]"], "error: splits=[]: give [train], [val]"),
        (["splits=[val,val]"], "error: splits=['val', 'val']: give"),
        (["data.min_box_px=0"], "error: data.min_box_px=0.0: give"),
    ],
)
def test_users_mistake_is_one_line(overrides: list[str], message: str) -> None:
    assert str(check_dataset(*overrides)).startswith(message)
