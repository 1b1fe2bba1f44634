"""A user's mistake is reported in one line, with the fix; our own bugs keep their traceback."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from ssd.cli import as_plain, by_full_key, check_file, run, writing
from ssd.config import CheckDatasetConfig, EvaluateConfig, PredictConfig, TrainConfig
from ssd.errors import UserError
from ssd.training.signals import STATUS, Preempted
from tests.conftest import ROOT

pytestmark = pytest.mark.unit


def call(main: Callable[[TrainConfig], None], folder: Path, *overrides: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", f"hydra.run.dir={folder}", *overrides])
        run(main, TrainConfig, ROOT / "conf", "train")


@pytest.mark.parametrize(
    ("overrides", "seen"),
    [
        (["experiment=demo", 'data.path="/a = (1)"'], [("demo", "/a = (1)", 0)]),  # quoted as the fix says
        (["seed=1,2", "-m"], [("ssd300", None, 1), ("ssd300", None, 2)]),
        (["--cfg", "job"], []),
    ],
)
def test_main_gets_the_config_of_the_command_line(overrides: list[str], seen: list[object], tmp_path: Path):
    configs: list[TrainConfig] = []
    call(configs.append, tmp_path, f"hydra.sweep.dir={tmp_path}", *overrides)
    assert [(config.name, config.data.path, config.seed) for config in configs] == seen


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "optimizer.lr=1",
            "unknown config key optimizer.lr; optimizer has learning_rate, scale_learning_rate, momentum, "
            "weight_decay",
        ),
        ("+data.batchsize=1", "unknown config key data.batchsize; data has path, train_images"),
        ("batch_size=1", "unknown config key batch_size; did you mean data.batch_size?"),
        ("optimiser=sgd", "unknown config key optimiser; did you mean optimizer?"),
        ("experimet=demo", "unknown config key experimet; did you mean experiment?"),
        ("quux=1", "unknown config key quux; the files in conf/ have the known ones"),
        ("data.batch_size=many", "data.batch_size: Value 'many' of type 'str' could not be converted"),
        ("runtime.precision=fp8", "runtime.precision: Invalid value 'fp8', expected one of [fp16, bf16,"),
        ("runtime=fp8", "runtime=fp8: there is no such file in conf/runtime; it has amp, bf16, fp32, tf32"),
        (
            "data.path=~/a",
            "data.path=~/a can't be parsed: give key=value, with $HOME for ~, and quote a value",
        ),
        ("schedule.epochs=0", "schedule.epochs=0: give at least 1"),
        (
            "hydra.run.dir=/dev/null/run",
            "/dev/null/run can't be opened or made (Not a directory); give another",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(override: str, line: str, tmp_path: Path):
    with pytest.raises(SystemExit) as ended:
        call(lambda _: None, tmp_path, override)
    assert str(ended.value.code).startswith(f"error: {line}")
    assert "\n" not in str(ended.value.code)


@pytest.mark.parametrize("error", [ValueError(), OSError(), KeyError()])
def test_a_bug_keeps_its_traceback_and_a_users_mistake_is_told(error: Exception, tmp_path: Path, capsys):
    def fail(config: TrainConfig) -> None:
        raise UserError("none;\ngive one") if config.seed else error

    with pytest.raises(SystemExit, match=r"^error: none;\ngive one$"):
        call(fail, tmp_path, "seed=1")
    assert not capsys.readouterr().err
    with pytest.raises(type(error)) as caught:
        call(fail, tmp_path)
    assert caught.value is error


def test_a_sweeps_jobs_go_on_after_one_that_fails_and_their_numbers_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)

    def main(config: TrainConfig) -> dict[str, float]:
        if config.seed:
            raise UserError("it diverged") if config.seed == 1 else ZeroDivisionError
        return {"AP": config.optimizer.momentum / 2, "step": 7}

    sweep = ("seed=0,1,2", "data.threads=3", "optimizer.momentum=0.5", "name=x", "-m")
    with pytest.raises(SystemExit, match=r"^1$"):
        call(main, Path("runs/x"), *sweep)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "runs/x/0 seed=0: AP 0.25, step 7",
        "runs/x/1 seed=1: failed",
        "runs/x/2 seed=2: failed",
    ]
    assert "\nerror: runs/x/1 seed=1: it diverged\n" in f"\n{shown.err}"
    assert "ZeroDivisionError" in shown.err

    def stop(_: TrainConfig) -> None:
        raise Preempted

    with pytest.raises(SystemExit, match=rf"^{STATUS}$"):
        call(stop, Path("runs/x"), *sweep)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match=r"^error: --multirun is for one process"):
        call(main, Path("runs/y"), *sweep)
    assert not Path("runs/y").exists()
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "schema", "comment"),
    [
        ("train", TrainConfig, "weight_decay: 5.0e-4          # on weights of more than one dimension"),
        ("evaluate", EvaluateConfig, "# the numbers"),
        ("predict", PredictConfig, "max_detections: 200  # per picture, the best ones"),
        ("check_dataset", CheckDatasetConfig, "splits: [train, val] # or one of them"),
    ],
)
def test_help_shows_the_scripts_keys_with_their_comments_and_its_groups(
    name: str, schema: type, comment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["x.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        run(lambda _: None, schema, ROOT / "conf", name)
    shown = capsys.readouterr().out
    assert comment in shown
    assert {key.rpartition(".")[2] for key in by_full_key(as_plain(schema))} <= {
        *re.findall(r"\w+(?=:)", shown)
    }
    assert bool(re.search(r"^runtime: amp, bf16", shown, re.M)) == (name == "train")


def test_a_refused_start_leaves_no_folder_that_holds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A missing value is reported before a device that can't do something."""
    monkeypatch.chdir(tmp_path)
    for folder, left in (".", []), ("runs/debug/x", []), ("runs/a/x", ["runs", "runs/a", "runs/a/file"]):
        if left:
            Path("runs/a").mkdir(parents=True)
            Path("runs/a/file").touch()
        with pytest.raises(SystemExit, match=r"^error: data\.path=null: give data\.path=DIR"):
            call(train.main, Path(folder))
        assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == left


# Outputs are checked before any work


def test_an_output_that_cannot_be_written_is_refused_by_its_key(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("before")
    for given in (None, "file", "new/deep/report.json"):
        check_file(given, "out")
    assert Path("file").read_text() == "before"
    for given in ("", ".", "nowhere/", "file/report.json", "/proc/report.json"):  # even root can't
        with pytest.raises(UserError, match=r"benchmark\.out="):
            check_file(given, "benchmark.out")
    assert sorted(str(path) for path in Path().rglob("*")) == ["file", "new", "new/deep"]
    named = r"^x can't be written \(No space left on device\).*out="
    with pytest.raises(UserError, match=named), writing(Path("x"), "out"):
        raise OSError(28, "No space left on device")
