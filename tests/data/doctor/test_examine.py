"""One run of the doctor finds everything that is wrong with a data set and has no false alarms."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.doctor.examine import compare_categories, examine, score_truth
from data.doctor.findings import Kind, Severity
from data.doctor.report import DatasetReport
from data.index import CocoIndex, Selection
from ssd.categories import Categories
from ssd.config import CheckDatasetConfig, DataSource
from ssd.config import Split as SplitName
from ssd.console import RunConsole
from tests.data.coco_folder import index_of, noise_folder
from tests.data.doctor.planted import Expected, Split, plant_all, sound_set

pytestmark = [pytest.mark.unit, pytest.mark.slow]


def examined(root: Path, **data: Any) -> DatasetReport:
    data = {"path": str(root), "threads": 1} | data
    return examine(CheckDatasetConfig(data=DataSource(**data)), RunConsole(is_main=False))


def found(report: DatasetReport, *severities: Severity) -> Expected:
    severities = severities or (Severity.error, Severity.warning)
    return {
        (split, finding.kind, finding.where)
        for split, finding in report.findings
        if finding.kind.severity in severities
    }


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sound_set(tmp_path_factory.mktemp("sound") / "set")


@pytest.fixture
def root(sound: Path, tmp_path: Path) -> Path:
    """A copy of the sound set, for a test to damage."""
    return shutil.copytree(sound, tmp_path / "set")


def test_sound_set_is_fit(sound: Path) -> None:
    report = examined(sound)
    assert report.findings == []
    assert report.is_fit
    truth = [(each.ground_truth_ap, each.ground_truth_images_scored) for each in report.splits.values()]
    assert truth == [(1.0, 45), (1.0, 8)]
    assert [split.boxes for split in report.splits.values()] == [135, 24]


def test_every_planted_defect_is_found_and_nothing_else_accused(root: Path) -> None:
    expected = plant_all(root)
    report = examined(root)
    assert found(report) == expected
    assert not report.is_fit
    planted = {kind for _, kind, _ in expected}
    assert {kind for kind in Kind if kind.severity is not Severity.info} - planted == {
        # a whole file or folder is wrong: tested below or with ssd.annotations
        Kind.unreadable_file, Kind.no_json, Kind.no_list, Kind.folder_missing, Kind.refused,
        Kind.truth_unlike,
    }  # fmt: skip
    plain = json.loads(json.dumps(report.as_json()))
    assert plain["fit"] is False
    assert all(entry["fix"] for entry in plain["findings"])
    listed = {(entry["split"], entry["kind"], entry["where"]) for entry in plain["findings"]}
    assert {(split, kind.title, where) for split, kind, where in expected} <= listed
    assert plain["splits"]["val"]["boxes_of_class"]["bird"] > 0


@pytest.mark.real_data
def test_every_defect_planted_among_photographs_is_found(tmp_path: Path, test_data: Path) -> None:
    root = tmp_path / "bccd"
    shutil.copytree(test_data / "bccd", root)
    expected = plant_all(root)
    assert found(examined(root)) == expected


# ---- one thing is wrong: its kind, and its place relative to the set's folder

TRAIN = "annotations/instances_train2017.json"


def no_folder(root: Path) -> dict[str, str]:
    shutil.rmtree(root / "val2017")
    return {}


def no_boxes(root: Path) -> dict[str, str]:
    train = Split.read(root, "train")
    train.document["annotations"].clear()
    train.write()
    return {}


def no_annotation_file(root: Path) -> dict[str, str]:
    (root / TRAIN).unlink()
    return {}


def links_within_the_folder_and_a_linked_folder(root: Path) -> dict[str, str]:
    (root / "train2017/1.jpg").rename(root / "train2017/real.jpg")
    (root / "train2017/1.jpg").symlink_to("real.jpg")
    (root / "train2017").rename(root / "elsewhere")
    (root / "train2017").symlink_to(root / "elsewhere")
    return {}


def both_splits_in_one_folder(root: Path) -> dict[str, str]:
    val = Split.read(root, "val")
    for image in val.document["images"]:
        name = image["file_name"]
        image["file_name"] = f"val_{name}"
        (root / "val2017" / name).rename(root / "train2017" / image["file_name"])
    val.write()
    return {"val_images": str(root / "train2017")}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (no_folder, {(Kind.folder_missing, "val2017")}),
        (no_annotation_file, {(Kind.unreadable_file, TRAIN), (Kind.truth_unscored, TRAIN)}),
        (no_boxes, {(Kind.refused, TRAIN), (Kind.truth_unscored, TRAIN)}),
        (links_within_the_folder_and_a_linked_folder, set()),
        (both_splits_in_one_folder, set()),
    ],
)
def test_one_damage_is_found_where_it_is(
    root: Path, damage: Callable[[Path], dict[str, str]], expected: set[tuple[Kind, str]]
) -> None:
    report = examined(root, **damage(root))
    assert {
        (kind, os.path.relpath(where, root))
        for _, kind, where in found(report, *Severity)
        if kind is not Kind.category_without_boxes
    } == expected


def test_splits_can_be_examined_alone_and_paths_given_one_by_one(sound: Path) -> None:
    annotations = str(sound / "annotations/instances_val2017.json")
    data = DataSource(val_images=str(sound / "val2017"), val_annotations=annotations, threads=1)
    report = examine(CheckDatasetConfig([SplitName.val], data=data), RunConsole(is_main=False))
    assert (report.findings, [*report.splits]) == ([], ["val"])


def test_names_that_are_not_utf8_are_reported(root: Path) -> None:
    """Latin-1 names, in the annotation file and on disk."""
    latin = root / os.fsdecode(b"caf\xe9.jpg")
    (root / "train2017/1.jpg").rename(latin)
    (root / "train2017/1.jpg").symlink_to(latin)
    val = Split.read(root, "val")
    val.edit_image(Kind.path_leaves_folder, file_name="BYTE.jpg")
    val.write()
    file = val.annotation_file
    file.write_bytes(file.read_bytes().replace(b"BYTE", b"\xe9"))
    report = examined(root)
    json.dumps(report.as_json(), ensure_ascii=False).encode()
    linked = ("train", Kind.link_leaves_folder, str(root / "train2017/1.jpg"))
    assert val.expected | {linked} <= found(report)


# ---- ground truth as detections

AS_EVALUATED = Selection("val", crowd_boxes=False, min_box_px=0.0, images_without_boxes=True)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> CocoIndex:
    data = noise_folder(tmp_path_factory.mktemp("truth"), 12)
    data.annotations[3] |= {"iscrowd": 1}
    return index_of(data, AS_EVALUATED)


def test_ground_truth_scores_one_whole_or_in_part(index: CocoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    assert score_truth(index) == (pytest.approx(1, abs=1e-12), 12)
    monkeypatch.setattr("data.doctor.examine.SCORED_IMAGES", 3)
    assert score_truth(index) == (pytest.approx(1, abs=1e-12), 3)


def lost_last_box(index: CocoIndex) -> CocoIndex:
    box_starts = np.minimum(index.box_starts, len(index.labels) - 1)
    return replace(index, box_starts=box_starts, boxes_ltrb=index.boxes_ltrb[:-1], labels=index.labels[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: replace(index, labels=index.labels % 3 + 1),
        lambda index: replace(index, image_ids=np.roll(index.image_ids, 1)),
        lambda index: replace(index, sizes_px=index.sizes_px[:, ::-1].copy()),
        lost_last_box,
    ],
    ids=["labels", "image ids", "sizes", "one box lost"],
)
def test_what_is_wrong_on_the_way_shows(index: CocoIndex, damage: Callable[[CocoIndex], CocoIndex]) -> None:
    assert score_truth(damage(index))[0] < 0.999


def test_score_below_one_without_a_reason_is_an_error(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.doctor.examine.score_truth", lambda _: (0.5, 8))
    assert {kind for _, kind, _ in found(examined(sound))} == {Kind.truth_unlike}


def test_more_boxes_than_are_scored_are_the_reason_of_a_low_score(root: Path) -> None:
    val = Split.read(root, "val")
    for number in range(101):
        val.annotate(bbox=[5 + 0.1 * number, 5, 20, 20])
    val.write()
    report = examined(root)
    ((_, finding),) = report.findings
    assert finding.kind is Kind.truth_lost
    assert "boxes of category 7; at most 100 are scored" in finding.detail
    ap = report.splits["val"].ground_truth_ap
    assert ap is not None
    assert ap < 0.999
    assert report.is_fit


def test_crowds_alone_have_no_score(root: Path) -> None:
    val = Split.read(root, "val")
    for annotation in val.document["annotations"]:
        annotation["iscrowd"] = 1
    val.write()
    assert found(examined(root)) == {("val", Kind.truth_unscored, str(val.annotation_file))}


# ---- categories of the two splits


@pytest.mark.parametrize(
    ("train", "val", "expected"),
    [
        ({1: "cat", 2: "dog"}, {2: "dog", 1: "cat"}, []),
        ({1: "cat", 2: "dog"}, {1: "cat"}, [(Kind.category_missing, "id 2 in train, missing from val")]),
        ({1: "cat"}, {1: "cat", 2: "dog"}, [(Kind.category_missing, "id 2 in val, missing from train")]),
        ({1: "cat"}, {1: "Cat"}, [(Kind.category_renamed, "id 1 is 'cat' in train, 'Cat' in val")]),
        ({1: "cat"}, {0: "cat"}, [(Kind.category_renumbered, "id 1 in train, 0 in val")]),
        (
            {1: "cat", 2: "dog"},
            {1: "dog", 2: "cat"},
            [
                (Kind.category_renumbered, "id 1 in train, 2 in val"),
                (Kind.category_renumbered, "id 2 in train, 1 in val"),
            ],
        ),
        ({}, {}, []),
    ],
)
def test_each_difference_of_categories_is_told_once(
    train: dict[int, str], val: dict[int, str], expected: list[tuple[Kind, str]]
) -> None:
    of_train, of_val = (Categories(tuple(each), tuple(each.values())) for each in (train, val))
    assert [(each.kind, each.detail) for each in compare_categories(of_train, of_val)] == expected
