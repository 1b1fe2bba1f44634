"""One run of the doctor finds everything that is wrong with a data set, and accuses nothing that is sound."""

import json
import os
import shutil
from pathlib import Path

import pytest
from data.annotation_cache import open_annotations
from data.coco_json import Source, read_document

from data.build import open_training
from data.doctor.examination import examine
from data.doctor.findings import Kind, Severity
from data.doctor.ids import entry_name
from data.doctor.report import DatasetReport
from data.doctor.truth import TruthScore
from ssd.config import CheckDataConfig, CheckDatasetConfig, DataConfig, OnBadImage, TrainConfig
from ssd.config import Split as SplitName
from ssd.errors import UserError
from ssd.training.session import Session
from tests.data.doctor.planted import Expected, Split, cut, plant_all, rotate
from tests.data.doctor.sound_set import sound_set

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
    return sound_set(tmp_path / "set")


def test_sound_set_is_fit(root: Path) -> None:
    report = examined(root)
    assert report.findings() == []
    assert report.is_fit
    assert report.verdict() == "fit for training: nothing is wrong"
    assert [split.truth for split in report.splits] == [TruthScore(1.0, 45), TruthScore(1.0, 8)]
    assert [split.statistics.boxes for split in report.splits] == [135, 24]


def test_it_is_told_what_is_being_done_and_how_far_it_is(root: Path) -> None:
    told: list[tuple[str, int, int]] = []
    examine(config(root), lambda *progress: told.append(progress))
    assert told[:3] == [
        ("train: reading the annotation file", 0, 3),
        ("train: opening it as training does", 1, 3),
        ("train: scoring the ground truth", 2, 3),
    ]
    assert told[6] == ("train: decoding 45 pictures", 0, 45)
    assert told[-1] == ("val: decoding 8 pictures", 8, 8)


def test_training_parser_reads_each_file_once_and_nothing_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of COCO's size takes seconds and a gigabyte each time."""
    parsed = []
    monkeypatch.setattr(
        "data.annotations.read_document",
        lambda source: [parsed.append(source.split), read_document(source)][1],
    )
    assert examined(root).is_fit
    assert parsed == ["train", "val"]
    assert not (root.parent / "cache").exists()


def test_annotation_file_among_the_pictures_is_none_that_was_forgotten(root: Path) -> None:
    """Roboflow puts _annotations.coco.json there."""
    file = root / "val2017/_annotations.coco.json"
    (root / "annotations/instances_val2017.json").rename(file)
    assert examined(root, val_annotations=str(file)).findings() == []


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


def only_finding(root: Path, kind: Kind, **data: object) -> str:
    """Examine; return where the one thing wrong is, which is of that kind, notes aside."""
    ((_, found_kind, where),) = found(examined(root, **data))
    assert found_kind is kind
    return where


def test_splits_can_be_looked_at_alone_and_paths_given_one_by_one(root: Path) -> None:
    plant_all(root)
    sound = sound_set(root.parent / "other")
    report = examine(
        CheckDatasetConfig(
            splits=[SplitName.val],
            data=CheckDataConfig(
                val_images=str(sound / "val2017"),
                val_annotations=str(sound / "annotations/instances_val2017.json"),
                cache=str(root.parent / "cache"),
                threads=1,
            ),
        ),
        lambda *_: None,
    )
    assert report.is_fit
    assert [split.split for split in report.splits] == [SplitName.val]


def test_missing_folder_is_one_finding_not_one_a_file(root: Path) -> None:
    shutil.rmtree(root / "val2017")
    assert only_finding(root, Kind.folder_missing) == str(root / "val2017")


def test_missing_annotation_file_is_reported_and_the_other_split_looked_at(root: Path) -> None:
    (root / "annotations/instances_train2017.json").unlink()
    val = Split.read(root, "val")
    val.file(Kind.exif_rotation, rotate)
    report = found(examined(root, train_images=str(root / "val2017")))
    kinds = {(split, kind) for split, kind, _ in report}
    assert val.expected <= report
    assert ("train", Kind.unreadable_file) in kinds


def test_files_listed_by_one_split_are_not_missing_from_the_other(root: Path) -> None:
    """Train and val may share a folder."""
    for path in (root / "val2017").iterdir():
        path.rename(root / "train2017" / f"val_{path.name}")
    val = Split.read(root, "val")
    for image in val.document["images"]:
        image["file_name"] = f"val_{image['file_name']}"
    val.write()
    (root / "train2017/forgotten.jpg").write_text("")
    notes = found(examined(root, val_images=str(root / "train2017")), Severity.info)
    assert {(kind, Path(where).name) for _, kind, where in notes} == {(Kind.file_not_listed, "forgotten.jpg")}


def test_link_within_the_folder_and_a_linked_folder_are_sound(root: Path) -> None:
    picture = next((root / "train2017").iterdir())
    picture.rename(picture.parent / "real.jpg")
    picture.symlink_to("real.jpg")
    (root / "train2017").rename(root / "elsewhere")
    (root / "train2017").symlink_to(root / "elsewhere")
    assert not found(examined(root))


