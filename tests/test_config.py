"""conf/ and its schema: what is accepted, what is refused, and that every experiment is a valid run."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from ssd.categories import Categories
from ssd.checkpoint import CheckpointError
from ssd.cli import parse, register
from ssd.config import Check, DataConfig, EvaluateConfig, EvaluationConfig, OnError, Precision, TrainConfig
from ssd.errors import UserError
from ssd.published import Weights
from ssd.training.optimizer import build_schedule
from ssd.training.state import build_network

pytestmark = pytest.mark.unit

CONF = Path(__file__).parent.parent / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
# RECIPE 8: GPUs, images a GPU.
PUBLISHED_ROWS = [(gpus, images) for gpus in (1, 4, 8) for images in (64, 128, 256)]


@pytest.fixture(autouse=True, scope="module")
def _conf():
    register("train_schema", TrainConfig)
    register("evaluate_schema", EvaluateConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def train_config(*overrides: str) -> TrainConfig:
    return parse(TrainConfig, compose("train", overrides=list(overrides)))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_is_valid_and_has_a_run_folder_of_its_own_name(experiment: str):
    assert train_config(f"experiment={experiment}").name == experiment


def test_finetuning_without_a_checkpoint_says_what_to_give():
    model = train_config("experiment=finetune").model
    with pytest.raises(CheckpointError, match=r"give model\.checkpoint=PATH.* does not exist"):
        build_network(model, Categories((1,), ("a",)), seed=0)


@pytest.mark.parametrize(("given", "value"), [("data.check=off", Check.off), ("data.check=full", Check.full)])
def test_off_on_the_command_line_is_a_word(given: str, value: Check):
    assert train_config(given).data.check is value


def test_a_refusal_to_save_may_be_survived():
    assert train_config("checkpoint.on_error=continue").checkpoint.on_error is OnError["continue"]
    with pytest.raises(HydraException, match=r"checkpoint\.on_error"):
        train_config("checkpoint.on_error=ignore")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_begins_with_its_launch_command(experiment: str):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"train.py experiment={experiment}" in lines[1]


@pytest.mark.parametrize("debug", sorted(path.stem for path in (CONF / "debug").glob("*.yaml")))
def test_every_debug_setting_goes_with_an_experiment(debug: str):
    assert train_config("experiment=demo", f"debug={debug}").name == debug


def test_what_is_learned_by_heart_is_what_is_scored():
    data = train_config("debug=overfit", "data.path=coco").data
    for kind in ("images", "annotations"):
        assert data.locate(f"val_{kind}") == data.locate(f"train_{kind}")


def test_an_experiment_stands_for_each_published_row():
    assert {f"coco_{gpus}x{images}" for gpus, images in PUBLISHED_ROWS} <= set(EXPERIMENTS)


@pytest.mark.parametrize(("gpus", "images"), PUBLISHED_ROWS)
def test_published_rows_have_the_recipes_learning_rate_and_warmup(gpus: int, images: int):
    config = train_config(f"experiment=coco_{gpus}x{images}")
    rate, warmup = (2.7e-3, 1200) if gpus * images > 512 else (2.6e-3, 300)  # RECIPE 8
    schedule = build_schedule(config.optimizer, config.schedule, gpus * images)
    assert config.data.batch_size == images
    assert (schedule.base, schedule.warmup_steps) == (rate * (gpus * images / 32), warmup)
    assert (config.schedule.epochs, schedule.milestones) == (65, (43, 54))
    assert config.runtime.precision is Precision.fp16


def test_tf32_goes_on_top_of_an_experiment():
    runtime = train_config("experiment=coco_8x128", "runtime=tf32").runtime
    assert (runtime.precision, runtime.tf32) == (Precision.fp32, True)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optimizer.learning_rte=1", "learning_rte"),
        ("data.batch_size=many", "data.batch_size"),
        ("runtime.precision=fp8", "runtime.precision"),
        ("schedule.milestones=[a]", "schedule.milestones"),
        ("experiment=coco_3x64", "experiment/coco_3x64"),
        ("optimiser=sgd", "optimiser"),
    ],
)
def test_hydra_refuses_and_names_the_key(override: str, named: str):
    with pytest.raises(HydraException) as caught:
        train_config(override)
    assert named in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("key", ["unknown", "optimizer.unknown", "evaluation.unknown"])
def test_a_plus_does_not_smuggle_an_unknown_key_in(key: str):
    with pytest.raises(UserError, match=rf"unknown config key {key}"):
        train_config(f"+{key}=1")


@pytest.mark.parametrize(
    "override",
    [
        "data.batch_size=0",
        "data.limit=0",
        "data.min_box_px=0",
        "data.threads=0",
        "data.min_box_px=inf",
        "optimizer.learning_rate=0",
        "optimizer.learning_rate=inf",
        "optimizer.learning_rate=nan",
        "optimizer.momentum=1",
        "optimizer.momentum=nan",
        "optimizer.weight_decay=-1",
        "optimizer.weight_decay=inf",
        "schedule.epochs=0",
        "schedule.max_steps=0",
        "schedule.warmup_steps=-1",
        "schedule.milestones=[9,3]",
        "schedule.milestones=[0]",
        "logging.every_steps=0",
        "evaluation.epochs=[-3]",
        "evaluation.every=0",
        "evaluation.pictures=-1",
        "evaluation.timeout_minutes=0",
        "evaluation.timeout_minutes=inf",
        "training.hang_timeout_minutes=0",
        "training.hang_timeout_minutes=inf",
        "training.hang_timeout_minutes=1e9",
        "training.nonfinite_limit=0",
        "training.compare_replicas_every=0",
        "checkpoint.keep=0",
        "checkpoint.every_steps=0",
        "checkpoint.every_epochs=0",
        "seed=-1",
        "name=a/b",
        "name=''",
    ],
)
def test_a_senseless_value_is_refused_by_its_key(override: str):
    with pytest.raises(UserError, match=rf"^{override.split('=')[0]}="):
        train_config(override)


def test_paths_follow_from_data_path_unless_given():
    data = DataConfig(path="coco", val_images="elsewhere")
    assert data.locate("train_annotations") == Path("coco/annotations/instances_train2017.json")
    assert data.locate("val_images") == Path("elsewhere")


def test_a_path_that_follows_from_nothing_names_both_keys():
    with pytest.raises(UserError, match=r"data\.path=null.*data\.val_images="):
        DataConfig().locate("val_images")


def test_evaluations_follow_the_listed_and_each_kth_epoch():
    config = EvaluationConfig(epochs=[0, 4], every=3)
    assert [epoch for epoch in range(9) if config.due(epoch)] == [0, 2, 4, 5, 8]


def evaluate_config(*overrides: str) -> EvaluateConfig:
    return parse(EvaluateConfig, compose("evaluate", overrides=["checkpoint=x.pt", *overrides]))


TRAINED = Weights(
    model={},
    backbone="resnet34",
    num_classes=3,
    categories=Categories((1, 2), ("a", "b")),
    config={
        "data": {"batch_size": 16, "limit": 5},
        "runtime": {"device": "cuda", "precision": "bf16", "tf32": False, "channels_last": False},
    },
)
PUBLISHED = Weights(model={}, backbone="resnet50", num_classes=81, categories=None, config=None)


def test_evaluation_runs_as_trained_where_nothing_is_given():
    data, runtime = evaluate_config().resolve(TRAINED)
    assert (data.batch_size, data.limit) == (16, None)  # a limit of the training is not the evaluation's
    assert (runtime.precision, runtime.channels_last) == (Precision.bf16, False)


def test_evaluation_takes_what_is_given():
    data, runtime = evaluate_config("data.batch_size=4", "runtime.precision=fp32").resolve(TRAINED)
    assert (data.batch_size, runtime.precision) == (4, Precision.fp32)


def test_a_published_checkpoint_runs_in_float32_with_and_without_its_backbone_named():
    for overrides in ((), ("model.backbone=resnet50",)):
        data, runtime = evaluate_config(*overrides).resolve(PUBLISHED)
        assert (data.batch_size, runtime.precision) == (32, Precision.fp32)


def test_another_backbone_than_trained_is_refused():
    with pytest.raises(UserError, match="the checkpoint is a resnet34"):
        evaluate_config("model.backbone=resnet18").resolve(TRAINED)


def test_evaluation_refuses_an_endless_wait():
    with pytest.raises(UserError, match=r"^timeout_minutes=inf: give more than 0 and at most"):
        evaluate_config("timeout_minutes=inf")


def test_training_may_wait_for_ever():
    assert train_config("training.hang_timeout_minutes=null").training.hang_timeout_minutes is None


def test_evaluation_needs_a_checkpoint():
    with pytest.raises(UserError, match="checkpoint is not set"):
        parse(EvaluateConfig, compose("evaluate"))
