"""What a run begins with, what must stay when it resumes, and that its state comes back as it was."""

import errno
import re
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn

from ssd.categories import COCO, Categories
from ssd.checkpoint import CheckpointError, step_file, write
from ssd.cli import by_full_key
from ssd.config import Backbone, DataConfig, ModelConfig, OptimizerConfig, ResumeConfig, TrainConfig
from ssd.distributed import Ranks
from ssd.errors import UserError
from ssd.published import to_published
from ssd.training.log import LossMeter
from ssd.training.optimizer import build_optimizer
from ssd.training.session import Session
from ssd.training.state import (
    DETECTOR,
    SavedRun,
    TrainState,
    build_network,
    check_override,
    check_same_run,
    images_per_rank,
    load_newest,
)
from tests.ssd.training.samples import SAVED, saved_run

pytestmark = pytest.mark.unit

CPU = torch.device("cpu")
CATEGORIES = Categories((1, 2), ("a", "b"))


def config(**given: object) -> ModelConfig:
    return ModelConfig(backbone=Backbone.resnet18, **given)


def assert_same(state: dict[str, Any], other: dict[str, Any]) -> None:
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)


def test_the_first_weights_follow_from_the_seed():
    first, again, other = (build_network(config(), CATEGORIES, seed)[0].state_dict() for seed in (1, 1, 2))
    assert_same(first, again)
    assert not torch.equal(first["logit_heads.0.weight"], other["logit_heads.0.weight"])


