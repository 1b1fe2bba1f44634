"""What a run says of itself at its start."""

import pytest

from ssd.config import EvaluationConfig, ScheduleConfig, TrainConfig
from ssd.training.run import never_reached

pytestmark = pytest.mark.unit


def config(milestones: list[int], evaluated: list[int]) -> TrainConfig:
    schedule, evaluation = ScheduleConfig(milestones=milestones), EvaluationConfig(epochs=evaluated)
    return TrainConfig(name="x", schedule=schedule, evaluation=evaluation)


def test_milestones_and_evaluations_after_the_end_are_named():
    shortened = config([8, 10, 34], [4, 9, 10])  # to ten epochs
    assert never_reached(shortened, steps_per_epoch=6, last_step=60) == {
        "never reached": "schedule.milestones 10, 34; evaluation.epochs 10: the run ends in epoch 9"
    }
    stopped = config([1], [0, 1])  # by schedule.max_steps
    assert never_reached(stopped, steps_per_epoch=6, last_step=7) == {
        "never reached": "evaluation.epochs 1: the run ends in epoch 1"
    }


def test_a_run_that_comes_to_all_says_nothing():
    assert never_reached(config([9], [0, 9]), steps_per_epoch=6, last_step=60) == {}
    assert never_reached(config([], []), steps_per_epoch=6, last_step=1) == {}
