"""The loop in one process: stops, resumes, and what it does when something goes wrong."""

import errno
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

import ssd.training.saver
from data.build import open_training
from data.demo import generate
from ssd.batches import TrainBatch
from ssd.checkpoint import CheckpointError, load_run, saved_steps
from ssd.cli import parse
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.evaluation.coco import RESULT
from ssd.evaluation.evaluator import Evaluator
from ssd.training import log
from ssd.training.session import Session, open_session
from ssd.training.signals import NOTHING_DONE, PREEMPTED_FILE, Preempted
from ssd.training.state import DETECTOR, load_newest
from ssd.training.trainer import Trainer, start_or_resume
from tests.bench import without_times
from tests.data.coco_folder import cut_short
from tests.ssd.training.samples import small_networks

pytestmark = [pytest.mark.unit, pytest.mark.slow]

STEPS = 3  # of most tests here; an epoch has four
COMMON = (
    "name=x model.backbone=resnet18 runtime.device=cpu runtime.precision=fp32 "
    "data.batch_size=2 data.threads=1 "
    f"optimizer.learning_rate=1e-3 schedule.epochs=1 schedule.max_steps={STEPS} "
    "checkpoint.every_steps=1 checkpoint.keep=9 logging.every_steps=1 logging.report=false"
)
TWO_EPOCHS = (
    "schedule.epochs=2 schedule.max_steps=null evaluation.every=1 evaluation.pictures=1 "
    "checkpoint.every_steps=2 logging.every_steps=3"
)
GOING_ON = "checkpoint.on_error=continue"


@pytest.fixture(scope="module", autouse=True)
def _small() -> Iterator[None]:
    with small_networks():
        yield


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "demo"
    generate(folder, 9, 2)
    return folder


def config(demo: Path, *overrides: str) -> TrainConfig:
    given = " ".join((COMMON, f"data.path={demo}", *overrides)).split()
    return parse(TrainConfig, OmegaConf.from_dotlist(given))


def open_trainer(config: TrainConfig, session: Session) -> Trainer:
    saved = load_newest(session)
    task, _ = open_training(config, saved, session)
    return start_or_resume(config, saved, task, session)[0]


def checkpoints(session: Session) -> list[dict[str, Any]]:
    return [load_run(path) for path in saved_steps(session.folder / "checkpoints")]


def steps_saved(session: Session) -> list[int]:
    return [saved["step"] for saved in checkpoints(session)]


def learned(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    momenta = state["optimizer"]["state"].items()
    return state["model"] | {f"momentum {key}": each["momentum_buffer"] for key, each in momenta}


def same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(value, learned(other)[key]) for key, value in learned(state).items())


def records(session: Session) -> list[dict[str, Any]]:
    lines = (session.folder / "metrics.jsonl").read_text().splitlines()
    return without_times([json.loads(line) for line in lines])


