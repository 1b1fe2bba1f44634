"""conf/ and its schemas: which values are accepted or refused; every experiment is a valid run."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from ssd.categories import Categories
from ssd.checkpoint import CheckpointError
from ssd.cli import parse
from ssd.config import (
    Check,
    DataConfig,
    EvaluateConfig,
    EvaluationConfig,
    OnError,
    Precision,
    PredictConfig,
    ScheduleConfig,
    TrainConfig,
)
from ssd.errors import UserError
from ssd.published import Weights, load_weights
from ssd.training.optimizer import build_schedule
from tests.conftest import ROOT

pytestmark = pytest.mark.unit

CONF = ROOT / "conf"
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "predict": PredictConfig}
REQUIRED = {
    "train": [],
    "evaluate": ["checkpoint=x.pt", "report=./page.html"],
    "predict": ["checkpoint=x.pt", "images=a"],
}


@pytest.fixture(autouse=True, scope="module")
def composed() -> Iterator[dict[str, DictConfig]]:
    """Compose the config of each script."""
    for script, schema in SCHEMAS.items():
        ConfigStore.instance().store(f"{script}_schema", schema)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield {script: compose(script, overrides=given) for script, given in REQUIRED.items()}


def config(script: str, *overrides: str) -> Any:
    return parse(SCHEMAS[script], compose(script, overrides=[*REQUIRED[script], *overrides]))


# The files in conf/


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_is_valid_and_begins_with_its_launch_command(experiment: str):
    assert config("train", f"experiment={experiment}").name == experiment  # so it has its own run folder
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"train.py experiment={experiment}" in lines[1]


@pytest.mark.parametrize("debug", sorted(path.stem for path in (CONF / "debug").glob("*.yaml")))
def test_every_debug_setting_goes_with_an_experiment(debug: str):
    given = ["experiment=demo", f"debug={debug}"]
    assert (config("train", *given).name, config("train", *given).resume.never) == ("demo", True)
    for more, folder in ([], "runs/debug/demo"), (["hydra.run.dir=x"], "x"):
        assert compose("train", overrides=given + more, return_hydra_config=True).hydra.run.dir == folder


def test_finetuning_without_a_checkpoint_says_what_to_give():
    checkpoint = config("train", "experiment=finetune").model.checkpoint
    with pytest.raises(CheckpointError, match=r"give model\.checkpoint=PATH.* does not exist"):
        load_weights(Path(checkpoint))


def test_overfitting_scores_what_it_trains_on():
    data = config("train", "debug=overfit", "data.path=coco").data
    for kind in ("images", "annotations"):
        assert data.locate(f"val_{kind}") == data.locate(f"train_{kind}")


@pytest.mark.parametrize("images", [64, 128, 256])
@pytest.mark.parametrize("gpus", [1, 4, 8])
def test_published_rows_have_the_recipes_learning_rate_and_warmup(gpus: int, images: int):
    row = config("train", f"experiment=coco_{gpus}x{images}")
    rate, warmup = (2.7e-3, 1200) if gpus * images > 512 else (2.6e-3, 300)  # RECIPE 8
    schedule = build_schedule(row.optimizer, row.schedule, gpus * images)
    assert row.data.batch_size == images
    assert (schedule.base, schedule.warmup_steps) == (rate * (gpus * images / 32), warmup)
    assert (row.schedule.epochs, schedule.milestones) == (65, (43, 54))
    assert row.runtime.precision is Precision.fp16


# The schemas


def test_words_that_yaml_or_python_take_for_something_else_are_values():
    taken = config("train", "data.check=off", "checkpoint.on_error=continue")
    assert (taken.data.check, taken.checkpoint.on_error) == (Check.off, OnError["continue"])


def test_milestones_follow_from_the_epochs_where_they_are_null():
    for epochs, milestones in (40, [26, 34]), (2, [1, 2]), (1, [1]):
        assert ScheduleConfig(epochs, milestones=None).milestones == milestones


REFUSED = {
    "train": """
data.batch_size=0 data.limit=0 data.threads=0 data.min_box_px=0 data.min_box_px=inf
optimizer.learning_rate=0 optimizer.learning_rate=inf optimizer.learning_rate=nan
optimizer.momentum=1 optimizer.momentum=nan optimizer.weight_decay=-1 optimizer.weight_decay=inf
schedule.epochs=0 schedule.max_steps=0 schedule.warmup_steps=-1
schedule.milestones=[9,3] schedule.milestones=[0]
logging.every_steps=0
evaluation.epochs=[-3] evaluation.every=0 evaluation.pictures=-1
evaluation.timeout_minutes=0 evaluation.timeout_minutes=inf
checkpoint.keep=0 checkpoint.every_steps=0 checkpoint.every_epochs=0
training.hang_timeout_minutes=0 training.hang_timeout_minutes=inf training.hang_timeout_minutes=1e9
training.patience=0 training.nonfinite_limit=0 training.compare_replicas_every=0
seed=-1 name=a/b name=''
""",
    "evaluate": "timeout_minutes=inf out=page.html",
    "predict": """