def test_an_imagenet_backbone_comes_from_a_file(tmp_path: Path):
    resnet = torchvision.models.resnet18()
    torch.save(resnet.state_dict(), tmp_path / "imagenet.pth")
    network, _ = build_network(config(weights=str(tmp_path / "imagenet.pth")), CATEGORIES, seed=0)
    assert torch.equal(network.state_dict()["backbone.layer3.1.conv2.weight"], resnet.layer3[1].conv2.weight)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("IMAGENET1K_V2", r"model\.weights=IMAGENET1K_V2: resnet18 has IMAGENET1K_V1"),
        ("IMAGENET1K_V1", r"no network.*model\.weights=FILE"),
        ("resnet34.pth", r"resnet34\.pth: .*model\.backbone"),
        ("README.md", r"^model\.weights=.*README\.md: checkpoint .* can't be read"),
    ],
)
def test_imagenet_weights_that_cannot_be_used_are_refused_by_the_key(
    weights: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", no_network)
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("# words")
    torch.save(torchvision.models.resnet34().state_dict(), "resnet34.pth")
    with pytest.raises(UserError, match=message):
        build_network(config(weights=weights), CATEGORIES, seed=0)


def save_detector(path: Path, categories: Categories, published: bool) -> dict[str, torch.Tensor]:
    trained = dict(build_network(config(), categories, seed=9)[0].state_dict())
    if published:
        torch.save({"model": to_published(trained)}, path)
    else:
        plain = {"categories": categories.as_plain(), "config": SAVED["config"]}
        write(path, {"format": 1, "model": trained, **plain})
    return trained


@pytest.mark.parametrize(
    ("trained_on", "published", "others", "heads_are_kept"),
    [
        (CATEGORIES, False, CATEGORIES, True),
        (CATEGORIES, True, CATEGORIES, True),
        (CATEGORIES, False, Categories((1,), ("a",)), False),
        (CATEGORIES, False, Categories((1, 2), ("a", "x")), False),
        (CATEGORIES, False, Categories((1, 2), ("b", "a")), False),
        (COCO, True, COCO, True),
        (COCO, True, Categories(COCO.ids, (*COCO.names[:-1], "unheard of")), False),
    ],
)
def test_a_detector_to_start_from_keeps_its_class_heads_where_it_knows_these_classes(
    trained_on: Categories, published: bool, others: Categories, heads_are_kept: bool, tmp_path: Path
):
    trained = save_detector(tmp_path / "x.pt", trained_on, published)
    network, origin = build_network(config(checkpoint=str(tmp_path / "x.pt")), others, seed=3)
    fresh = build_network(config(), others, seed=3)[0].state_dict()
    for key, value in network.state_dict().items():
        is_new = key.startswith("logit_heads.") and not heads_are_kept
        assert torch.equal(value, (fresh if is_new else trained)[key])
    assert ("class heads, which are new" in origin) != heads_are_kept


def test_a_detector_of_another_backbone_is_refused(tmp_path: Path):
    save_detector(tmp_path / "x.pt", CATEGORIES, published=True)
    other = ModelConfig(backbone=Backbone.resnet34, checkpoint=str(tmp_path / "x.pt"))
    with pytest.raises(UserError, match=r"model\.backbone=resnet34: .*x\.pt is a resnet18"):
        build_network(other, CATEGORIES, seed=0)


def check(changed: dict[str, Any], override: tuple[str, ...] = (), fingerprint: str = "f") -> None:
    """Compare the default config with a checkpoint that had other values, by full key."""
    was = OmegaConf.create(SAVED["config"])
    for key, value in changed.items():
        OmegaConf.update(was, key, value)
    now = TrainConfig(name="x", resume=ResumeConfig(override=list(override)))
    check_same_run(now, fingerprint, Ranks(CPU), saved_run(config=OmegaConf.to_container(was)))


CONFIG = by_full_key(SAVED["config"])
SHAPING = (
    *("seed", "data.batch_size", "data.augment", "data.limit", "data.crowd", "data.min_box_px"),
    *("schedule.milestones", "schedule.warmup_steps"),
    *(key for key in CONFIG if key.startswith(("model.", "optimizer.", "runtime."))),
)


@pytest.mark.parametrize("key", sorted({*SHAPING} - {"runtime.device"}))
def test_keys_that_shape_the_trajectory_must_stay_unless_they_are_named(key: str):
    told = re.escape(f"{key}: other in the checkpoint, {CONFIG[key]} now")
    with pytest.raises(CheckpointError, match=rf"{told}\n.*name="):
        check({key: "other"})
    check({key: "other"}, override=(key,))


def test_other_keys_are_free_and_an_override_must_mean_something():
    check({"name": "y", "data.path": "elsewhere", "runtime.device": "cuda", "evaluation.every": 7})
    check({"schedule.epochs": 700, "schedule.max_steps": 7, "logging.every_steps": 7, "checkpoint.keep": 7})
    with pytest.raises(CheckpointError, match=r"data\.train_annotations: .*fingerprint f in the .* g now"):
        check({}, fingerprint="g")
    with pytest.raises(UserError, match=r"resume\.override=.*momentun is none of .*optimizer\.momentum"):
        check_override(["optimizer.momentum", "optimizer.momentun"])


@pytest.mark.parametrize(("world_size", "share"), [(1, 12), (2, 6), (3, 4), (6, 2)])
def test_the_global_batch_wins_over_the_batch_size_of_another_number_of_ranks(world_size: int, share: int):
    ranks, saved = Ranks(CPU, world_size=world_size), saved_run(world_size=2, global_batch=12)
    given = TrainConfig(name="x", data=DataConfig(batch_size=32))
    assert images_per_rank(given, saved, ranks) == share
    assert images_per_rank(given, None, ranks) == 32
    given.resume.override = ["data.batch_size"]
    assert images_per_rank(given, saved, ranks) == 32
    if world_size != saved.world_size:
        check_same_run(TrainConfig(name="x", data=DataConfig(batch_size=7)), "f", ranks, saved)


@pytest.mark.parametrize("world_size", [5, 12, 24])
def test_ranks_that_cannot_share_the_global_batch_are_told_which_numbers_can(world_size: int):
    with pytest.raises(UserError, match=r"Numbers of ranks that work: 1, 2, 3, 4, 6$"):
        images_per_rank(TrainConfig(name="x"), saved_run(global_batch=12), Ranks(CPU, world_size=world_size))


def train_state(
    momentum: float = 0.9, growth_interval: int = 2000, network: nn.Module | None = None
) -> TrainState:
    network = network or nn.Linear(2, 2)
    scaler = torch.amp.GradScaler("cpu", growth_interval=growth_interval)
    optimizer = build_optimizer(network, OptimizerConfig(momentum=momentum))
    return TrainState(network, optimizer, scaler, LossMeter(CPU), Ranks(CPU))


def step_of(state: TrainState, overflows: bool = False) -> float:
    """Take a step as TrainStep does, or skip it; return the loss scale after it."""
    loss = state.network(torch.ones(1, 2)).sum() * (float("inf") if overflows else 1.0)
    state.scaler.scale(loss).backward()
    state.optimizer.found_inf = torch.tensor(float(overflows))
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    scale: float = state.scaler.get_scale()
    return scale


def test_momentum_that_a_run_gets_when_it_resumes_begins_at_zero():
    """Its first step may be skipped, which would leave uninitialised memory."""
    without, state = train_state(momentum=0.0), train_state(momentum=0.9)
    step_of(without)
    state.restore(without.collect())
    for overflows in (True, False):
        momenta = [state.optimizer.state[parameter] for parameter in state.network.parameters()]
        assert [float(entry["momentum_buffer"].abs().sum()) for entry in momenta] == [0.0, 0.0]
        step_of(state, overflows)
    assert all(entry["momentum_buffer"].all() for entry in momenta)


def test_loss_scale_and_its_growth_go_on_where_they_were():
    whole, stopped, resumed = (train_state(growth_interval=3) for _ in range(3))
    overflows = [True, False, False, False, False]
    expected = [step_of(whole, each) for each in overflows]
    assert expected == [2.0**15, 2.0**15, 2.0**15, 2.0**16, 2.0**16]
    scales = [step_of(stopped, each) for each in overflows[:3]]
    resumed.restore(stopped.collect())
    assert scales + [step_of(resumed, each) for each in overflows[3:]] == expected


def test_a_saved_run_comes_out_of_its_file_as_it_went_in(tmp_path: Path):
    run = saved_run()
    write(tmp_path / "x.pt", run.as_plain())
    read = SavedRun.load(tmp_path / "x.pt")
    assert_same(read.model, run.model)
    assert replace(read, model={}) == saved_run(model={})


def test_the_newest_good_checkpoint_is_taken_and_a_run_without_one_does_not_start_over(
    session: Session, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert load_newest(session) is None
    folder = session.folder / "checkpoints"
    write(folder / "best.pt", {key: saved_run().as_plain()[key] for key in DETECTOR})
    with pytest.raises(CheckpointError, match=r"best\.pt is alone, .*Put a good step_\*\.pt there"):
        load_newest(session)
    for step in (2, 4):
        write(step_file(folder, step), saved_run(step=step).as_plain())
    step_file(folder, 4).write_bytes(b"")
    saved = load_newest(session)
    assert saved is not None
    assert saved.step == 2
    assert "it is kept as step_00000004.pt.broken" in capsys.readouterr().out
    step_file(folder, 2).write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint of the run is good: .*step_00000002\.pt"):
        load_newest(session)
    assert step_file(folder, 2).exists()
    monkeypatch.setattr("ssd.checkpoint.RETRY_WAITS_S", ())
    monkeypatch.setattr(Path, "read_bytes", Mock(side_effect=OSError(errno.EIO, "Input/output error")))
    with pytest.raises(CheckpointError, match=r"\(Input/output error\); try again"):
        load_newest(session)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"step": "7"}, r"Expected `int`, got `str` - at `\$\.step`"),
        ({"bad_images": "lacking"}, r"missing required field `bad_images`"),
        ({"categories": {"ids": [1]}}, r"missing required field `names`"),
    ],
)
def test_a_checkpoint_that_lacks_an_entry_or_has_another_kind_of_it_is_refused_by_it(
    given: dict[str, Any], message: str, tmp_path: Path
):
    plain = saved_run().as_plain() | given
    write(tmp_path / "x.pt", {key: value for key, value in plain.items() if value != "lacking"})
    with pytest.raises(CheckpointError, match=rf"x\.pt can't be resumed from \(.*{message}.*best\.pt, or"):
        SavedRun.load(tmp_path / "x.pt")


def test_momenta_take_the_layout_of_their_parameter():
    """Not the checkpoint's, as where a run resumes with another runtime.channels_last."""
    network = nn.Conv2d(2, 4, 3)
    saved = train_state(network=network)
    for parameter in network.parameters():
        saved.optimizer.state[parameter]["momentum_buffer"] = torch.randn_like(parameter)
    state = train_state(network=deepcopy(network).to(memory_format=torch.channels_last))
    state.restore(saved.collect())
    for before, after in zip(network.parameters(), state.network.parameters(), strict=True):
        momentum = state.optimizer.state[after]["momentum_buffer"]
        assert momentum.stride() == after.stride()
        assert torch.equal(momentum, saved.optimizer.state[before]["momentum_buffer"])
