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
    load_file,
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


def test_a_write_that_the_disk_refuses_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.pt"
    write(path, {"format": 1, "step": 1})

    def full_disk(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
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
    keep_newest(tmp_path, 2)
    assert saved_steps(tmp_path) == [step_file(tmp_path, 15), step_file(tmp_path, 100_000_000)]
    assert (tmp_path / "best.pt").exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"broken\.pt can't be read"):
        load_file(tmp_path / "broken.pt")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"gone\.pt does not exist"):
        load_file(tmp_path / "gone.pt")


def test_another_programs_checkpoint_is_no_run(tmp_path: Path):
    torch.save({"model": {"weight": torch.ones(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this trainer"):
        load_run(tmp_path / "other.pt")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "x.pt"
    write(path, {"format": 1, "step": 7, "model": {"weight": torch.arange(300.0)}})
    return path


def test_torch_and_zip_read_a_sealed_file_like_any_other(written: Path):
    assert torch.load(written, weights_only=True)["step"] == 7
    with zipfile.ZipFile(written) as archive:
        assert archive.testzip() is None


def test_every_flipped_bit_is_noticed(written: Path):
    content = written.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 1000):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        written.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            load_run(written)
    written.write_bytes(content)
    assert load_run(written)["step"] == 7


def test_every_truncation_is_noticed(written: Path):
    content = written.read_bytes()
    for length in [*random.Random(0).sample(range(len(content)), 200), len(content) - 1]:
        written.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            load_run(written)


def test_one_of_ours_saved_again_without_its_checksum_is_refused(written: Path):
    torch.save(load_run(written), written)
    with pytest.raises(CheckpointError, match="its checksum is missing"):
        load_run(written)


def test_what_reads_back_wrong_does_not_take_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.pt"
    write(path, {"format": 1, "step": 1})
    monkeypatch.setattr(Path, "read_bytes", lambda _: b"other")
    with pytest.raises(OSError, match="reads back other than it was written"):
        write(path, {"format": 1, "step": 2})
    monkeypatch.undo()
    assert load_run(path)["step"] == 1


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
