"""What two ranks over gloo come to know of each other's data: one quarantine, or an error on both."""

import json
import multiprocessing
import os
import re
import signal
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import data.loader
from data.build import open_training
from data.demo import generate
from ssd.batches import TrainBatch
from ssd.checkpoint import load_run, saved_steps
from ssd.cli import parse
from ssd.config import TrainConfig
from ssd.errors import UserError
from ssd.training.session import Session, open_session
from ssd.training.signals import Preempted
from ssd.training.trainer import Task, Trainer, start_or_resume
from tests.ssd.training.samples import small_networks

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


COMMON = (
    "name=x data.batch_size=2 data.threads=1 data.on_bad_image=quarantine model.backbone=resnet18 "
    "schedule.epochs=1 schedule.max_steps=2 logging.every_steps=1 logging.report=false "
    "runtime.device=cpu runtime.precision=fp32"
)


def config(folder: Path, *overrides: str) -> TrainConfig:
    given = [*COMMON.split(), f"data.path={folder / 'demo'}", *overrides]
    return parse(TrainConfig, OmegaConf.from_dotlist(given))


def refused(config: TrainConfig, session: Session, **of_rank_1: str) -> str:
    """Return the error of a start where rank 1 reads other files."""
    given = of_rank_1 if session.ranks.rank == 1 else {}
    with pytest.raises(UserError) as caught:
        open_training(replace(config, data=replace(config.data, **given)), None, session)
    return str(caught.value)


