"""train.py and evaluate.py as a user runs them: on the embedded set, in their own processes, killed too."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, JpegImagePlugin

from scripts import make_docs
from ssd.checkpoint import write
from ssd.cli import as_plain
from ssd.config import Backbone, ModelConfig, TrainConfig
from ssd.evaluation.coco import NAMES
from ssd.model import SSD300
from tests.bench import LIMIT_S, ROOT, Bench, run, state_hash, succeeded, without_times

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def uninterrupted(bench: Bench) -> dict[int, str]:
    """Names of finished runs by their number of ranks; their output is kept beside them."""
    names = {ranks: f"uninterrupted_{ranks}" for ranks in (1, 2)}
    for ranks, name in names.items():
        output = succeeded(bench.train(name, ranks=ranks))
        (bench.folder / f"{name}.txt").write_text(output)
    return names


def test_a_run_leaves_what_it_promises(bench: Bench, uninterrupted: dict[int, str]):
    folder = bench.folder / uninterrupted[1]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.pt",
        "step_00000006.pt",
        "step_00000012.pt",
    ]
    assert list(folder.glob("events.out.tfevents.*"))
    assert "backbone: resnet18" in (folder / "config.yaml").read_text()
    assert (folder / "pictures" / "step_00000000" / "first_training_batch.jpg").exists()
    assert len(list((folder / "pictures" / "step_00000012").iterdir())) == 2
    records = bench.records(uninterrupted[1])
    assert [record["step"] for record in records] == [5, 6, 10, 12, 12]
    training = {"step", "epoch", "loss", "loss_localization", "loss_confidence"}
    training |= {"learning_rate", "images_per_second", "data_wait"}
    assert set(records[0]) == training
    assert set(records[1]) == {"step", "epoch", *NAMES}


def test_a_smoke_test_trains_saves_evaluates_and_draws(bench: Bench):
    where = (f"data.path={bench.data}", f"hydra.run.dir={bench.folder / 'smoke'}")
    succeeded(run(bench.command("train.py", "experiment=demo", "debug=smoke", *where)))
    records = bench.records("smoke")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 6]  # 26 images, 4 a step
    assert set(NAMES) <= set(records[-1])
    assert {"best.pt", "step_00000004.pt"} <= {
        path.name for path in bench.checkpoint("smoke").parent.iterdir()
    }
    assert list((bench.folder / "smoke" / "pictures" / "step_00000006").iterdir())


def test_readmes_pictures_are_made_of_a_run(bench: Bench, uninterrupted: dict[int, str]):
    folder, out = bench.folder / uninterrupted[1], bench.folder / "docs"
    make_docs.main([f"--run={folder}", f"--data={bench.data}", f"--out={out}"])
    assert {path.name for path in out.iterdir()} == {path.name for path in (ROOT / "docs").iterdir()}
    first = folder / "pictures" / "step_00000000" / "first_training_batch.jpg"
    for path in (*out.iterdir(), first):
        with Image.open(path) as picture:
            assert JpegImagePlugin.get_sampling(picture) == 0  # every pixel of a thin line has its colour


def test_a_run_shows_its_derived_numbers_and_cocos_lines(bench: Bench, uninterrupted: dict[int, str]):
    output = (bench.folder / f"{uninterrupted[2]}.txt").read_text()
    assert "global batch      │ 4: 2 × 2" in output
    assert output.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]") == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_in_the_middle_of_an_epoch_and_started_again_ends_with_the_same_weights(
    ranks: int, bench: Bench, uninterrupted: dict[int, str]
):
    name, overrides = f"killed_{ranks}", ("checkpoint.every_steps=2",)
    kill_after(bench.train_command(name, *overrides, ranks=ranks), bench.checkpoint(name, 8))
    assert not bench.checkpoint(name).exists()
    output = succeeded(bench.train(name, *overrides, ranks=ranks))
    assert f"resuming '{name}' after step" in output
    whole = uninterrupted[ranks]
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(whole))
    assert without_times(bench.records(name)) == without_times(bench.records(whole))


def kill_after(command: list[str], file: Path) -> None:
    """Start a run and SIGKILL it with all its processes once a file is there."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT_S
    while not file.exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("step", [1, 6, 11])
def test_stopped_after_any_step_and_started_again_ends_with_the_same_weights(
    step: int, bench: Bench, uninterrupted: dict[int, str]
):
    name = f"stopped_{step}"
    succeeded(bench.train(name, f"schedule.max_steps={step}"))
    succeeded(bench.train(name))
    assert state_hash(bench.checkpoint(name)) == state_hash(bench.checkpoint(uninterrupted[1]))


