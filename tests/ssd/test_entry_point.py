"""What a user of a script gets wrong is told in one line, with the mend; our faults keep their traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from ssd.cli import entry_point
from ssd.config import TrainConfig
from ssd.errors import UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

Task = Callable[[TrainConfig], None]


def call(task: Task, folder: Path, *overrides: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={folder}", *overrides])
        entry_point(TrainConfig, ROOT / "conf", "train")(task)()


def nothing(_config: TrainConfig) -> None:
    """Stand for a script's work."""


def refusal(task: Task, folder: Path, *overrides: str) -> str:
    with pytest.raises(SystemExit) as ended:
        call(task, folder, *overrides)
    return str(ended.value.code)


def test_the_script_gets_its_config_by_the_command_line(tmp_path: Path):
    seen: list[TrainConfig] = []
    call(seen.append, tmp_path, "experiment=demo", "data.limit=7")
    assert [(config.name, config.data.limit) for config in seen] == [("demo", 7)]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "optimizer.lr=1",
            "unknown config key optimizer.lr; optimizer has learning_rate, scale_learning_rate, "
            "momentum, weight_decay",
        ),
        ("data.batchsize=1", "unknown config key data.batchsize; near to it is data.batch_size"),
        ("+data.batchsize=1", "unknown config key data.batchsize; near to it is data.batch_size"),
        ("batch_size=1", "unknown config key batch_size; near to it is data.batch_size"),
        ("optimiser=sgd", "unknown config key optimiser; near to it is optimizer"),
        ("experimet=demo", "unknown config key experimet; near to it is experiment"),
        ("quux=1", "unknown config key quux; the files in conf/ have the known ones"),
        ("data.batch_size=many", "data.batch_size: Value 'many' of type 'str' could not be converted"),
        ("runtime.precision=fp8", "runtime.precision: Invalid value 'fp8', expected one of [fp16, bf16,"),
        ("runtime=fp8", "runtime=fp8: there is no such file in conf/runtime; it has amp, bf16, fp32, tf32"),
        (
            "data.path=~/coco",
            "data.path=~/coco can't be parsed: ~ is not expanded; write data.path=$HOME/coco",
        ),
        ("data.path=/a (1)", "data.path=/a (1) can't be parsed: quote what has = ( ) [ ]"),
        ("resume", "resume can't be parsed: give key=value"),
        ("schedule.epochs=0", "schedule.epochs=0: give at least 1"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_one_line(override: str, line: str, tmp_path: Path):
    message = refusal(nothing, tmp_path, override)
    assert message.startswith(f"error: {line}")
    assert "\n" not in message


def test_a_path_is_read_as_the_mend_for_it_writes_it(tmp_path: Path):
    seen: list[TrainConfig] = []
    call(seen.append, tmp_path, 'data.path="/a = (1)"')
    assert seen[0].data.path == "/a = (1)"


def test_a_run_folder_that_cannot_be_made_is_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    message = refusal(nothing, tmp_path / "file" / "run")
    assert message.startswith(f"error: {tmp_path / 'file' / 'run'} can't be opened or made (Not a directory)")
    assert "hydra.run.dir=" in message


def test_what_the_work_refuses_is_one_line(tmp_path: Path):
    def refuse(_config: TrainConfig) -> None:
        raise UserError("no such thing; give another")

    assert refusal(refuse, tmp_path) == "error: no such thing; give another"


@pytest.mark.parametrize("error", [ValueError("ours"), OSError("ours"), KeyError("ours")])
def test_a_fault_of_ours_is_no_users_error(error: Exception, tmp_path: Path):
    def fail(_config: TrainConfig) -> None:
        raise error

    with pytest.raises(type(error), match="ours"):
        call(fail, tmp_path)


def test_hydras_whole_traceback_is_there_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ConfigCompositionException):
        call(nothing, tmp_path, "optimizer.lr=1")


def test_the_environment_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    refusal(nothing, tmp_path, "optimizer.lr=1")
    assert os.environ["HYDRA_FULL_ERROR"] == "0"


def test_the_config_is_shown_without_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seen: list[TrainConfig] = []
    call(seen.append, tmp_path, "optimizer.momentum=0.5", "--cfg", "job")
    assert "momentum: 0.5" in capsys.readouterr().out
    assert not seen


def test_help_lists_the_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        call(nothing, tmp_path, "--help")
    assert "experiment: coco_1x128" in capsys.readouterr().out


def test_several_jobs_run_one_after_the_other(tmp_path: Path):
    seen: list[TrainConfig] = []
    call(seen.append, tmp_path, f"hydra.sweep.dir={tmp_path}", "seed=1,2", "-m")
    assert [config.seed for config in seen] == [1, 2]
