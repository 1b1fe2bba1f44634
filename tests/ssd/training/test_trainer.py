"""What the loop does when something goes wrong, in one process. Whole runs: tests/test_end_to_end.py."""

import errno
import json
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssd.training.saver
from data.build import open_training
from data.demo import generate
from ssd.batches import TrainBatch
from ssd.checkpoint import CheckpointError, load_run, saved_steps
from ssd.config import (
    Backbone,
    CheckpointConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OnBadImage,
    OnError,
    OnNonfinite,
    OptimizerConfig,
    ResumeConfig,
    ScheduleConfig,
    TrainConfig,
    TrainingConfig,
)
from ssd.errors import UserError
from ssd.training.checkpoints import newest_checkpoint
from ssd.training.run import start_or_resume
from ssd.training.session import Session
from ssd.training.stop import FILE, Preempted
from ssd.training.trainer import Trainer

pytestmark = [pytest.mark.unit, pytest.mark.slow]

STEPS = 4


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainer") / "demo"
    generate(folder, 9, 2)
    return folder


def config(folder: Path, **given: Any) -> TrainConfig:
    sections = {
        "data": DataConfig(path=str(folder), batch_size=2, threads=1),
        "schedule": ScheduleConfig(epochs=1, max_steps=STEPS - 1),
        "checkpoint": CheckpointConfig(every_steps=1, keep=9),
        "logging": LoggingConfig(every_steps=1),
        "optimizer": OptimizerConfig(learning_rate=1e-3),
    }
    return TrainConfig(name="x", model=ModelConfig(backbone=Backbone.resnet18), **(sections | given))


def open_trainer(config: TrainConfig, session: Session) -> Trainer:
    saved = newest_checkpoint(session)
    task, _ = open_training(config, saved, session)
    return start_or_resume(config, saved, task, session)[0]


def final_weights(session: Session) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_run(saved_steps(session.folder / "checkpoints")[-1])["model"]
    return weights


def same(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, others[key]) for key, value in weights.items())


def records(session: Session) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (session.folder / "metrics.jsonl").read_text().splitlines()]


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