def become(rank: int, port: int) -> None:
    """Be one of two ranks from now on."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def on_two_ranks(run: Callable[[int, int, Path], dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return [*pool.map(run, range(2), [port] * 2, [folder] * 2)]


def run_rank(rank: int, port: int, folder: Path) -> dict[str, Any]:
    """Be one of two ranks: three starts that are refused, then two steps, with a picture that turns bad."""
    become(rank, port)
    ours = config(folder)
    with small_networks(), open_session(ours, folder / "run") as session:
        refusals = [
            refused(ours, session, train_annotations=str(folder / "train.json")),
            refused(ours, session, val_annotations=str(folder / "val.json")),
            refused(ours, session, train_annotations=str(folder / "missing.json")),
        ]
        task, _ = open_training(ours, None, session)
        trainer, _ = start_or_resume(ours, None, task, session)
        turning_bad = task.loader.contents(1)[2]  # the first of rank 1's
        torch.distributed.barrier()
        if rank == 0:
            Path(turning_bad["file"]).write_bytes(b"")
        torch.distributed.barrier()
        trainer.fit()
        return {
            "refusals": refusals,
            "fingerprint": task.fingerprint,
            "excluded": task.excluded,
            "turned bad": turning_bad["image_id"],
            "met": [*task.loader.bad_images()],
            "known": load_run(saved_steps(folder / "run" / "checkpoints")[-1])["bad_images"],
            "told": (folder / "run" / "run.log").read_text(),
        }


def stale(path: Path, copy: Path) -> None:
    """Write an older state of an annotation file, with the same categories and images in another order."""
    content = json.loads(path.read_text())
    content["categories"].reverse()
    content["images"].reverse()
    copy.write_text(json.dumps(content))


def test_two_ranks_share_one_quarantine_and_refuse_other_annotations(tmp_path: Path) -> None:
    generate(tmp_path / "demo", 16, 2)  # more than the two steps take: no evaluation
    annotations = tmp_path / "demo" / "annotations"
    for split in ("train", "val"):
        stale(annotations / f"instances_{split}2017.json", tmp_path / f"{split}.json")
    bad = json.loads((annotations / "instances_train2017.json").read_text())["images"][4]
    (tmp_path / "demo" / "train2017" / bad["file_name"]).write_bytes(b"")
    ranks = on_two_ranks(run_rank, tmp_path)
    for rank in ranks:
        for split, message in zip(("train", "val"), rank["refusals"][:2], strict=True):
            assert message.startswith(f"data.{split}_annotations=")
            assert message.count(f" on {socket.gethostname()}") == 2
            assert "Give all hosts the same file" in message
        assert rank["excluded"] == [bad["id"]]
        assert rank["fingerprint"] == ranks[0]["fingerprint"]
        assert rank["known"] == [rank["turned bad"]]
        assert rank["told"].count("its place in the batch is taken by another: ") == 1
    assert ranks[0]["refusals"][2].startswith("another rank can't go on")
    assert "missing.json: it cannot be read" in ranks[1]["refusals"][2]
    assert [rank["met"] for rank in ranks] == [[], [ranks[0]["turned bad"]]]


def end_rank(rank: int, port: int, folder: Path) -> dict[str, Any]:
    """Be one of two ranks: rank 1's decoder fails as only a GPU's would; in another run it gets a signal."""
    become(rank, port)
    ours = config(folder, "schedule.max_steps=3")
    run_graph, graphs_run = data.loader._run, 0
    order: list[str] = []

    def fail_in_step_1(*graph: Any) -> Any:
        nonlocal graphs_run
        graphs_run += 1
        if rank == 1 and graphs_run == 2:
            raise RuntimeError("nvImageCodec: INTERNAL_ERROR")
        return run_graph(*graph)

    def signalled(trainer: Trainer) -> Trainer:
        take, launch = trainer._take, trainer.train_step

        def take_noting(batches: Any) -> Any:
            order.append("take")
            if rank == 1 and order.count("take") == 3:
                signal.raise_signal(signal.SIGUSR1)
            return take(batches)

        def launch_noting(*step: Any) -> Any:
            order.append("launch")
            return launch(*step)

        trainer._take, trainer.train_step = take_noting, launch_noting  # type: ignore[assignment,method-assign]
        return trainer

    with small_networks(), open_session(ours, folder / "failing") as failing:
        task, _ = open_training(ours, None, failing)
        data.loader._run = fail_in_step_1
        with pytest.raises(UserError) as error:
            start_or_resume(ours, None, task, failing)[0].fit()
        data.loader._run = run_graph
        comparing = config(folder, "schedule.max_steps=3", "training.compare_replicas_every=2")
        faults = [faulty_in_step_1(comparing, task, failing, fault) for fault in ("weight", "images")]
        stopped = replace(failing, folder=folder / "stopped", lock=None)
        stopped.folder.mkdir(exist_ok=True)
        with pytest.raises(Preempted):
            signalled(start_or_resume(ours, None, task, stopped)[0]).fit()
    folders = [folder / name for name in ("failing", "stopped", "weight", "images")]
    saved = [[path.name for path in saved_steps(each / "checkpoints")] for each in folders]
    return {"error": str(error.value), "saved": saved, "order": order, "faults": faults}


def faulty_in_step_1(given: TrainConfig, task: Task, session: Session, fault: str) -> str:
    """Return the error of a run in which rank 1's memory changes before its second step."""
    session = replace(session, folder=session.folder.with_name(fault), lock=None)
    session.folder.mkdir(exist_ok=True)
    trainer, _ = start_or_resume(given, None, task, session)
    launch = trainer.train_step

    def launch_faulty(batch: TrainBatch, step: int, rate: float) -> Any:
        if (session.ranks.rank, step) == (1, 1):
            if fault == "images":
                batch.images[:] = torch.nan
            else:
                next(trainer.network.parameters()).data[0] += 1
        return launch(batch, step, rate)

    trainer.train_step = launch_faulty  # type: ignore[assignment]
    with pytest.raises(UserError) as error:
        trainer.fit()
    return str(error.value)


def test_where_one_rank_fails_or_gets_a_signal_both_save_the_same_step_and_end(tmp_path: Path) -> None:
    """They agree about a batch before the step before it is launched.

    After a loss that is not finite, or with replicas out of sync, neither saves.
    """
    generate(tmp_path / "demo", 16, 2)
    first, second = on_two_ranks(end_rank, tmp_path)
    assert first["error"].startswith("another rank can't go on")
    assert second["error"].startswith("step 1: DALI fails on a batch though the CPU reads each of its image")
    assert second["error"].endswith("INTERNAL_ERROR; with data.decoder=gpu give data.decoder=cpu")
    for rank in (first, second):
        assert rank["saved"] == [["step_00000001.pt"], ["step_00000002.pt"], [], []]
        assert re.match(
            r"the replicas are out of sync: \S+ of rank 1 differs from rank 0's", rank["faults"][0]
        )
        assert re.match(r"loss or gradient not finite in the step after 1.*image ids \d+", rank["faults"][1])
        assert rank["order"] == ["take", "take", "launch", "take", "launch"]
