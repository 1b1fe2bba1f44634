import copy

import pytest

from ssd.checkpoint import CheckpointError
from ssd.config import TrainConfig, as_plain
from ssd.training.resume import check_same_run, shaping_values

pytestmark = pytest.mark.unit

CONFIG = as_plain(TrainConfig(name="x"))


def changed(key: str, value: object) -> dict:
    config = copy.deepcopy(CONFIG)
    *sections, last = key.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[last] = value
    return config


def compare(config: dict, world_size: int = 1, fingerprint: str = "f") -> None:
    check_same_run(shaping_values(CONFIG, 1, "f"), shaping_values(config, world_size, fingerprint), "x")


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
    old = shaping_values(CONFIG, 1, "f")[key]
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


def test_other_ranks_or_other_data_are_another_run():
    with pytest.raises(CheckpointError, match="number of ranks: 1 in the checkpoint, 2 now"):
        compare(CONFIG, world_size=2)
    with pytest.raises(
        CheckpointError, match="fingerprint of the training annotations: f in the checkpoint, g now"
    ):
        compare(CONFIG, fingerprint="g")