@pytest.fixture(scope="module")
def uninterrupted(
    demo: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The last checkpoint and the records of a run of two epochs that nothing happened to."""
    whole = config(demo, TWO_EPOCHS)
    with open_session(whole, tmp_path_factory.mktemp("uninterrupted") / "run") as session:
        open_trainer(whole, session).fit()
        return checkpoints(session)[-1], records(session)


def before_step(trainer: Trainer, step: int, happens: Callable[[], None]) -> None:
    """Have something happen before a step is taken."""
    agreed = trainer.agreed

    def watched(batches: Iterator[TrainBatch]) -> Iterator[TrainBatch]:
        found = agreed(batches)
        while True:
            if trainer.step == step:
                happens()
            yield next(found)

    trainer.agreed = watched  # type: ignore[method-assign]


def crash(*_: object) -> None:
    raise ZeroDivisionError


def test_crashed_at_several_steps_and_in_an_evaluation_it_ends_as_if_it_had_not(
    demo: Path, session: Session, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
):
    given = config(demo, TWO_EPOCHS)
    for step in (1, 3, 7):
        trainer = open_trainer(given, session)
        before_step(trainer, step, crash)
        with pytest.raises(ZeroDivisionError):
            trainer.fit()
        if step == 3:
            resumed = open_trainer(given, session)
            with monkeypatch.context() as patch:
                patch.setattr(Evaluator, "score", crash)
                with pytest.raises(ZeroDivisionError):
                    resumed.fit()
            assert steps_saved(session)[-1] == 4  # the epoch's last, without its evaluation
    open_trainer(given, session).fit()
    last, whole_records = uninterrupted
    assert same(checkpoints(session)[-1], last)
    assert records(session) == whole_records


def test_stopped_after_any_step_logged_saved_and_evaluated_at_other_times_the_weights_are_the_same(
    demo: Path, session: Session, uninterrupted: Any, capsys: pytest.CaptureFixture[str]
):
    other = "schedule.epochs=2 data.threads=2"
    for last_step in (1, 4, 7, "null", "null"):
        open_trainer(config(demo, other, f"schedule.max_steps={last_step}"), session).fit()
    assert same(checkpoints(session)[-1], uninterrupted[0])
    told = " ".join(capsys.readouterr().out.split())
    assert "is finished: 8 of 8 steps are done. A new name=… starts another" in told


def test_out_of_patience_it_ends_and_resumed_at_the_same_step(
    demo: Path, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    aps = {1: 0.2, 2: 0.3, 3: 0.3, 4: 0.1}  # an epoch is a step; as good is not better
    score = Evaluator.score

    def scored(*given: Any) -> Any:
        result = score(*given)
        return replace(result, numbers=result.numbers | {"AP": aps[trainer.step]})

    monkeypatch.setattr(Evaluator, "score", scored)
    short = "data.limit=3 schedule.epochs=5 logging.every_steps=2 checkpoint.every_steps=1"
    patient = config(demo, TWO_EPOCHS, short, "training.patience=2")
    whole = replace(session, folder=tmp_path / "whole", lock=None)
    whole.folder.mkdir()
    trainer = open_trainer(patient, whole)
    trainer.fit()
    trainer = open_trainer(patient, session)
    before_step(trainer, 2, crash)
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    for _ in range(2):
        trainer = open_trainer(patient, session)
        trainer.fit()
    assert steps_saved(session)[-1] == steps_saved(whole)[-1] == 4
    assert same(checkpoints(session)[-1], checkpoints(whole)[-1])
    assert records(session) == records(whole)
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("ended by training.patience=2: no evaluation since has beaten AP 0.300") == 2
    assert "4 of 5 steps are done. A new name=… starts another; this one goes on with larger" in told


class FullDisk:
    """Writes of checkpoints that fail while it is full; `full` may name the one file without room."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.full: bool | str = True
        write = ssd.training.saver.write

        def attempt(path: Path, state: dict[str, Any]) -> None:
            if self.full in (True, path.name):
                raise OSError(errno.ENOSPC, "No space left on device")
            write(path, state)

        patch.setattr(ssd.training.saver, "write", attempt)


@pytest.mark.parametrize(
    ("on_error", "message", "gone_on"),
    [
        ("fail", r"checkpoints: No space left .*checkpoint\.on_error=continue", 0),
        ("continue", "the steps since the checkpoint before are lost", STEPS - 1),  # not without the last one
    ],
)
def test_a_checkpoint_that_cannot_be_written_stops_the_run_or_is_reported(
    on_error: str, message: str, gone_on: int, demo: Path, session: Session, monkeypatch: Any, capsys: Any
):
    FullDisk(monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        open_trainer(config(demo, f"checkpoint.on_error={on_error}"), session).fit()
    assert capsys.readouterr().out.count("No space left on device; training goes on") == gone_on


@pytest.mark.parametrize("when", [1, "score"])
def test_a_run_whose_folder_is_gone_ends_in_one_line_and_leaves_a_namesake_alone(
    when: int | str, demo: Path, session: Session, monkeypatch: Any, capsys: Any
):
    def replace_folder() -> None:
        trainer.saver.wait()
        session.folder.rename(session.folder.with_name("moved"))
        (session.folder / "checkpoints").mkdir(parents=True)
        (session.folder / "checkpoints" / "step_00000001.pt").touch()

    trainer = open_trainer(config(demo, GOING_ON, "checkpoint.keep=1 schedule.max_steps=null"), session)
    if when == 1:
        before_step(trainer, when, replace_folder)
    else:
        score = Evaluator.score
        monkeypatch.setattr(Evaluator, "score", lambda *given: (replace_folder(), score(*given))[1])
    with pytest.raises(CheckpointError, match=rf"^{session.folder} was moved or removed; the steps since"):
        trainer.fit()
    left = [str(path.relative_to(session.folder)) for path in session.folder.rglob("*")]
    assert sorted(left) == ["checkpoints", "checkpoints/step_00000001.pt"]
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err


def second_picture(trainer: Trainer, step: int) -> Path:
    return Path(trainer.task.loader.contents(step)[1]["file"])


def test_an_image_that_turns_bad_stops_the_run_with_a_checkpoint_to_go_on_from(
    demo: Path, session: Session, uninterrupted: Any
):
    given = config(demo, TWO_EPOCHS)
    trainer = open_trainer(given, session)
    path = second_picture(trainer, 3)
    with cut_short(path), pytest.raises(UserError, match=rf"step 3: DALI cannot read {path}"):
        trainer.fit()
    assert steps_saved(session) == [2, 3]
    open_trainer(given, session).fit()
    assert same(checkpoints(session)[-1], uninterrupted[0])


def test_quarantined_images_are_as_if_the_annotation_file_lacked_them(
    demo: Path, session: Session, tmp_path: Path
):
    content = json.loads((demo / "annotations" / "instances_train2017.json").read_text())
    bad = content["images"].pop(1)
    content["annotations"] = [each for each in content["annotations"] if each["image_id"] != bad["id"]]
    (tmp_path / "without.json").write_text(json.dumps(content))
    quarantined = config(demo, "data.on_bad_image=quarantine")
    without = config(demo, f"data.train_annotations={tmp_path / 'without.json'}")
    with cut_short(demo / "train2017" / bad["file_name"]):
        ours, expected = (open_training(given, None, session)[0] for given in (quarantined, without))
    assert (ours.excluded, ours.fingerprint) == ([bad["id"]], expected.fingerprint)
    steps = zip(range(4), ours.loader.batches(0), expected.loader.batches(0), strict=False)
    for _, batch, other in steps:
        assert all(torch.equal(value, vars(other)[key]) for key, value in vars(batch).items())


class Poisoned:
    """A loader whose batches of some steps hold a NaN."""

    def __init__(self, loader: Any, steps: set[int]) -> None:
        self._loader, self._steps = loader, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        for step, batch in enumerate(self._loader.batches(first_step), start=first_step):
            if step in self._steps:
                batch.images[:] = np.nan
            yield batch


def poisoned_trainer(config: TrainConfig, session: Session, steps: set[int]) -> Trainer:
    trainer = open_trainer(config, session)
    trainer.task = replace(trainer.task, loader=Poisoned(trainer.task.loader, steps))
    return trainer


@pytest.mark.parametrize(
    ("policy", "poisoned", "message"),
    [
        ("stop", {1}, r"step after 1, which was not taken .*first image ids \d+, \d+; "),
        ("skip", {0, 1}, r"2 such steps are more than training\.nonfinite_limit=1"),
        ("rollback", {0}, r"rollback: there is no checkpoint yet that was due; .*checkpoint\.every_steps"),
    ],
)
def test_bad_steps_stop_the_run_and_their_images_and_boxes_are_left(
    policy: str, poisoned: set[int], message: str, demo: Path, session: Session
):
    given = config(demo, f"training.on_nonfinite={policy} training.nonfinite_limit=1")
    trainer = poisoned_trainer(given, session, poisoned)
    with pytest.raises(UserError, match=message):
        trainer.fit()
    step = max(poisoned)
    assert steps_saved(session) == [*range(1, step + 1)]  # none after the bad step
    left = json.loads((session.folder / "nonfinite" / f"step_{step:08d}.json").read_text())
    assert left["step"] == step
    contents = trainer.task.loader.contents(step)
    assert [image["image_id"] for image in left["images"]] == [image["image_id"] for image in contents]
    assert all(len(image["boxes_ltrb"]) == len(image["labels"]) for image in left["images"])


def test_a_run_goes_on_after_a_skipped_bad_step_as_if_it_had_not_been(
    demo: Path, session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = config(demo, "training.on_nonfinite=skip")
    poisoned_trainer(given, session, {1}).fit()
    before, after, last = checkpoints(session)
    assert same(before, after)
    assert last["nonfinite_steps"] == 1
    assert "going on (1 such steps so far)" in capsys.readouterr().out
    # The bad step is in no mean; with one step a record its own record has none.
    assert [record["loss"] is None for record in records(session)] == [False, True, False]

    expected = open_trainer(given, replace(session, folder=tmp_path / "without"))
    expected.network.train()
    for step, batch in zip(range(STEPS), expected.task.loader.batches(0), strict=False):
        if step != 1:
            expected.train_step(batch, step, expected.schedule(step, epoch=0))
    assert same(last, expected.state.collect())


def test_rolling_back_takes_the_newest_checkpoints_weights_and_goes_on(
    demo: Path, session: Session, capsys: pytest.CaptureFixture[str]
):
    """Step 3 is taken, step 4 is bad: the weights after it are those of the checkpoint after step 2."""
    rollback = "training.on_nonfinite=rollback checkpoint.every_steps=2 logging.every_steps=4"
    trainer = poisoned_trainer(config(demo, rollback, "schedule.max_steps=4"), session, {3})
    assert [trainer._rolls_back_to(step) for step in range(5)] == [False, False, True, False, True]
    trainer.fit()
    before, after = checkpoints(session)
    assert (before["step"], after["step"]) == (2, 4)
    assert same(before, after)
    told = capsys.readouterr().out
    assert "going on (1 such steps so far)\nweights and momenta are those after step 2 again" in told


def test_rolling_back_ends_the_same_whatever_a_signal_saved_between(
    demo: Path, session: Session, tmp_path: Path
):
    """The sixth step is bad, which the record after the seventh tells: it goes back to step 4, evaluated."""
    given = config(
        demo,
        "training.on_nonfinite=rollback checkpoint.every_steps=null checkpoint.every_epochs=null",
        "checkpoint.keep=1 evaluation.epochs=[0] evaluation.pictures=1 logging.every_steps=7",
        "schedule.epochs=2 schedule.max_steps=null",
    )
    whole = replace(session, folder=tmp_path / "whole", lock=None)
    whole.folder.mkdir()
    poisoned_trainer(given, whole, {5}).fit()
    for step in (5, 6):
        trainer = poisoned_trainer(given, session, {5})
        before_step(trainer, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Preempted):
            trainer.fit()
        assert steps_saved(session) == [4, step]
        session.signals.received = 0
    poisoned_trainer(given, session, {5}).fit()
    assert same(checkpoints(session)[-1], checkpoints(whole)[-1])
    assert records(session) == records(whole)


def preempted(session: Session) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((session.folder / PREEMPTED_FILE).read_text())
    return content


@pytest.mark.parametrize(
    ("number", "step", "told"),
    [
        (signal.SIGUSR1, 2, "after step 2 of 3, saved in run/checkpoints/step_00000002.pt; the same command"),
        (signal.SIGTERM, 0, NOTHING_DONE),
    ],
)
def test_a_signal_saves_the_step_and_says_which(
    number: signal.Signals, step: int, told: str, demo: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    never = config(demo, "checkpoint.every_epochs=null checkpoint.every_steps=null")
    monkeypatch.chdir(tmp_path)
    with suppress(Preempted), open_session(never, Path("run")) as session:
        trainer = open_trainer(never, session)
        before_step(trainer, step, lambda: signal.raise_signal(number))
        trainer.fit()
    assert steps_saved(session) == [2][:step]
    assert (preempted(session)["step"], preempted(session)["signal"]) == (step, number.name)
    assert capsys.readouterr().out.count(f"stopped by {number.name} {told}") == 1


def test_a_signal_in_an_evaluation_leaves_the_step_before_it(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    detect = Evaluator.detect

    def signalled(*arguments: Any) -> Iterator[Any]:
        for rows in detect(*arguments):
            signal.raise_signal(signal.SIGTERM)
            yield rows

    monkeypatch.setattr(Evaluator, "detect", signalled)
    with pytest.raises(Preempted):
        open_trainer(config(demo, "schedule.max_steps=4"), session).fit()
    assert (preempted(session)["step"], checkpoints(session)[-1]["numbers"]) == (4, None)


def test_an_overridden_key_counts_from_the_next_step_on(demo: Path, session: Session):
    open_trainer(config(demo, "schedule.max_steps=1"), session).fit()
    changed = "optimizer.weight_decay=0.25 optimizer.momentum=0.5"
    with pytest.raises(CheckpointError, match=r"optimizer\.weight_decay: 0.0005 in the checkpoint, 0.25 now"):
        open_trainer(config(demo, changed), session)
    override = "resume.override=[optimizer.weight_decay,optimizer.momentum]"
    trainer = open_trainer(config(demo, changed, override), session)
    groups = trainer.state.optimizer.param_groups
    assert [(group["weight_decay"], group["momentum"]) for group in groups] == [(0.25, 0.5), (0.0, 0.5)]


@pytest.mark.parametrize(
    ("evaluations", "best"),
    [
        # AP, and which file has no room
        ([(0.2, ""), (0.3, "")], {"AP": 0.3, "step": 2}),
        ([(0.9, ""), (0.3, "")], {"AP": 0.9, "step": 1}),
        ([(0.2, ""), (0.9, "best.pt"), (0.3, "")], {"AP": 0.3, "step": 3}),  # better than what is on disk
        ([(0.9, "step_00000001.pt"), (0.3, "")], {"AP": 0.9, "step": 1}),
    ],
)
def test_the_best_is_that_which_is_on_disk(
    evaluations: list[Any], best: dict[str, Any], demo: Path, session: Session, monkeypatch: Any
):
    disk = FullDisk(monkeypatch)
    trainer = open_trainer(config(demo, GOING_ON), session)
    for trainer.step, (ap, disk.full) in enumerate(evaluations, start=1):
        trainer.save({"AP": ap})
        trainer.saver.wait()
    assert trainer.saver.best == checkpoints(session)[-1]["best"] == best
    path = session.folder / "checkpoints" / "best.pt"
    assert load_run(path)["numbers"] == {"AP": best["AP"]}
    assert {*load_run(path)} == {*DETECTOR}

    path.write_bytes(path.read_bytes()[:-1])  # a damaged one: the next evaluation writes another
    resumed = open_trainer(config(demo), session)
    resumed.step += 1
    resumed.save({"AP": 0.1})
    resumed.saver.wait()
    assert load_run(path)["numbers"] == {"AP": 0.1}


def test_a_checkpoint_that_was_begun_is_finished_and_best_comes_first(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    """So a step whose file has numbers has its best.pt."""
    written, write = [], ssd.training.saver.write

    def slowly(path: Path, state: dict[str, Any]) -> None:
        time.sleep(0.2)
        write(path, state)
        written.append(path.name)

    monkeypatch.setattr(ssd.training.saver, "write", slowly)
    trainer = open_trainer(config(demo), session)
    trainer.step = 1
    trainer.save({"AP": 0.2})
    trainer.saver.close()
    assert written == ["best.pt", "step_00000001.pt"]


# The report, made in a process beside training

SCRIPT = """
import os, sys
folder = sys.argv[1].removeprefix('run="').removesuffix('"')
said = [os.environ[name] for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
with open(folder + "/report.html", "a") as page:
    print(*said, os.nice(0), os.listdir(folder), file=page)
"""


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (SCRIPT, ""),
        ("raise SystemExit('it broke')", r"wasn't made, exit status 1; \S+report\.log says why\n"),
    ],
)
def test_a_report_is_made_beside_training_and_its_failure_ends_nothing(
    script: str, told: str, demo: Path, session: Session, monkeypatch: Any, tmp_path: Path, capsys: Any
):
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(log, "REPORT_SCRIPT", tmp_path / "script.py")
    trainer = open_trainer(config(demo, TWO_EPOCHS, "logging.report=true"), session)
    trainer.fit()
    assert trainer.step == 8
    output = capsys.readouterr().out
    assert re.search(told, output) if told else "report.html" not in output
    best = trainer.saver.best
    assert best is not None
    detections = session.folder / f"detections_{best['step']:08d}.npy"
    assert [*session.folder.glob("detections_*")] == [detections]
    assert np.load(detections).dtype == RESULT
    if script == SCRIPT:
        last = (session.folder / "report.html").read_text().splitlines()[-1]
        assert last.startswith(f" 1 {os.nice(0) + 10} ")
        assert detections.name in last


@pytest.mark.parametrize("overrides", [TWO_EPOCHS, ""])
def test_a_signal_ends_the_making_of_a_report(
    overrides: str, demo: Path, session: Session, monkeypatch: Any, tmp_path: Path
):
    """While training goes on, and when the run has ended and only the report is waited for."""
    (tmp_path / "script.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(log, "REPORT_SCRIPT", tmp_path / "script.py")
    begin, made = log.ReportMaker.begin, []

    def begin_and_signal(maker: log.ReportMaker) -> None:
        begin(maker)
        made.append(maker._process)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(log.ReportMaker, "begin", begin_and_signal)
    trainer = open_trainer(config(demo, overrides, "logging.report=true"), session)
    with pytest.raises(Preempted) if overrides else nullcontext():
        trainer.fit()
    assert [process.poll() for process in made] == [-signal.SIGTERM]