def test_a_checkpoint_that_cannot_be_written_stops_the_run(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    FullDisk(monkeypatch)
    with pytest.raises(CheckpointError, match=r"checkpoints: No space left .*checkpoint\.on_error=continue"):
        open_trainer(config(demo), session).fit()


def test_training_goes_on_without_checkpoints_where_configured_but_not_without_the_last_one(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    disk = FullDisk(monkeypatch)
    going_on = CheckpointConfig(every_steps=1, keep=9, on_error=OnError["continue"])
    with pytest.raises(CheckpointError, match="the steps since the checkpoint before are lost"):
        open_trainer(config(demo, checkpoint=going_on), session).fit()
    assert capsys.readouterr().out.count("No space left on device; training goes on") == STEPS - 2
    disk.full = False
    open_trainer(config(demo, checkpoint=going_on), session).fit()
    assert load_run(saved_steps(session.folder / "checkpoints")[-1])["step"] == STEPS - 1


def bad_picture(trainer: Trainer, step: int) -> tuple[Path, bytes]:
    """Break one picture of a step; return its path and what it held."""
    path = Path(trainer.task.loader.contents(step)[1]["file"])
    content = path.read_bytes()
    path.write_bytes(content[:200])
    return path, content


def test_an_image_that_turns_bad_stops_the_run_with_a_checkpoint_to_go_on_from(demo: Path, session: Session):
    trainer = open_trainer(config(demo), session)
    path, content = bad_picture(trainer, 2)
    try:
        with pytest.raises(UserError, match=rf"step 2: DALI cannot read {path}"):
            trainer.fit()
    finally:
        path.write_bytes(content)
    assert [load_run(file)["step"] for file in saved_steps(session.folder / "checkpoints")] == [1, 2]
    open_trainer(config(demo), session).fit()
    assert same(final_weights(session), uninterrupted(demo, session))


def uninterrupted(demo: Path, session: Session) -> dict[str, torch.Tensor]:
    """Train the same in one go, in the same folder anew."""
    for path in (session.folder / "checkpoints").iterdir():
        path.unlink()
    open_trainer(config(demo), session).fit()
    return final_weights(session)


def test_an_image_that_turns_bad_is_named_replaced_and_remembered(
    demo: Path, session: Session, capsys: pytest.CaptureFixture[str]
):
    data = DataConfig(path=str(demo), batch_size=2, threads=1, on_bad_image=OnBadImage.quarantine)
    trainer = open_trainer(config(demo, data=data), session)
    path, content = bad_picture(trainer, 1)
    try:
        trainer.fit()
    finally:
        path.write_bytes(content)
    assert capsys.readouterr().out.count(f"its place in the batch is taken by another: {path}") == 1
    assert len(load_run(saved_steps(session.folder / "checkpoints")[-1])["bad_images"]) == 1


def test_quarantine_trains_as_on_the_annotations_without_the_bad_images(
    demo: Path, session: Session, tmp_path: Path
):
    annotations = json.loads((demo / "annotations" / "instances_train2017.json").read_text())
    bad = annotations["images"][4]
    path = demo / "train2017" / bad["file_name"]
    content = path.read_bytes()
    without = {
        "categories": annotations["categories"],
        "images": [image for image in annotations["images"] if image is not bad],
        "annotations": [each for each in annotations["annotations"] if each["image_id"] != bad["id"]],
    }
    (tmp_path / "without.json").write_text(json.dumps(without))
    data = DataConfig(path=str(demo), batch_size=2, threads=1, on_bad_image=OnBadImage.quarantine)
    path.write_bytes(b"")
    try:
        open_trainer(config(demo, data=data), session).fit()
    finally:
        path.write_bytes(content)
    quarantined = final_weights(session)
    last = load_run(saved_steps(session.folder / "checkpoints")[-1])
    assert last["excluded_images"] == [bad["id"]]
    # A resumed run leaves it out still, though the file is whole again.
    longer = ScheduleConfig(epochs=1, max_steps=STEPS)
    open_trainer(config(demo, data=data, schedule=longer), session).fit()
    resumed = final_weights(session)

    for file in (session.folder / "checkpoints").iterdir():
        file.unlink()
    data = DataConfig(
        path=str(demo), train_annotations=str(tmp_path / "without.json"), batch_size=2, threads=1
    )
    open_trainer(config(demo, data=data), session).fit()
    assert same(final_weights(session), quarantined)
    open_trainer(config(demo, data=data, schedule=longer), session).fit()
    assert same(final_weights(session), resumed)


def test_a_bad_image_before_training_is_an_error_by_default(demo: Path, session: Session):
    path = next((demo / "train2017").iterdir())
    content = path.read_bytes()
    path.unlink()
    try:
        with pytest.raises(UserError, match=rf"1 of \d+ image files .*{path}.*data\.on_bad_image=quarantine"):
            open_trainer(config(demo), session)
    finally:
        path.write_bytes(content)


class Poisoned:
    """A loader whose batches of some steps hold a NaN."""

    def __init__(self, loader: Any, steps: set[int]) -> None:
        self._loader, self._steps = loader, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def batches(self, first_step: int) -> Iterator[TrainBatch]:
        for step, batch in enumerate(self._loader.batches(first_step), start=first_step):
            if step in self._steps:
                batch = TrainBatch(batch.images.clone().fill_(np.nan), batch.target_offsets, batch.labels)
            yield batch


def poisoned_trainer(config: TrainConfig, session: Session, steps: set[int]) -> Trainer:
    trainer = open_trainer(config, session)
    object.__setattr__(trainer.task, "loader", Poisoned(trainer.task.loader, steps))
    return trainer


def test_a_bad_step_stops_the_run_and_leaves_its_images_and_boxes(demo: Path, session: Session):
    trainer = poisoned_trainer(config(demo), session, {1})
    with pytest.raises(UserError, match=r"step after 1, which was not taken .*image ids \d+, \d+; "):
        trainer.fit()
    assert [load_run(path)["step"] for path in saved_steps(session.folder / "checkpoints")] == [1]
    left = json.loads((session.folder / "nonfinite" / "step_00000001.json").read_text())
    assert left["step"] == 1
    assert [image["image_id"] for image in left["images"]] == [
        image["image_id"] for image in trainer.task.loader.contents(1)
    ]
    assert all(len(image["boxes_ltrb"]) == len(image["labels"]) for image in left["images"])


def test_skipping_a_bad_step_leaves_the_weights_of_the_steps_around_it(
    demo: Path, session: Session, capsys: pytest.CaptureFixture[str]
):
    skip = TrainingConfig(on_nonfinite=OnNonfinite.skip)
    poisoned_trainer(config(demo, training=skip), session, {1}).fit()
    before, after = (load_run(path) for path in saved_steps(session.folder / "checkpoints")[:2])
    assert same(before["model"], after["model"])
    assert "going on (1 such steps so far)" in capsys.readouterr().out
    assert load_run(saved_steps(session.folder / "checkpoints")[-1])["nonfinite_steps"] == 1
    # The bad step is in no mean; with one step a record its own record has none.
    losses = [record["loss"] for record in records(session) if "loss" in record]
    assert [loss is None for loss in losses] == [False, True, False]


def test_rolling_back_takes_the_newest_checkpoints_weights_and_goes_on(
    demo: Path, session: Session, capsys: pytest.CaptureFixture[str]
):
    """Step 3 is taken, step 4 is bad: the weights after it are those of the checkpoint after step 2."""
    given = config(
        demo,
        training=TrainingConfig(on_nonfinite=OnNonfinite.rollback),
        checkpoint=CheckpointConfig(every_steps=2, keep=9),
        logging=LoggingConfig(every_steps=4),
        schedule=ScheduleConfig(epochs=1, max_steps=STEPS),
    )
    poisoned_trainer(given, session, {3}).fit()
    before, after = (load_run(path) for path in saved_steps(session.folder / "checkpoints"))
    assert (before["step"], after["step"]) == (2, 4)
    assert same(after["model"], before["model"])
    momenta = [
        {str(key): entry["momentum_buffer"] for key, entry in saved["optimizer"]["state"].items()}
        for saved in (before, after)
    ]
    assert same(*momenta)
    assert "weights and momenta are those after step 2 again; going on (1" in capsys.readouterr().out


def test_rolling_back_needs_a_checkpoint(demo: Path, session: Session):
    policy = TrainingConfig(on_nonfinite=OnNonfinite.rollback)
    with pytest.raises(UserError, match=r"rollback: there is no checkpoint yet; .*checkpoint\.every_steps"):
        poisoned_trainer(config(demo, training=policy), session, {0}).fit()


def test_too_many_bad_steps_stop_the_run_whatever_is_configured(demo: Path, session: Session):
    policy = TrainingConfig(on_nonfinite=OnNonfinite.skip, nonfinite_limit=1)
    with pytest.raises(UserError, match=r"2 such steps are more than training\.nonfinite_limit=1"):
        poisoned_trainer(config(demo, training=policy), session, {0, 1}).fit()


def test_gradients_that_overflow_step_after_step_stop_the_run(demo: Path, session: Session):
    trainer = open_trainer(config(demo), session)
    told = pytest.raises(UserError, match=r"overflow in fp16 .*loss scale 0\.000488.*runtime\.precision=bf16")
    for scale, outcome in ((2.0**-10, nullcontext()), (2.0**-11, told)):
        object.__setattr__(trainer.state, "scaler", torch.amp.GradScaler("cpu", init_scale=scale))
        with outcome:
            trainer.nonfinite.check(trainer.guard, trainer.task.loader, trainer.schedule)


def test_a_signal_saves_the_step_and_says_which(demo: Path, session: Session):
    never = CheckpointConfig(every_epochs=None, keep=9)
    trainer = open_trainer(config(demo, checkpoint=never), session)
    take_step = trainer.take_step

    def signalled(*arguments: Any) -> None:
        if trainer.step == 2:
            signal.raise_signal(signal.SIGTERM)
        take_step(*arguments)

    trainer.take_step = signalled
    with pytest.raises(Preempted):
        trainer.fit()
    assert [load_run(path)["step"] for path in saved_steps(session.folder / "checkpoints")] == [2]
    left = json.loads((session.folder / FILE).read_text())
    assert (left["step"], left["signal"]) == (2, "SIGTERM")


def test_an_overridden_key_counts_from_the_next_step_on(demo: Path, session: Session):
    short = ScheduleConfig(epochs=1, max_steps=1)
    open_trainer(config(demo, schedule=short), session).fit()
    decay = OptimizerConfig(learning_rate=1e-3, weight_decay=0.25, momentum=0.5)
    with pytest.raises(CheckpointError, match=r"optimizer\.weight_decay: 0.0005 in the checkpoint, 0.25 now"):
        open_trainer(config(demo, optimizer=decay), session)
    override = ResumeConfig(override=["optimizer.weight_decay", "optimizer.momentum"])
    trainer = open_trainer(config(demo, optimizer=decay, resume=override), session)
    decayed, undecayed = trainer.state.optimizer.param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.25, 0.0)
    assert decayed["momentum"] == undecayed["momentum"] == 0.5


def test_what_could_not_be_written_as_the_best_is_not_the_best(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    disk = FullDisk(monkeypatch)
    disk.full = False
    going_on = CheckpointConfig(every_steps=1, keep=1, on_error=OnError["continue"])
    trainer = open_trainer(config(demo, checkpoint=going_on), session)
    trainer.step = 1
    trainer.save({"AP": 0.2})
    trainer.step = 2
    trainer.saver.wait()
    disk.full = True
    trainer.save({"AP": 0.9})
    trainer.step = 3
    trainer.saver.wait()
    disk.full = False
    trainer.save({"AP": 0.3})  # better than what is on disk
    trainer.saver.wait()
    assert trainer.saver.best == {"AP": 0.3, "step": 3}
    assert load_run(session.folder / "checkpoints" / "best.pt")["numbers"] == {"AP": 0.3}


def test_the_best_stays_the_best_where_only_its_steps_file_could_not_be_written(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    disk = FullDisk(monkeypatch)
    disk.full = "step_00000001.pt"
    going_on = CheckpointConfig(every_steps=1, keep=1, on_error=OnError["continue"])
    trainer = open_trainer(config(demo, checkpoint=going_on), session)
    for trainer.step, ap in ((1, 0.9), (2, 0.3)):
        trainer.save({"AP": ap})
    trainer.saver.wait()
    assert trainer.saver.best == {"AP": 0.9, "step": 1}
    assert load_run(session.folder / "checkpoints" / "best.pt")["numbers"] == {"AP": 0.9}
    assert load_run(saved_steps(session.folder / "checkpoints")[-1])["best"] == {"AP": 0.9, "step": 1}


def test_a_checkpoint_that_was_begun_is_finished_whatever_ends_the_run(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    write = ssd.training.saver.write

    def slowly(path: Path, state: dict[str, Any]) -> None:
        time.sleep(1)
        write(path, state)

    monkeypatch.setattr(ssd.training.saver, "write", slowly)
    stopping = config(demo, logging=LoggingConfig(every_steps=2), checkpoint=CheckpointConfig(every_steps=1))
    trainer = open_trainer(stopping, session)

    def fails(*_: Any) -> None:
        if trainer.step == 1:
            raise ZeroDivisionError
        take_step(*_)

    take_step, trainer.take_step = trainer.take_step, fails
    with pytest.raises(ZeroDivisionError):
        trainer.fit()
    assert [load_run(path)["step"] for path in saved_steps(session.folder / "checkpoints")] == [1]


def test_a_signal_in_an_evaluation_does_not_name_a_step_that_is_not_on_disk(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    disk = FullDisk(monkeypatch)
    given = config(
        demo,
        schedule=ScheduleConfig(epochs=1),
        checkpoint=CheckpointConfig(every_epochs=None, on_error=OnError["continue"]),
    )
    trainer = open_trainer(given, session)
    agree = trainer._leave_if_asked

    def room_and_a_signal(error: UserError | None) -> None:
        disk.full = False
        signal.raise_signal(signal.SIGTERM)
        agree(error)

    monkeypatch.setattr(trainer, "_leave_if_asked", room_and_a_signal)
    with pytest.raises(Preempted):
        trainer.fit()
    left = json.loads((session.folder / FILE).read_text())
    (path,) = saved_steps(session.folder / "checkpoints")
    assert load_run(path)["step"] == left["step"] == trainer.last_step


def test_killed_between_best_and_its_step_the_evaluation_is_done_again(
    demo: Path, session: Session, monkeypatch: pytest.MonkeyPatch
):
    """best.pt is written first: a step whose file has numbers has its best.pt."""
    written = []
    write = ssd.training.saver.write
    monkeypatch.setattr(
        ssd.training.saver, "write", lambda path, state: (written.append(path.name), write(path, state))
    )
    trainer = open_trainer(config(demo), session)
    trainer.step = 1
    trainer.save({"AP": 0.2})
    trainer.saver.wait()
    assert written == ["best.pt", "step_00000001.pt"]
