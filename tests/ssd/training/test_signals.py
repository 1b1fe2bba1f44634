"""Signals end a run where all ranks agree, or at once before it begins; a restart knows why it was ended."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.run import get_args_parser

from ssd.distributed import Ranks
from ssd.training.signals import (
    NOTHING_DONE,
    PREEMPTED_FILE,
    SIGNALS,
    Preempted,
    StopSignals,
    leave_if_preempted,
)

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _no_signal_is_ignored() -> Iterator[None]:
    """A shell starts what runs in its background to ignore some."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_every_signal_that_torchrun_passes_on_is_received():
    passed_on = get_args_parser().parse_args(["train.py"]).signals_to_handle.split(",")
    assert {number.name for number in SIGNALS} == {*passed_on, "SIGUSR1"}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_training_is_noted_and_nothing_else(number: signal.Signals, tmp_path: Path):
    with StopSignals(tmp_path, is_main=True) as signals:
        signals.note_only()
        assert signals.received == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun passes it on: the first one stays
        assert signals.received == number
    assert not (tmp_path / PREEMPTED_FILE).exists()


@pytest.mark.parametrize("is_main", [True, False])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_training_ends_the_process_at_once(
    number: signal.Signals, is_main: bool, tmp_path: Path
):
    with StopSignals(tmp_path, is_main), pytest.raises(Preempted) as caught:
        os.kill(os.getpid(), number)
    assert caught.value.code == 75
    assert caught.value.told == (f"stopped by {number.name} {NOTHING_DONE}",)
    # torchrun ends all ranks with SIGTERM when one of them fails: no preemption.
    left = is_main and number != signal.SIGTERM
    assert (tmp_path / PREEMPTED_FILE).exists() == left
    assert not left or json.loads((tmp_path / PREEMPTED_FILE).read_text())["step"] is None


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(tmp_path: Path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with StopSignals(tmp_path, is_main=True) as signals:
        signals.note_only()
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def leave(folder: Path) -> None:
    """Leave as a run that was asked to end."""
    with StopSignals(folder, is_main=True) as signals, pytest.raises(SystemExit, match="75"):
        signals.leave(7, signal.SIGTERM)


MAIN = Ranks(torch.device("cpu"))


class TwoHosts(Ranks):
    """The view of one of two ranks, of which the other one tells these numbers."""

    def __init__(self, rank: int, *other: int) -> None:
        super().__init__(torch.device("cpu"), rank=rank, world_size=2)
        self.other = iter(other)

    def highest(self, value: int) -> int:
        return max(value, next(self.other))


@pytest.mark.parametrize(
    ("restarts", "ranks"),
    [
        ("1", MAIN),
        # Where another host's torchrun counts it; rank 1 learns from rank 0 of the file.
        ("0", TwoHosts(0, 2, 0)),
        ("0", TwoHosts(1, 2, 1)),
    ],
)
def test_workers_that_torchrun_restarts_after_a_preemption_leave_again(
    restarts: str, ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    leave(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    with pytest.raises(Preempted):
        leave_if_preempted(tmp_path, ranks)
    assert (tmp_path / PREEMPTED_FILE).exists()


def test_any_other_start_goes_on_and_rank_0_removes_the_file(tmp_path: Path, monkeypatch: Any):
    leave(tmp_path)
    leave_if_preempted(tmp_path, TwoHosts(1, 0, 1))
    assert (tmp_path / PREEMPTED_FILE).exists()
    leave_if_preempted(tmp_path, MAIN)
    assert not (tmp_path / PREEMPTED_FILE).exists()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    leave_if_preempted(tmp_path, MAIN)  # a rank that crashed


def test_where_the_file_cannot_be_written_the_run_still_ends_as_preempted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    leave(tmp_path / "not there")
    assert "can't be written" in capsys.readouterr().err
