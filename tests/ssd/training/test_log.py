"""metrics.jsonl stays in order and whole; every ground-truth box of a batch is drawn, and once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from ssd.batches import TrainBatch
from ssd.boxes import default_boxes, encode_offsets, match
from ssd.categories import Categories
from ssd.config import OnError, TrainConfig
from ssd.console import RunConsole
from ssd.errors import UserError
from ssd.evaluation.coco import RECALL_LEVELS, score
from ssd.evaluation.errors import KINDS, Analysis, explain
from ssd.training import log
from ssd.training.log import MetricsFile, RunLog
from tests.ssd.test_coco_numbers import write
from tests.ssd.test_detection_errors import planted

pytestmark = pytest.mark.unit


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def written(path: Path, *records: int | dict[str, Any]) -> Path:
    metrics = MetricsFile(path, 0)
    for record in records:
        metrics.write({"step": record} if isinstance(record, int) else record)
    metrics.close()
    return path


EVALUATED = ({"step": 5, "AP": 0.1}, {"step": 9, "loss": 1.0}, {"step": 9, "AP": 0.2})


@pytest.mark.parametrize(
    ("records", "first_step", "redo_evaluation", "kept"),
    [
        ((10, 20, 20, 30), 20, False, [10, 20, 20]),
        ((10,), 0, False, []),
        (EVALUATED, 9, False, [5, 9, 9]),
        (EVALUATED, 9, True, [5, 9]),
    ],
)
def test_records_that_will_be_written_again_are_cut(
    records: tuple[Any, ...], first_step: int, redo_evaluation: bool, kept: list[int], tmp_path: Path
):
    path = written(tmp_path / "metrics.jsonl", *records)
    path.write_text(path.read_text() + '{"step": 1')  # as a killed process leaves it
    metrics = MetricsFile(path, first_step, redo_evaluation)
    assert steps(path) == kept
    metrics.write({"step": 99})
    assert steps(path) == [*kept, 99]


@pytest.mark.parametrize(
    "garbled", [b"\0\0\0\0", b'{"step": 1', b"\xff", b"[]", b"7", b'{"AP": 0.1}', b'{"step": "x"}']
)
def test_a_garbled_line_is_named(garbled: bytes, tmp_path: Path):
    path = written(tmp_path / "metrics.jsonl", 10, 20, 30)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], garbled, lines[2], b""]))
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is no record of a step .* remove it"):
        MetricsFile(path, first_step=30)
    MetricsFile(path, first_step=0).close()  # what will be written again is not looked at
    assert steps(path) == []


def test_what_is_no_number_is_null_and_the_file_stays_json(tmp_path: Path):
    path = written(tmp_path / "metrics.jsonl", {"step": 1, "loss": float("nan"), "learning_rate": 0.1})
    assert path.read_text() == '{"step": 1, "loss": null, "learning_rate": 0.1}\n'


class FullDisk:
    """Takes five bytes of anything."""

    def __init__(self, file: Any) -> None:
        self.file, self.name, self.truncate, self.close = file, file.name, file.truncate, file.close

    def write(self, text: bytes) -> int:
        return self.file.write(text[:5])


def full_disk(folder: Path, on_error: str, patch: pytest.MonkeyPatch) -> RunLog:
    """Open a log that finds the disk full after its first record."""
    run_log = RunLog(folder, 0, False, OnError[on_error], RunConsole(is_main=True))
    run_log.record("train", {"step": 1})
    patch.setattr(run_log._metrics, "_file", FullDisk(run_log._metrics._file))
    return run_log


def test_a_record_that_a_full_disk_refuses_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run_log = full_disk(tmp_path, "fail", monkeypatch)
    with pytest.raises(UserError, match=r"records can't be written .*checkpoint\.on_error=continue"):
        run_log.record("train", {"step": 2})


def test_records_that_a_full_disk_refused_come_when_it_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run_log = full_disk(tmp_path, "continue", monkeypatch)
    for step in (2, 3):
        run_log.record("train", {"step": step})
        assert steps(tmp_path / "metrics.jsonl") == [1]
    assert capsys.readouterr().out.count("training goes on") == 2
    monkeypatch.undo()
    run_log.record("train", {"step": 4})
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3, 4]
    run_log.close()


def drawn(boxes_ltrb_px: list[list[float]], labels: list[int], patch: pytest.MonkeyPatch) -> list[str]:
    """Return the names that are drawn for an image with these boxes."""
    boxes = default_boxes()
    matched, target = match(torch.tensor(boxes_ltrb_px) / 300, torch.tensor(labels), boxes)
    offsets = torch.where(target[:, None] > 0, encode_offsets(matched, boxes), 0.0)
    names: list[str] = []

    def record(_picture: Image.Image, boxes_px: list[list[float]], _labels: list[int], texts: list[str]):
        assert len(boxes_px) == len(texts)
        names.extend(texts)

    patch.setattr(log, "draw_boxes", record)
    batch = TrainBatch(torch.zeros(1, 3, 300, 300), offsets[None], target[None])
    log.batch_picture(batch, Categories(ids=(7, 9), names=("tree", "house")))
    return sorted(names)


@pytest.mark.parametrize("edge_px", [10.0, 10.25, 10.4999, 10.5, 10.5001, 10.75])
def test_a_box_is_drawn_once_wherever_its_edges_lie(edge_px: float, monkeypatch: pytest.MonkeyPatch):
    box = [edge_px, edge_px + 30, edge_px + 120, edge_px + 160]
    assert drawn([box], [1], monkeypatch) == ["tree"]


def test_near_boxes_and_boxes_of_two_labels_at_one_place_are_all_drawn(monkeypatch: pytest.MonkeyPatch):
    boxes = [[10.5, 10, 80, 80], [11.5, 10, 80, 80], [150, 150, 250, 260], [150, 150, 250, 258]]
    assert drawn(boxes, [1, 1, 2, 1], monkeypatch) == ["house", "tree", "tree", "tree"]


def shown(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return what TensorBoard shows: of each tag its steps and values."""
    accumulator = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    events = {tag: accumulator.Tensors(tag) for tag in accumulator.Tags()["tensors"]}
    return {tag: [(e.step, make_ndarray(e.tensor_proto)) for e in of_tag] for tag, of_tag in events.items()}


