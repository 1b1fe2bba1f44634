"""Signals end a run where all ranks agree, or at once before it begins; a restart knows why it was ended."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd.distributed import Ranks
from ssd.training.stop import FILE, Preempted, StopSignals, leave_if_preempted

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run-1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    return monkeypatch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_while_training_is_noted_and_nothing_else(number: signal.Signals, tmp_path: Path):
    with StopSignals(tmp_path, is_main=True) as signals:
        signals.note_only()
        assert signals.received == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes it on: the first one stays
        assert signals.received == number
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(
    ("number", "is_main", "left"),
    [
        (signal.SIGUSR1, True, True),
        (signal.SIGINT, True, True),
        (signal.SIGUSR1, False, False),
        # torchrun ends all ranks with it when one of them fails: no preemption.
        (signal.SIGTERM, True, False),
    ],
)
def test_a_signal_before_training_ends_the_process_at_once(
    number: signal.Signals, is_main: bool, left: bool, tmp_path: Path
):
    with (
        StopSignals(tmp_path / "run", is_main),
        pytest.raises(SystemExit) as caught,
    ):
        os.kill(os.getpid(), number)
    assert caught.value.code == 75
    assert (tmp_path / "run" / FILE).exists() == left
    if left:
        assert json.loads((tmp_path / "run" / FILE).read_text())["step"] is None


def test_the_handlers_from_before_come_back(tmp_path: Path):
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(tmp_path, is_main=True):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def leave(folder: Path) -> None:
    with StopSignals(folder, is_main=True) as signals:
        assert signals.leave(7, signal.SIGTERM).code == 75


def test_the_file_says_step_and_signal(tmp_path: Path):
    leave(tmp_path)
    left = json.loads((tmp_path / FILE).read_text())
    assert (left["step"], left["signal"]) == (7, "SIGTERM")


MAIN = Ranks(torch.device("cpu"))


class OtherRank(Ranks):
    """Rank 1, which hears rank 0's verdict."""

    def __init__(self, verdict: bool) -> None:
        super().__init__(torch.device("cpu"), rank=1, world_size=2)
        self.verdict = verdict

    def on_main(self, *_: object) -> Any:
        return self.verdict


def test_a_worker_that_the_same_torchrun_restarts_leaves_again(
    tmp_path: Path, under_torchrun: pytest.MonkeyPatch
):
    leave(tmp_path)
    under_torchrun.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    for ranks in (MAIN, OtherRank(True)):
        with pytest.raises(Preempted):
            leave_if_preempted(tmp_path, ranks)
    assert (tmp_path / FILE).exists()


@pytest.mark.parametrize(("run_id", "restarts"), [("run-1", "0"), ("run-2", "1"), ("", "0")])
def test_any_other_start_goes_on_and_removes_the_file(
    run_id: str, restarts: str, tmp_path: Path, under_torchrun: pytest.MonkeyPatch
):
    leave(tmp_path)
    under_torchrun.setenv("TORCHELASTIC_RUN_ID", run_id)
    under_torchrun.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    leave_if_preempted(tmp_path, OtherRank(False))
    assert (tmp_path / FILE).exists()
    leave_if_preempted(tmp_path, MAIN)
    assert not (tmp_path / FILE).exists()
    leave_if_preempted(tmp_path, MAIN)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"torchrun": "run-1"}'])
def test_a_file_that_is_no_message_of_ours_is_forgotten(content: str, tmp_path: Path):
    (tmp_path / FILE).write_text(content)
    leave_if_preempted(tmp_path, MAIN)
    assert not (tmp_path / FILE).exists()


def test_where_the_file_cannot_be_written_the_run_still_ends_as_preempted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run").touch()
    leave(tmp_path / "run" / "x")
    assert "can't be written" in capsys.readouterr().err
