"""One run of the doctor finds everything that is wrong with a data set, and accuses nothing that is sound."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.doctor.config import CheckDataConfig, CheckDatasetConfig, Split
from data.doctor.examination import examine
from data.doctor.findings import Kind, Severity
from data.doctor.report import DatasetReport
from tests.data.coco_folder import CocoFolder, noise
from tests.data.doctor.planted import Expected, plant_all

pytestmark = pytest.mark.unit


def config(root: Path, **data: object) -> CheckDatasetConfig:
    values = {"path": str(root), "threads": 1, "cache": str(root.parent / "cache")} | data
    return CheckDatasetConfig(data=CheckDataConfig(**values))


def examined(root: Path, **data: object) -> DatasetReport:
    return examine(config(root, **data), lambda *_: None)


def found(report: DatasetReport, *severities: Severity) -> Expected:
    severities = severities or (Severity.error, Severity.warning)
    return {
        (split, finding.kind, finding.where)
        for split, finding in report.findings()
        if finding.kind.value.severity in severities
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound data set of small JPEG files in COCO's layout: 45 images to train on, 8 to evaluate."""
    root = tmp_path / "set"
    rng = np.random.default_rng(3)
    for split, images in (("train", 45), ("val", 8)):
        data = CocoFolder(root / split)
        for number in range(images):
            width, height = (int(side) for side in rng.integers(60, 120, 2))
            data.add(1 + number, noise(rng, width, height), [(5, 5, width / 2, 20), (2, 2, 9, 9), (3, 9, 30, 9)])
            picture = data.image_folder / data.images[-1]["file_name"]
            data.images[-1]["file_name"] = picture.with_suffix(".jpg").name
            with Image.open(picture) as opened:
                opened.save(picture.with_suffix(".jpg"), quality=95)
            picture.unlink()
        data.write()
        (root / "annotations").mkdir(exist_ok=True)
        data.annotation_file.rename(root / f"annotations/instances_{split}2017.json")
        data.image_folder.rename(root / f"{split}2017")
        data.folder.rmdir()
    return root


def test_sound_set_is_fit(root: Path) -> None:
    report = examined(root)
    assert report.findings() == []
    assert report.is_fit
    assert report.verdict() == "fit for training: nothing is wrong"
    assert [split.truth_ap for split in report.splits] == [1.0, 1.0]
    assert [split.statistics.boxes for split in report.splits] == [135, 24]


def test_every_planted_defect_is_found_and_nothing_else_accused(root: Path) -> None:
    expected = plant_all(root)
    report = examined(root)
    assert found(report) == expected
    assert not report.is_fit
    planted = {kind for _, kind, _ in expected}
    unplanted = {kind for kind in Kind if kind.value.severity is not Severity.info} - planted
    assert unplanted == {
        # tested below or in the tests of their module: a whole file or folder is wrong
        Kind.unreadable_file, Kind.no_json, Kind.no_list, Kind.folder_missing, Kind.refused, Kind.stale_cache,
        Kind.truth_unlike, Kind.exif_unreadable,
    }  # fmt: skip


@pytest.mark.real_data
def test_every_defect_planted_among_photographs_is_found(tmp_path: Path, test_data: Path) -> None:
    root = tmp_path / "bccd"
    shutil.copytree(test_data / "bccd", root)
    assert examined(root).findings() == []
    expected = plant_all(root)
    assert found(examined(root)) == expected
