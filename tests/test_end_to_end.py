"""train.py and evaluate.py as a user runs them, on the embedded set, each in its own process."""

import json
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image, JpegImagePlugin

from scripts import make_docs
from ssd.evaluation.coco import NAMES, coco_numbers
from tests.bench import LAST_STEP, ROOT, Bench, run, succeeded

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_a_run_leaves_what_it_promises(bench: Bench):
    folder = bench.folder / bench.uninterrupted(1)
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert saved == ["best.pt", "step_00000006.pt", "step_00000012.pt"]
    best, _, last = (path.stat().st_size for path in sorted((folder / "checkpoints").iterdir()))
    assert 0.49 < best / last < 0.51  # no momenta
    (events,) = folder.glob("events.out.tfevents.*")
    assert b"config/text_summary" in events.read_bytes()
    command, *told = (folder / "run.log").read_text().splitlines()
    started = json.loads((folder / "starts.jsonl").read_text())
    assert command == f"{started['started']} {started['command']}"
    assert "train.py name=" in command
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", started["commit"])
    assert "torch " in started["versions"]
    assert told == (bench.folder / f"{folder.name}.txt").read_text().splitlines()
    assert "backbone: resnet18" in (folder / "config.yaml").read_text()
    assert (folder / "pictures" / "step_00000000" / "first_training_batch.jpg").exists()
    assert len(list((folder / "pictures" / "step_00000012").iterdir())) == 2
    records = bench.records(folder.name)
    assert [record["step"] for record in records] == [5, 6, 10, 12, 12]
    training = {"step", "epoch", "loss", "loss_localization", "loss_confidence"}
    training |= {"learning_rate", "images_per_second", "data_wait"}
    assert set(records[0]) == training
    assert set(records[1]) == {"step", "epoch", *NAMES}


def test_a_smoke_test_trains_saves_evaluates_and_draws_each_time(bench: Bench, name: str):
    where = (f"data.path={bench.data}", f"hydra.run.dir={bench.folder / name}")
    command = bench.command("train.py", "experiment=demo", "debug=smoke", *where)
    succeeded(run([*command, "data.batch_size=2", "schedule.max_steps=1"]))
    succeeded(run(command))
    records = bench.records(name)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6, 6]  # 26 images, 4 a step
    assert set(NAMES) <= set(records[-1])
    saved = {path.name for path in bench.checkpoint(name).parent.iterdir()}
    assert {"best.pt", "step_00000004.pt"} <= saved
    assert list((bench.folder / name / "pictures" / "step_00000006").iterdir())
    assert "after step 6, the only evaluation." in (bench.folder / name / "report.html").read_text()


def test_a_sweep_started_again_resumes_each_job_and_ends_with_their_numbers(bench: Bench, name: str):
    """The jobs differ in a key that changes no result: all end like a single run. The third has ended."""
    whole = bench.uninterrupted(1)
    for job in range(3):
        shutil.copytree(bench.folder / whole, bench.folder / name / str(job))
        if job < 2:
            bench.checkpoint(f"{name}/{job}").unlink()
    output = succeeded(bench.train(name, "data.threads=1,2,3", "--multirun"))
    for job in range(2):
        bench.assert_ended_as(whole, f"{name}/{job}")
        assert f"{name} data.threads={job + 1} → {bench.folder / name / str(job)}\n" in output
    told = output.splitlines()
    assert [f"is finished: {LAST_STEP} of {LAST_STEP} steps" in line for line in told].count(True) == 1
    assert sum("→" in line for line in told) == output.count("resuming") == 2
    last = bench.records(whole)[-1]
    numbers = f"AP {round(last['AP'], 3)}, AP50 {round(last['AP50'], 3)}, step {LAST_STEP}"
    for job, line in enumerate(told[-3:]):
        assert line.endswith(f"{name}/{job} data.threads={job + 1}: {numbers}")


def test_readmes_pictures_are_made_of_a_run(bench: Bench, tmp_path: Path):
    folder = bench.folder / bench.uninterrupted(1)
    make_docs.main(folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs").glob("*.jpg")}
    first = folder / "pictures" / "step_00000000" / "first_training_batch.jpg"
    for path in (*tmp_path.iterdir(), first):
        with Image.open(path) as picture:
            assert JpegImagePlugin.get_sampling(picture) == 0  # every pixel of a thin line has its colour


def test_evaluate_gives_on_one_rank_the_numbers_of_the_training_on_two(bench: Bench, tmp_path: Path):
    name = bench.uninterrupted(2)
    told = (bench.folder / f"{name}.txt").read_text()
    assert "global batch      │ 4: 2 × 2" in told
    assert told.count("Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]") == 2
    logged = {key: value for key, value in bench.records(name)[-1].items() if key in NAMES}
    out, found = tmp_path / "report.json", tmp_path / "new" / "found.json"
    checkpoint = bench.checkpoint(name)
    page = tmp_path / "page.html"
    outputs = (f"out={out}", f"detections={found}", f"report={page}")
    output = succeeded(run(bench.command("evaluate.py", f"checkpoint={checkpoint}", *outputs)))
    assert f"AP {logged['AP']:.3f} and AP50 {logged['AP50']:.3f}." in page.read_text()
    assert output.startswith(f"data.path={bench.data}, as {checkpoint} was trained\n")
    report = json.loads(out.read_text())
    assert report["numbers"] == logged
    assert report["images_scored"] == 5
    assert f"maxDets=100 ] = {logged['AR_100']:0.3f}" in output
    assert len(json.loads(found.read_text())) == report["detections"] > 0
    assert coco_numbers(report["annotation_file"], found) == logged


def test_two_ranks_train_as_one_and_one_goes_on_with_their_global_batch(bench: Bench, name: str):
    """Without BatchNorm's batch statistics, losses differ only by rounding."""
    fixed = ("runtime=fp32", "model.freeze_batchnorm=true", "optimizer.learning_rate=1e-5")
    short = ("schedule.warmup_steps=0", "schedule.max_steps=3", "logging.every_steps=1")
    losses = []
    for ranks in (1, 2):
        folder = f"hydra.run.dir={bench.folder / name}/{ranks}"
        succeeded(bench.train(name, *fixed, *short, folder, ranks=ranks))
        losses.append([record["loss"] for record in bench.records(f"{name}/{ranks}")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    output = succeeded(bench.train(name, *fixed, *short, folder, "data.batch_size=2", "schedule.max_steps=4"))
    told = " ".join(output.replace("│", "").split())
    assert "global batch 4: 1 × 4 (the run's; data.batch_size=2 is not used)" in told
    assert [record["step"] for record in bench.records(f"{name}/2")] == [1, 2, 3, 4]
