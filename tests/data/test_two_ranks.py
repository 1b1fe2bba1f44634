"""What two ranks over gloo come to know of each other's data: one quarantine, or an error on both."""

import json
import multiprocessing
import os
import socket
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.build import open_training
from data.demo import generate
from ssd.config import (
    Backbone,
    DataConfig,
    Device,
    LoggingConfig,
    ModelConfig,
    OnBadImage,
    Precision,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from ssd.errors import UserError
from ssd.training.session import Session, open_session
from ssd.training.trainer import start_or_resume

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def config(folder: Path) -> TrainConfig:
    data = DataConfig(path=str(folder / "demo"), batch_size=2, threads=1, on_bad_image=OnBadImage.quarantine)
    return TrainConfig(
        name="x",
        data=data,
        model=ModelConfig(backbone=Backbone.resnet18),
        schedule=ScheduleConfig(epochs=1, max_steps=2),
        logging=LoggingConfig(every_steps=1, report=False),
        runtime=RuntimeConfig(device=Device.cpu, precision=Precision.fp32),
    )


def refused(config: TrainConfig, session: Session, **of_rank_1: str) -> str:
    """Return the error of a start where rank 1 reads other files."""
    given = of_rank_1 if session.ranks.rank == 1 else {}
    with pytest.raises(UserError) as caught:
        open_training(replace(config, data=replace(config.data, **given)), None, session)
    return str(caught.value)


def run_rank(rank: int, port: int, folder: Path) -> dict[str, Any]:
    """Be one of two ranks: three starts that are refused, then two steps, with a picture that turns bad."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    ours = config(folder)
    with open_session(ours, folder / "run") as session:
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
            "known": [*trainer._known_bad],
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        ranks = [*pool.map(run_rank, range(2), [port] * 2, [tmp_path] * 2)]
    for rank in ranks:
        for split, message in zip(("train", "val"), rank["refusals"][:2], strict=True):
            assert message.startswith(f"data.{split}_annotations=")
            assert f"{socket.gethostname()} (rank 1). Give all hosts the same file" in message
        assert rank["excluded"] == [bad["id"]]
        assert rank["fingerprint"] == ranks[0]["fingerprint"]
        assert rank["known"] == [rank["turned bad"]]
    assert ranks[0]["refusals"][2].startswith("another rank can't go on")
    assert "missing.json: it cannot be read" in ranks[1]["refusals"][2]
    assert [rank["met"] for rank in ranks] == [[], [ranks[0]["turned bad"]]]