images=null images=true images=1e3 images=[] images='' images=[a,null] images={a:1}
threshold=2 threshold=1 threshold=-0.1 threshold=nan
max_detections=0 classes=[] batch_size=0 threads=0 out=''
""",
}


@pytest.mark.parametrize(
    ("script", "given"), [(script, each) for script, given in REFUSED.items() for each in given.split()]
)
def test_a_value_that_makes_no_sense_is_refused_by_its_key(
    script: str, given: str, composed: dict[str, DictConfig]
):
    changed = OmegaConf.merge(composed[script], OmegaConf.from_dotlist([given]))  # faster than Hydra
    with pytest.raises(UserError, match=rf"^{given.split('=')[0]}="):
        parse(SCHEMAS[script], changed)


def test_what_must_be_given_is_named():
    with pytest.raises(UserError, match=r"^checkpoint is not set: give checkpoint=…"):
        parse(EvaluateConfig, compose("evaluate"))


def test_paths_follow_from_data_path_unless_given():
    data = DataConfig(path="coco", val_images="elsewhere")
    assert data.locate("train_annotations") == Path("coco/annotations/instances_train2017.json")
    assert data.locate("val_images") == Path("elsewhere")
    with pytest.raises(UserError, match=r"data\.path=null.*data\.val_images="):
        DataConfig().locate("val_images")


def test_evaluations_follow_the_listed_and_each_kth_epoch():
    evaluation = EvaluationConfig(epochs=[0, 4], every=3)
    assert [epoch for epoch in range(9) if evaluation.due(epoch)] == [0, 2, 4, 5, 8]


# Evaluation takes the training's settings

TRAINED = Weights(
    network=None,
    backbone="resnet34",
    num_classes=3,
    categories=Categories((1, 2), ("a", "b")),
    config={
        "data": {
            "batch_size": 16,
            "limit": 5,
            "path": "trained",
            "val_annotations": "x.json",
            "train_images": "y",
        },
        "runtime": {"device": "cuda", "precision": "bf16", "tf32": False, "channels_last": False},
    },
)
PUBLISHED = replace(TRAINED, categories=None, config=None)


@pytest.mark.parametrize(
    ("weights", "overrides", "batch_size", "precision", "paths"),
    [
        (TRAINED, [], 16, Precision.bf16, ("trained", None, "x.json")),
        (TRAINED, ["data.path=a", "data.batch_size=4"], 4, Precision.bf16, ("a", None, None)),
        (
            TRAINED,
            ["data.val_images=a", "runtime.precision=fp32"],
            16,
            Precision.fp32,
            ("trained", "a", "x.json"),
        ),
        (TRAINED, ["data.val_images=a", "data.val_annotations=b"], 16, Precision.bf16, (None, "a", "b")),
        (PUBLISHED, ["model.backbone=resnet34"], 32, Precision.fp32, (None, None, None)),
    ],
)
def test_an_evaluation_is_as_the_training_was_but_for_what_is_given(
    weights: Weights,
    overrides: list[str],
    batch_size: int,
    precision: Precision,
    paths: tuple[str | None, ...],
):
    """data.limit is not taken from the training."""
    data, runtime = config("evaluate", *overrides).resolve(weights)
    assert (data.batch_size, data.limit, runtime.precision) == (batch_size, None, precision)
    assert runtime.channels_last is (weights is PUBLISHED)
    assert (data.path, data.val_images, data.val_annotations) == paths
    with pytest.raises(UserError, match=r"model\.backbone=resnet18: the checkpoint is a resnet34"):
        config("evaluate", "model.backbone=resnet18").resolve(weights)


# Predicting


def test_predict_yaml_says_what_the_schema_does():
    assert config("predict") == PredictConfig(checkpoint="x.pt", images="a")


def test_images_is_one_source_or_several():
    for given, sources in (
        ("photos/**/*.jp?g", ["photos/**/*.jp?g"]),
        ("[a.jpg,'b c','d/[1]*']", ["a.jpg", "b c", "d/[1]*"]),
        ("2017", ["2017"]),
        ('"photos (1)/x=1,y"', ["photos (1)/x=1,y"]),
    ):
        assert config("predict", f"images={given}").sources() == sources