def test_parsed_copy_that_differs_from_the_file_is_found(root: Path) -> None:
    """A file changed by a tool that sets its time back is taken for the old one by its size and time."""
    file = root / "annotations/instances_train2017.json"
    open_annotations(Source(file, root / "train2017", "train"), root.parent / "cache")
    assert examined(root).is_fit
    status = file.stat()
    file.write_text(file.read_text().replace("[5, 5, ", "[6, 5, "))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert only_finding(root, Kind.stale_cache) == str(file)


def test_what_no_check_knows_but_training_refuses_is_an_error(root: Path) -> None:
    train = Split.read(root, "train")
    train.document["annotations"].clear()
    train.write()
    report = found(examined(root))
    assert ("train", Kind.refused, str(train.annotation_file)) in report


def test_ground_truth_that_scores_badly_without_a_reason_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.doctor.training_view.score_truth", lambda *_: TruthScore(0.5, 8))
    report = examined(root)
    assert {kind for _, kind, _ in found(report)} == {Kind.truth_unlike}
    assert not report.is_fit


def test_more_boxes_than_are_scored_are_the_reason_of_a_low_score(root: Path) -> None:
    val = Split.read(root, "val")
    for number in range(101):
        val.annotate(bbox=[5 + 0.1 * number, 5, 20, 20])
    val.write()
    report = examined(root)
    ((_, finding),) = report.findings()
    assert finding.kind is Kind.truth_lost
    assert "boxes of category 7; at most 100 are scored" in finding.detail
    truth = report.splits[1].truth
    assert truth is not None
    assert truth.ap < 0.999
    assert report.is_fit


def test_what_quarantine_can_do_without_is_what_training_does_without(root: Path, session: Session) -> None:
    data = DataConfig(path=str(root), batch_size=2, on_bad_image=OnBadImage.quarantine)
    with_quarantine = TrainConfig(name="x", data=data)
    promise = "data.on_bad_image=quarantine would train without these images"
    train, val = Split.read(root, "train"), Split.read(root, "val")
    train.file(Kind.file_empty, lambda path: cut(path, 0))
    assert examined(root).verdict().endswith(f"(1 error); {promise}")
    assert len(open_training(with_quarantine, None, session)[0].excluded) == 1

    val.file(Kind.file_empty, lambda path: cut(path, 0))
    assert examined(root).verdict().endswith("(2 errors)")
    with pytest.raises(UserError, match=r"data.val_images=.*1 of 8 image files can't be used"):
        open_training(with_quarantine, None, session)


def test_no_promise_where_something_besides_files_is_wrong(root: Path) -> None:
    train = Split.read(root, "train")
    train.file(Kind.file_missing, Path.unlink)
    train.annotate(Kind.unknown_image, image_id=-1)
    train.write()
    assert "quarantine" not in examined(root).verdict()


def test_no_promise_where_no_image_would_be_left(root: Path, session: Session) -> None:
    for path in (root / "train2017").iterdir():
        path.unlink()
    assert examined(root).verdict().endswith("(45 errors)")
    data = DataConfig(path=str(root), batch_size=2, on_bad_image=OnBadImage.quarantine)
    with pytest.raises(UserError, match="no image is left"):
        open_training(TrainConfig(name="x", data=data), None, session)


def test_unreadable_exif_is_a_warning(root: Path) -> None:
    path = next((root / "val2017").iterdir())
    rotate(path, "WEBP")
    text = path.read_bytes()
    assert text.count(b"MM\0*") == 1
    path.write_bytes(text.replace(b"MM\0*", b"MM!*"))
    assert only_finding(root, Kind.exif_unreadable) == str(path)


@pytest.mark.parametrize("picture_format", ["JPEG", "PNG", "WEBP"])
def test_rotation_is_seen_in_every_kind_of_file(root: Path, picture_format: str) -> None:
    path = next((root / "val2017").iterdir())
    rotate(path, picture_format)
    assert only_finding(root, Kind.exif_rotation) == str(path)


def test_names_that_are_no_utf8_are_reported(root: Path) -> None:
    """Half a surrogate pair in the file, Latin-1 on the disk."""
    (root / "val2017" / os.fsdecode(b"caf\xe9.jpg")).write_text("")
    val = Split.read(root, "val")
    val.edit_image(Kind.field_type, file_name="\ud83d.jpg")
    val.document["categories"][0]["name"] = "\ud83d"
    val.expect(Kind.field_type, entry_name("categories", 0, val.document["categories"][0]["id"]))
    val.write()
    report = examined(root)
    json.dumps(report.as_json(), ensure_ascii=False).encode()
    assert val.expected <= found(report)
    assert ("val", Kind.file_not_listed, str(root / "val2017/caf\\udce9.jpg")) in found(report, Severity.info)


def test_report_is_plain_json_with_every_finding(root: Path) -> None:
    expected = plant_all(root)
    report = json.loads(json.dumps(examined(root).as_json()))
    assert report["fit"] is False
    listed = {(entry["split"], entry["kind"], entry["where"]) for entry in report["findings"]}
    assert {(split, kind.value.title, where) for split, kind, where in expected} <= listed
    assert report["splits"]["val"]["boxes_of_class"]["bird"] > 0
