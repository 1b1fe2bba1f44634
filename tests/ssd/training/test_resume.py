import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from ssd.checkpoint import CheckpointError, load_run, saved_steps, step_file, write
from ssd.cli import as_plain
from ssd.config import DataConfig, OptimizerConfig, ResumeConfig, TrainConfig
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.training.checkpoints import newest_checkpoint
from ssd.training.meter import LossMeter
from ssd.training.optimizer import build_optimizer
from ssd.training.resume import TrainState, check_same_run, images_per_rank, shaping_values
from ssd.training.saved_run import SavedRun
from ssd.training.session import Session
from tests.ssd.training.samples import saved_run

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CONFIG = as_plain(TrainConfig(name="x"))


def changed(key: str, value: object) -> dict:
    config = deepcopy(CONFIG)
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[last] = value
    return config


def compare(config: dict, fingerprint: str = "f", override: tuple[str, ...] = ()) -> None:
    saved, now = shaping_values(CONFIG, "f"), shaping_values(config, fingerprint)
    check_same_run(saved, now, list(override), "x")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 7),
        ("data.batch_size", 7),
        ("data.augment", False),
        ("data.limit", 7),
        ("data.crowd", False),
        ("data.min_box_px", 7.0),
        ("model.backbone", "resnet18"),
        ("model.weights", "IMAGENET1K_V1"),
        ("model.freeze_batchnorm", True),
        ("optimizer.learning_rate", 7.0),
        ("optimizer.weight_decay", 7.0),
        ("schedule.milestones", [7]),
        ("schedule.warmup_steps", 7),
        ("runtime.precision", "bf16"),
    ],
)
def test_a_key_that_shapes_the_trajectory_must_stay(key: str, value: object):
    with pytest.raises(CheckpointError) as caught:
        compare(changed(key, value))
    old = shaping_values(CONFIG, "f")[key]
    assert f"{key}: {old} in the checkpoint, {value} now" in str(caught.value)
    assert "name=" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "y"),
        ("data.path", "elsewhere"),
        ("data.threads", 7),
        ("runtime.device", "cuda"),
        ("schedule.epochs", 700),
        ("schedule.max_steps", 7),
        ("logging.every_steps", 7),
        ("evaluation.every", 7),
        ("checkpoint.keep", 7),
    ],
)
def test_other_keys_are_free(key: str, value: object):
    compare(changed(key, value))


def test_other_data_is_another_run():
    with pytest.raises(CheckpointError, match=r"data\.train_annotations: .*fingerprint f in the .* g now"):
        compare(CONFIG, fingerprint="g")


def test_named_keys_may_differ_and_no_others():
    changed_twice = changed("optimizer.momentum", 0.5)
    changed_twice["seed"] = 9
    with pytest.raises(CheckpointError, match=r"seed: 0 in") as caught:
        compare(changed_twice, override=("optimizer.momentum",))
    assert "momentum" not in str(caught.value)
    compare(changed_twice, override=("optimizer.momentum", "seed"))
    compare(CONFIG, fingerprint="g", override=("data.train_annotations",))


def test_an_override_that_means_nothing_is_refused():
    with pytest.raises(UserError, match=r"resume\.override=.*momentun is none of .*optimizer\.momentum"):
        compare(CONFIG, override=("optimizer.momentun",))


def train_state(momentum: float = 0.9, scaler: torch.amp.GradScaler | None = None) -> TrainState:
    network = torch.nn.Linear(2, 2)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    optimizer = build_optimizer(network, OptimizerConfig(momentum=momentum))
    return TrainState(network, optimizer, scaler, LossMeter(CPU), Ranks(CPU))


def step_of(state: TrainState, found_inf: bool = False) -> None:
    """Take a step of TrainStep's kind; found_inf: one that is skipped."""
    loss = state.network(torch.ones(1, 2)).sum() * (float("inf") if found_inf else 1.0)
    state.scaler.scale(loss).backward()
    state.optimizer.found_inf = torch.tensor(float(found_inf))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()


def test_momentum_that_a_run_gets_when_it_resumes_begins_at_zero():
    """Its first step may be skipped, which would leave uninitialised memory."""
    without, state = train_state(momentum=0.0), train_state(momentum=0.9)
    step_of(without)
    state.restore(without.capture())
    for found_inf in (True, False):
        momenta = [state.optimizer.state[parameter] for parameter in state.network.parameters()]
        assert [float(entry["momentum_buffer"].abs().sum()) for entry in momenta] == [0.0, 0.0]
        step_of(state, found_inf)
    assert all(entry["momentum_buffer"].all() for entry in momenta)