def test_logging_evaluating_and_saving_at_other_times_changes_nothing(
    bench: Bench, uninterrupted: dict[int, str]
):
    other = ("logging.every_steps=1", "evaluation.every=null", "checkpoint.every_steps=1", "data.threads=1")
    succeeded(bench.train("other_times", *other))
    assert state_hash(bench.checkpoint("other_times")) == state_hash(bench.checkpoint(uninterrupted[1]))


def test_a_finished_run_says_so_and_is_left_alone(bench: Bench, uninterrupted: dict[int, str]):
    before = state_hash(bench.checkpoint(uninterrupted[1]))
    output = succeeded(bench.train(uninterrupted[1]))
    assert "is finished: 12 of 12 steps are done. A new name=… starts another" in " ".join(output.split())
    assert state_hash(bench.checkpoint(uninterrupted[1])) == before


def test_a_run_does_not_go_on_with_another_shape(bench: Bench, uninterrupted: dict[int, str]):
    result = bench.train(uninterrupted[1], "optimizer.momentum=0.8")
    assert result.returncode == 1
    assert "optimizer.momentum: 0.9 in the checkpoint, 0.8 now" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_evaluate_gives_the_numbers_of_the_training_on_any_number_of_ranks(
    ranks: int, bench: Bench, uninterrupted: dict[int, str]
):
    logged = {key: value for key, value in bench.records(uninterrupted[2])[-1].items() if key in NAMES}
    report_file = bench.folder / f"report_{ranks}.json"
    output = succeeded(
        bench.evaluate(f"checkpoint={bench.checkpoint(uninterrupted[2])}", f"out={report_file}", ranks=ranks)
    )
    report = json.loads(report_file.read_text())
    assert report["numbers"] == logged
    assert report["images_scored"] == 5
    assert f"maxDets=100 ] = {logged['AR_100']:0.3f}" in output


@pytest.mark.real_data
def test_one_two_and_three_ranks_evaluate_photographs_to_the_same_numbers(bench: Bench, test_data: Path):
    coco = test_data / "coco_mini"
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_text())
    checkpoint = bench.folder / "confident.pt"
    save_confident_network(checkpoint, content["categories"])
    numbers = []
    for ranks in (1, 2, 3):
        report = bench.folder / f"photographs_{ranks}.json"
        overrides = (f"data.path={coco}", "data.limit=22", "data.batch_size=4", f"out={report}")
        succeeded(bench.evaluate(f"checkpoint={checkpoint}", *overrides, ranks=ranks))
        numbers.append(json.loads(report.read_text())["numbers"])
    assert numbers[0] == numbers[1] == numbers[2]
    assert numbers[0]["AR_100"] > 0


def save_confident_network(path: Path, categories: list[dict[str, Any]]) -> None:
    """Save a network of random weights with logits so far apart that it detects something everywhere."""
    torch.manual_seed(0)
    network = SSD300("resnet18", len(categories) + 1)
    for head in network.logit_heads:
        torch.nn.init.normal_(head.weight, std=0.05)
    config = as_plain(TrainConfig(name="confident", model=ModelConfig(backbone=Backbone.resnet18)))
    config["runtime"]["precision"] = "fp32"
    ids = [each["id"] for each in categories]
    names = [each["name"] for each in categories]
    state = {
        "model": dict(network.state_dict()),
        "categories": {"ids": ids, "names": names},
        "config": config,
    }
    write(path, {"format": 1, **state})


def test_two_ranks_train_as_one(bench: Bench):
    """With BatchNorm's batch statistics out of the way, losses differ by rounding alone."""
    fixed = (
        "runtime=fp32",
        "model.freeze_batchnorm=true",
        "optimizer.learning_rate=1e-5",
        "schedule.warmup_steps=0",
    )
    short = ("schedule.max_steps=5", "logging.every_steps=1", "checkpoint.every_epochs=null")
    losses = {}
    for ranks in (1, 2):
        succeeded(bench.train(f"same_{ranks}", *fixed, *short, ranks=ranks))
        losses[ranks] = [record["loss"] for record in bench.records(f"same_{ranks}")]
    assert losses[2] == pytest.approx(losses[1], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_all_ranks_and_nothing_is_saved(bench: Bench):
    wild = ("optimizer.learning_rate=1e18", "schedule.warmup_steps=0", "checkpoint.every_steps=4")
    result = bench.train("wild", *wild, ranks=2)
    assert result.returncode == 1
    assert result.stderr.count("error: loss or gradient not finite in the step after") == 2
    assert re.search(r"image ids \d+(, \d+)*; ", result.stderr)
    assert not (bench.folder / "wild" / "checkpoints").exists()
