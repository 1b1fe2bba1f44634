import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ssd.checkpoint import (
    CheckpointError,
    check_plain,
    keep_newest,
    load_run,
    newest_checkpoint,
    saved_steps,
    step_file,
    write,
)

pytestmark = pytest.mark.unit


def test_what_is_written_is_read_back(tmp_path: Path):
    state = {"format": 1, "a": [1, 2.5, None, True, "x"], "b": {"c": torch.arange(3)}}
    write(tmp_path / "new" / "x.pt", state)
    read = load_run(tmp_path / "new" / "x.pt")
    assert read["a"] == state["a"]
    assert torch.equal(read["b"]["c"], state["b"]["c"])
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.pt"]


def no_room(_: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name", "fault", "message"),
    [
        (os, "fsync", no_room, "No space"),
        (Path, "read_bytes", lambda _: b"other", "reads back other than it was written"),
    ],
)
def test_a_write_that_fails_leaves_the_old_file(
    module: object, name: str, fault: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.pt"
    write(path, {"format": 1, "step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fault)
        with pytest.raises(OSError, match=message):
            write(path, {"format": 1, "step": 2})
    assert load_run(path)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), replace(self, to))[1])
    write(tmp_path / "x.pt", {"format": 1})
    assert events == ["fsync", "rename", "fsync"]


@pytest.mark.parametrize("value", [np.float64(1.0), np.int64(1), Path("x"), (1, 2), {1}, torch.float32])
def test_a_value_that_could_not_be_read_back_is_refused_by_its_place(value: object, tmp_path: Path):
    with pytest.raises(TypeError, match=r"checkpoint\['numbers'\]\[1\]"):
        write(tmp_path / "x.pt", {"numbers": [0, value]})
    assert list(tmp_path.iterdir()) == []


def test_an_optimizers_and_a_networks_state_are_plain():
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, fused=True)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    check_plain({"model": network.state_dict(), "optimizer": optimizer.state_dict()})


def test_only_the_newest_are_kept_and_the_best(tmp_path: Path):
    for step in (5, 10, 100_000_000, 15):
        step_file(tmp_path, step).touch()
    (tmp_path / "best.pt").touch()
    (tmp_path / "step_00000020.pt.tmp").touch()
    keep_newest(tmp_path, 2, needed=lambda step: step < 15)
    assert saved_steps(tmp_path) == [step_file(tmp_path, step) for step in (10, 15, 100_000_000)]
    keep_newest(tmp_path, 2, needed=lambda _: False)
    assert saved_steps(tmp_path) == [step_file(tmp_path, 15), step_file(tmp_path, 100_000_000)]
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x\.pt does not exist"),
        (b"", r"x\.pt can't be read"),
        (b"no checkpoint", r"x\.pt can't be read"),
        (b"PK\x03\x04 cut off", r"x\.pt can't be read"),
        ([1], r"x\.pt is a list, not a dict"),
        ({"a": Path("x")}, r"x\.pt .*it names pathlib\.\S+\), and reading that could run code"),
        ({"model": {}}, r"x\.pt is not a checkpoint of this trainer"),
        ({"format": 1}, r"x\.pt is damaged: its checksum is missing"),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_of_ours_is_refused_by_name(
    content: object, message: str, tmp_path: Path
):
    if isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_run(tmp_path / "x.pt")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    write(path, {"format": 1, "step": 7, "model": {"weight": torch.arange(300.0)}})
    return path


def test_torch_and_zip_read_a_sealed_file_like_any_other(written: Path):
    assert torch.load(written, weights_only=True)["step"] == 7
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None


def test_every_flipped_bit_and_every_truncation_is_noticed(written: Path):
    content, draws = written.read_bytes(), random.Random(0)
    for bit in draws.sample(range(8 * len(content)), 1000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        written.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            load_run(written)
    for length in [*draws.sample(range(len(content)), 200), len(content) - 1]:
        written.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            load_run(written)


@pytest.mark.parametrize(
    ("damaged", "taken", "kept_aside"),
    [
        ([], "step_00000008.pt", []),
        (["step_00000006.pt"], "step_00000008.pt", []),
        (["step_00000006.pt", "step_00000008.pt"], "step_00000004.pt", [6, 8]),
        (["step_00000004.pt", "step_00000006.pt", "step_00000008.pt"], "best.pt", [4, 6, 8]),
        (["step_00000004.pt", "step_00000006.pt", "step_00000008.pt", "best.pt"], None, []),
    ],
)
def test_the_newest_good_checkpoint_is_taken_and_damaged_newer_ones_are_kept_aside(
    damaged: list[str], taken: str | None, kept_aside: list[int], tmp_path: Path
):
    for name in (*(f"step_{step:08d}.pt" for step in (4, 6, 8)), "best.pt"):
        write(tmp_path / name, {"format": 1})
    for name in damaged:
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1])
    path, told = newest_checkpoint(tmp_path)
    assert path == (tmp_path / taken if taken else None)
    assert sorted(aside.name for aside in tmp_path.glob("*.broken")) == [
        f"step_{step:08d}.pt.broken" for step in kept_aside
    ]
    assert len(told) == (len(kept_aside) or (0 if taken else len(damaged)))
