"""One run at a time has a folder, and every machine of that run sees it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ssd.cli import as_yaml
from ssd.config import Precision, ResumeConfig, RuntimeConfig, TrainConfig
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.training.session import Session, open_session, own_folder, require_seen_by_all

pytestmark = pytest.mark.unit


def test_two_runs_do_not_share_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("ssd.training.session.LOCK_WAIT_S", 0.1)
    refused = pytest.raises(UserError, match="another process trains there")
    with own_folder(tmp_path), refused, own_folder(tmp_path):
        pass
    with own_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []  # of a start that did nothing


def test_a_folder_that_was_moved_or_removed_is_lost_though_another_has_its_name(session: Session):
    assert not session.lost_folder()
    moved = session.folder.rename(session.folder.with_name("moved"))
    assert session.lost_folder()
    with own_folder(session.folder):  # a namesake
        assert session.lost_folder()
    shutil.rmtree(session.folder)
    moved.rename(session.folder)
    assert not session.lost_folder()
    assert not replace(session, lock=None, folder=moved).lost_folder()  # ranks but 0 leave it to that one


@pytest.mark.parametrize(
    ("never", "was_never", "restarts", "anew"),
    [
        (True, True, "0", True),
        (True, True, "1", False),
        (True, False, "0", False),
        (True, None, "0", False),
        (False, True, "0", False),
    ],
)
def test_a_run_begins_anew_over_what_such_a_run_has_left_and_over_nothing_else(
    never: bool, was_never: bool | None, restarts: str, anew: bool, tmp_path: Path, monkeypatch: Any
):
    """Not where torchrun has restarted it."""
    config = TrainConfig("run", runtime=RuntimeConfig(precision=Precision.fp32))
    if was_never is not None:
        earlier = replace(config, resume=ResumeConfig(never=was_never))
        (tmp_path / "config.yaml").write_text(as_yaml(earlier))
    gone = ("checkpoints/best.pt", "pictures/step_0/a.jpg", "run.log")
    left = (*gone, "metrics.jsonl", "checkpoints.txt")
    for path in left:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    before = {*tmp_path.rglob("*"), tmp_path / ".lock"}
    with open_session(replace(config, resume=ResumeConfig(never=never)), tmp_path):
        pass
    kept = {tmp_path / name for name in (".lock", "config.yaml", "metrics.jsonl", "checkpoints.txt")}
    assert {*tmp_path.rglob("*")} == (kept if anew else before)


class TwoMachines(Ranks):
    """One rank's view of two on two machines; the other one says what it sees."""

    def __init__(self, rank: int, token: Path, other: tuple[str, bool]) -> None:
        super().__init__(torch.device("cpu"), rank=rank, world_size=2)
        self.token, self.other = token, other

    def on_main(self, work: Any, _: object) -> Any:
        return work() if self.is_main else str(self.token)

    def gather(self, value: Any) -> list[Any]:
        return [value, self.other] if self.is_main else [self.other, value]


def test_a_folder_that_all_see_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    require_seen_by_all(tmp_path, Ranks(torch.device("cpu")))
    require_seen_by_all(tmp_path, TwoMachines(0, tmp_path, ("two", True)))
    assert list(tmp_path.iterdir()) == []
    token = tmp_path / "token"
    monkeypatch.setattr("time.sleep", lambda _: token.touch())  # a file that shows up late
    require_seen_by_all(tmp_path, TwoMachines(1, token, ("one", True)))
    assert token.exists()  # rank 0 removes it


@pytest.mark.parametrize("rank", [0, 1])
def test_a_folder_that_a_machine_does_not_see_is_refused_on_all_ranks(
    rank: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Each machine has a folder of that name, but not the same one."""
    monkeypatch.setattr("ssd.training.session.TOKEN_WAIT_S", 0.1)
    monkeypatch.setattr("socket.gethostname", lambda: ("one", "two")[rank])
    other = (("two", False), ("one", True))[rank]
    with pytest.raises(UserError, match=rf"hydra\.run\.dir={tmp_path}: two can't see there what one, "):
        require_seen_by_all(tmp_path, TwoMachines(rank, tmp_path / "token", other))