def start(folder: Path, first_step: int, *, redo: bool = False, **changes: Any) -> RunLog:
    run_log = RunLog(folder, first_step, redo, OnError["fail"], RunConsole(is_main=False))
    run_log.start(TrainConfig(**changes), {})
    return run_log


def evaluated(run_log: RunLog, step: int, found: list[dict[str, Any]], truth: Path) -> Analysis:
    analysis = explain(score(truth, found))
    run_log.record("evaluation", {"step": step, "AP": float(step)})
    run_log.analysis(analysis, step)
    return analysis


def test_tensorboard_shows_where_detections_fail_and_nothing_twice(tmp_path: Path):
    truth, found = planted()
    file = write(tmp_path, truth)
    run_log = start(tmp_path, 0)
    run_log.record("train", {"step": 1, "loss": 2.0})
    run_log.close()  # killed before the first checkpoint
    run_log = start(tmp_path, 0)
    run_log.record("train", {"step": 1, "loss": 2.0})
    evaluated(run_log, 4, found[1:], file)
    run_log.record("train", {"step": 5, "loss": 2.0})
    run_log.close()  # killed before the evaluation was saved
    run_log = start(tmp_path, 4, redo=True, seed=7)
    analysis = evaluated(run_log, 4, found[1:], file)
    evaluated(run_log, 8, [], file)
    run_log.close()

    tags = shown(tmp_path)
    at_each = ["evaluation/AP", *(f"AP50_lost_to/{kind}" for kind in KINDS)]
    at_each += ["class_AP/5", "class_AP/seven", "class/5", "class/seven"]  # six has no box
    steps = {tag: [step for step, _ in of_tag] for tag, of_tag in tags.items()}
    assert steps == {tag: [4, 8] for tag in at_each} | {
        "train/loss": [1],
        "scores": [4],  # of no detections there is none
        "config/text_summary": [0, 4],  # as it began, and as it was changed
        "_hparams_/experiment": [0, 0],
        "_hparams_/session_start_info": [0, 0],
    }
    assert [value for _, value in tags["class_AP/5"]] == pytest.approx([analysis.ap[0], 0])
    assert tags["AP50_lost_to/missed"][0][1] == pytest.approx(analysis.cost["missed"])
    curve, nothing = (value for _, value in tags["class/5"])  # 6×101: counts, precision, recall
    assert curve[4:] == pytest.approx(np.stack([analysis.precision[0, :, 0], RECALL_LEVELS])[:, ::-1])
    assert not nothing[[0, 1, 2, 4]].any()
    for seed, (_, text) in zip((0, 7), tags["config/text_summary"], strict=True):
        assert f"seed: {seed}\n".encode() in text[0]
