"""metrics.jsonl stays in order and whole; every ground-truth box of a batch is drawn; TensorBoard."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
from ssd.config import CheckpointConfig, OnError, TrainConfig
from ssd.console import RunConsole
from ssd.errors import UserError
from ssd.evaluation.coco import RECALL_LEVELS, score
from ssd.evaluation.errors import KINDS, Analysis, explain
from ssd.training import log
from ssd.training.log import RunLog, append_record, cut_records
from tests.ssd.test_coco_numbers import write
from tests.ssd.test_detection_errors import planted

pytestmark = pytest.mark.unit


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


EVALUATED = ({"step": 5, "AP": 0.1}, {"step": 9, "loss": 1.0}, {"step": 9, "AP": 0.2})


@pytest.mark.parametrize(
    ("records", "first_step", "redo_evaluation", "kept"),
    [
        (({"step": 10}, {"step": 20}, {"step": 20}, {"step": 30}), 20, False, [10, 20, 20]),
        (({"step": 10},), 0, False, []),
        ((), 0, False, []),
        (EVALUATED, 9, False, [5, 9, 9]),
        (EVALUATED, 9, True, [5, 9]),
    ],
)
def test_records_that_will_be_written_again_are_cut(
    records: tuple[Any, ...], first_step: int, redo_evaluation: bool, kept: list[int], tmp_path: Path
):
    path = tmp_path / "metrics.jsonl"
    for record in records:
        append_record(path, record)
    with path.open("a") as file:
        file.write('{"step": 1')  # as a killed process leaves it
    cut_records(path, first_step, redo_evaluation)
    append_record(path, {"step": 99})
    assert steps(path) == [*kept, 99]


def test_what_is_no_number_is_null_and_the_file_stays_json(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    append_record(path, {"step": 1, "loss": float("nan"), "learning_rate": 0.1})
    assert path.read_text() == '{"step": 1, "loss": null, "learning_rate": 0.1}\n'


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_a_record_that_a_full_disk_refuses_stops_the_run_or_is_told_and_no_half_line_stays(
    on_error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = TrainConfig("x", checkpoint=CheckpointConfig(on_error=OnError[on_error]))
    run_log = RunLog(tmp_path, config, 0, False, RunConsole(is_main=True))
    run_log.record("train", {"step": 1})
    refused = pytest.raises(UserError, match=r"records can't be written .*checkpoint\.on_error=continue")
    with room_for(17), refused if on_error == "fail" else nullcontext():
        run_log.record("train", {"step": 2})
    run_log.record("train", {"step": 3})
    run_log.close()
    assert steps(tmp_path / "metrics.jsonl") == [1, 3]
    assert ("records can't be written" in capsys.readouterr().out) == (on_error == "continue")


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


def test_a_box_is_drawn_once_and_near_boxes_and_two_labels_at_one_place_are_all(monkeypatch: Any):
    boxes = [[10.2, 10, 80, 80], [12.2, 10, 80, 80], [150, 150, 250, 260], [150, 150, 250, 258]]
    assert drawn(boxes, [1, 1, 2, 1], monkeypatch) == ["house", "tree", "tree", "tree"]


def shown(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """Return what TensorBoard shows: of each tag its steps and values."""
    accumulator = EventAccumulator(str(folder), {"tensors": 0}).Reload()
    events = {tag: accumulator.Tensors(tag) for tag in accumulator.Tags()["tensors"]}
    return {tag: [(e.step, make_ndarray(e.tensor_proto)) for e in of_tag] for tag, of_tag in events.items()}


def start(folder: Path, first_step: int, *, redo: bool = False, **changes: Any) -> RunLog:
    config = TrainConfig("x", **changes)
    run_log = RunLog(folder, config, first_step, redo, RunConsole(is_main=True))
    run_log.start({})
    return run_log


def evaluated(run_log: RunLog, step: int, found: list[dict[str, Any]], truth: Path) -> Analysis:
    scored = score(truth, found)
    run_log.record("evaluation", {"step": step, "AP": float(step)})
    run_log.analysis(scored, step)
    return explain(scored)


def test_tensorboard_shows_where_detections_fail_and_no_record_twice(tmp_path: Path):
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
        "config/text_summary": [0, 0, 4],  # each start's
        "_hparams_/experiment": [0, 0, 0],
        "_hparams_/session_start_info": [0, 0, 0],
    }
    assert [value for _, value in tags["class_AP/5"]] == pytest.approx([analysis.ap[0], 0])
    assert tags["AP50_lost_to/missed"][0][1] == pytest.approx(analysis.cost["missed"])
    curve, nothing = (value for _, value in tags["class/5"])  # 6×101: counts, precision, recall
    assert curve[4:] == pytest.approx(np.stack([analysis.precision[0, :, 0], RECALL_LEVELS])[:, ::-1])
    assert not nothing[[0, 1, 2, 4]].any()
    for seed, (_, text) in zip((0, 0, 7), tags["config/text_summary"], strict=True):
        assert f"seed: {seed}\n".encode() in text[0]


def test_a_failure_in_the_analysis_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    truth, found = planted()
    scored = score(write(tmp_path, truth), found)
    monkeypatch.setattr(log, "explain", lambda _: [][1])
    run_log = start(tmp_path, 0)
    run_log.analysis(scored, 4)
    run_log.close()
    assert "after step 4 can't be analysed for TensorBoard: IndexError(" in capsys.readouterr().out