def scales_over(state: TrainState, overflows: list[bool]) -> list[float]:
    scales = []
    for found_inf in overflows:
        step_of(state, found_inf)
        scales.append(state.scaler.get_scale())
    return scales


def test_loss_scale_and_its_growth_go_on_where_they_were():
    whole, stopped, resumed = (
        train_state(scaler=torch.amp.GradScaler("cpu", growth_interval=3)) for _ in range(3)
    )
    overflows = [True, False, False, False, False]
    expected = scales_over(whole, overflows)
    assert expected == [2.0**15, 2.0**15, 2.0**15, 2.0**16, 2.0**16]
    scales = scales_over(stopped, overflows[:3])
    resumed.restore(stopped.capture())
    assert scales + scales_over(resumed, overflows[3:]) == expected


def test_the_global_batch_wins_over_the_batch_size_of_another_number_of_ranks():
    config = TrainConfig(name="x", data=DataConfig(batch_size=32))
    for world_size, share in ((1, 12), (3, 4), (6, 2)):
        ranks = Ranks(torch.device("cpu"), world_size=world_size)
        assert images_per_rank(config, saved_run(world_size=2, global_batch=12), ranks) == share
    same = Ranks(torch.device("cpu"), world_size=2)
    assert images_per_rank(config, saved_run(world_size=2, global_batch=12), same) == 6
    assert images_per_rank(config, None, same) == 32
    override = TrainConfig(name="x", data=config.data, resume=ResumeConfig(override=["data.batch_size"]))
    assert images_per_rank(override, saved_run(world_size=2, global_batch=12), same) == 32


@pytest.mark.parametrize("world_size", [5, 12, 24])
def test_ranks_that_cannot_share_the_global_batch_are_told_which_numbers_can(world_size: int):
    ranks = Ranks(torch.device("cpu"), world_size=world_size)
    with pytest.raises(UserError, match=r"Numbers of ranks that work: 1, 2, 3, 4, 6$"):
        images_per_rank(TrainConfig(name="x"), saved_run(world_size=2, global_batch=12), ranks)


def save_steps(folder: Path, steps: list[int]) -> None:
    for step in steps:
        write(step_file(folder / "checkpoints", step), saved_run(step).as_plain())


def test_a_saved_run_comes_out_of_its_file_as_it_went_in(tmp_path: Path):
    path = step_file(tmp_path, 4)
    write(path, saved_run().as_plain())
    read = SavedRun.from_plain(load_run(path), path)
    assert torch.equal(read.captured["model"].pop("weight"), torch.ones(2))
    expected = saved_run()
    expected.captured["model"].clear()
    assert read == expected


def test_a_checkpoint_of_another_version_is_named_with_what_it_lacks(session: Session):
    plain = saved_run().as_plain()
    del plain["bad_images"], plain["scaler"]
    write(step_file(session.folder / "checkpoints", 4), plain)
    with pytest.raises(CheckpointError, match=r"step_00000004\.pt lacks bad_images, scaler: another version"):
        newest_checkpoint(session)


def test_the_newest_good_checkpoint_is_taken_and_damaged_ones_are_kept_aside(session: Session):
    folder = session.folder / "checkpoints"
    save_steps(session.folder, [2, 4, 6, 8])
    for step in (6, 8):
        path = step_file(folder, step)
        path.write_bytes(path.read_bytes()[:-1])
    saved = newest_checkpoint(session)
    assert saved is not None
    assert saved.step == 4
    assert [path.name for path in saved_steps(folder)] == ["step_00000002.pt", "step_00000004.pt"]
    assert sorted(path.name for path in folder.glob("*.broken")) == [
        "step_00000006.pt.broken",
        "step_00000008.pt.broken",
    ]


def test_the_best_checkpoint_is_the_last_resort(session: Session):
    folder = session.folder / "checkpoints"
    save_steps(session.folder, [2, 4])
    shutil.copy(step_file(folder, 2), folder / "best.pt")
    for step in (2, 4):
        step_file(folder, step).write_bytes(b"")
    saved = newest_checkpoint(session)
    assert saved is not None
    assert saved.step == 2


def test_a_run_without_a_good_checkpoint_does_not_start_over(session: Session):
    save_steps(session.folder, [2])
    step_file(session.folder / "checkpoints", 2).write_bytes(b"")
    for _ in range(2):  # not the second time either
        with pytest.raises(CheckpointError, match=r"no checkpoint of the run is good: .*step_00000002\.pt"):
            newest_checkpoint(session)


def test_a_run_that_has_not_begun_has_no_checkpoint(session: Session):
    assert newest_checkpoint(session) is None
