import pytest
import torch

from ssd.config import OptimizerConfig, ScheduleConfig
from ssd.model import SSD300
from ssd.published import to_published
from ssd.training.optimizer import Schedule, build_optimizer, build_schedule, parameter_groups
from tests.golden_inputs import golden_json

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("name", "base", "warmup_steps"),
    [
        ("8x64 warmup 300", 2.6e-3 * (8 * 64 / 32), 300),
        ("8x128 lr 2.7e-3 warmup 1200", 2.7e-3 * (8 * 128 / 32), 1200),
        ("1x32 no warmup", 2.6e-3, 0),
    ],
)
def test_learning_rates_equal_the_published_ones_exactly(name: str, base: float, warmup_steps: int):
    schedule = Schedule(base, warmup_steps, (43, 54))
    rows = golden_json("lr_schedule.json")[name]
    assert [[step, epoch, schedule(step, epoch)] for step, epoch, _ in rows] == rows


def test_a_milestone_inside_the_warmup_counts():
    schedule = Schedule(base=1.0, warmup_steps=100, milestones=(2,))
    assert schedule(50, epoch=2) == pytest.approx(0.1 * schedule(50, epoch=1))
    assert schedule(500, epoch=9) == pytest.approx(0.1 * 0.99)


def test_the_learning_rate_scales_with_the_global_batch_unless_told_not_to():
    for scaled, base in ((True, 2.6e-3 * 16), (False, 2.6e-3)):
        config = OptimizerConfig(learning_rate=2.6e-3, scale_learning_rate=scaled)
        assert build_schedule(config, ScheduleConfig(), 512).base == base


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_parameter_groups_equal_the_published_ones(backbone: str):
    with torch.device("meta"):
        model = SSD300(backbone)
    published = dict(zip(model.state_dict(), to_published(model.state_dict()), strict=True))
    decayed, undecayed = parameter_groups(model)
    golden = golden_json(f"param_groups_{backbone}.json")
    assert {published[name] for name in decayed} == set(golden["weight_decay"])
    assert {published[name] for name in undecayed} == set(golden["no_weight_decay"])


def test_the_optimizer_decays_the_first_group_alone():
    groups = build_optimizer(torch.nn.Linear(2, 2), OptimizerConfig(weight_decay=0.5)).param_groups
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.5), (1, 0.0)]
