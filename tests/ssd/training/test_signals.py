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
from ssd.errors import UserError
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
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if the process that started the tests were torchrun, of the run that README's command names."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    return monkeypatch


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
    """This rank's view of two ranks on two hosts, where rank 0 read `left` and the other one says `other`."""

    def __init__(self, rank: int, left: str | None, other: bool) -> None:
        super().__init__(torch.device("cpu"), rank=rank, world_size=2)
        self.left, self.other = left, other

    def on_main(self, *_: object) -> Any:
        return self.left

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other]


def torchrun_of(folder: Path) -> str:
    torchrun: str = json.loads((folder / PREEMPTED_FILE).read_text())["torchrun"]
    return torchrun


@pytest.mark.parametrize("rank", [0, 1])
def test_workers_that_the_same_torchrun_restarts_leave_again(rank: int, tmp_path: Path):
    """It counts where it is that of another rank's host, too."""
    leave(tmp_path)
    theirs = TwoHosts(rank, torchrun_of(tmp_path), False)
    for ranks in (MAIN, theirs, TwoHosts(rank, "of another host", True)):
        with pytest.raises(Preempted):
            leave_if_preempted(tmp_path, ranks)
    assert (tmp_path / PREEMPTED_FILE).exists()


def test_any_other_start_goes_on_and_forgets_the_file(tmp_path: Path, under_torchrun: pytest.MonkeyPatch):
    leave(tmp_path)
    own, path = torchrun_of(tmp_path), tmp_path / PREEMPTED_FILE
    host, process, start = own.split()
    # Of the same run id, its first attempt dead before it could remove the file, or no message of ours.
    others = (f"{host} {process} {int(start) - 1}", f"{host} {int(process) + 1} {start}", "1")
    contents = [json.dumps({"torchrun": other}) for other in others]
    for content in (*contents, "", "{", "[]", '{"step": 7}', '{"torchrun": 1}'):
        path.write_text(content)
        leave_if_preempted(tmp_path, TwoHosts(1, "another", False))
        assert path.exists()  # rank 0 removes it
        leave_if_preempted(tmp_path, MAIN)
        assert not path.exists()
    leave_if_preempted(tmp_path, MAIN)  # there is none
    under_torchrun.delenv("TORCHELASTIC_RUN_ID")
    leave(tmp_path)
    leave_if_preempted(tmp_path, MAIN)
    assert not path.exists()


def test_a_folder_of_that_name_stops_the_start_in_one_line(tmp_path: Path):
    (tmp_path / PREEMPTED_FILE).mkdir()
    with pytest.raises(UserError, match=r"preempted can't be read \(Is a directory\); remove it"):
        leave_if_preempted(tmp_path, MAIN)


def test_where_the_file_cannot_be_written_the_run_still_ends_as_preempted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    leave(tmp_path / "not there")
    assert "can't be written" in capsys.readouterr().err
