import errno
import os
import random
import zipfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from ssd.checkpoint import (
    CheckpointError,
    UnreadableError,
    keep_newest,
    load_file,
    load_run,
    newest_checkpoint,
    saved_steps,
    step_file,
    write,
)

pytestmark = pytest.mark.unit


def test_what_is_written_is_read_back_by_us_by_torch_and_by_zip(tmp_path: Path):
    state = {"format": 1, "a": [1, 2.5, None, True, "x"], "b": {"c": torch.arange(3)}}
    path = tmp_path / "new" / "x.pt"
    write(path, state)
    for read in (load_run(path), torch.load(path, weights_only=True)):
        assert read["a"] == state["a"]
        assert torch.equal(read["b"]["c"], state["b"]["c"])
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.pt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.pt"
    write(path, {"format": 1, "step": 1})
    no_room = OSError(28, "No space left on device")
    for where, name, fault in (os, "fsync", Mock(side_effect=no_room)), (Path, "read_bytes", lambda _: b""):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fault)
            with pytest.raises(OSError, match=r"No space|reads back other than it was written"):
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


def test_a_value_that_could_not_be_read_back_is_refused_by_its_place(tmp_path: Path):
    for value in (np.float64(1.0), np.int64(1), Path("x"), (1, 2), {1}, torch.float32):
        with pytest.raises(TypeError, match=r"checkpoint\['numbers'\]\[1\]"):
            write(tmp_path / "x.pt", {"numbers": [0, value]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "needed", "kept"),
    [(15, [], [15, 10**8]), (10, [], [10, 15, 10**8]), (15, [5, 10], [10, 15, 10**8])],
)
def test_kept_are_the_newest_the_one_just_written_the_one_that_is_needed_and_the_best(
    written: int, needed: list[int], kept: list[int], tmp_path: Path
):
    others = [tmp_path / name for name in ("best.pt", "step_00000020.pt.tmp")]
    for path in (*others, *(step_file(tmp_path, step) for step in (5, 10, 10**8, 15))):
        path.touch()
    keep_newest(tmp_path, 2, step_file(tmp_path, written), needed.__contains__)
    assert saved_steps(tmp_path) == [step_file(tmp_path, step) for step in kept]
    assert {*tmp_path.iterdir()} == {*others, *saved_steps(tmp_path)}


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data/0", bytes(10**7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"x\.pt does not exist"),
        (os.mkfifo, r"x\.pt is no regular file"),
        (bomb, r"x\.pt can't be read: .*unpack to 10000000, and torch\.save never compresses"),
        (b"", r"x\.pt can't be read"),
        (b"PK\x03\x04 cut off", r"x\.pt can't be read"),
        ([1], r"x\.pt is a list, not a dict"),
        ({"a": Path("x")}, r"x\.pt .*reading that could run code"),
        ({"model": {}}, r"x\.pt is not a checkpoint of this trainer"),
        ({"format": 1}, r"x\.pt is damaged: its checksum is missing"),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_of_ours_is_refused_by_name(
    content: object, message: str, tmp_path: Path
):
    if callable(content):
        content(tmp_path / "x.pt")
    elif isinstance(content, bytes):
        (tmp_path / "x.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=message):
        load_run(tmp_path / "x.pt")


def test_a_file_of_torchs_format_before_zip_is_read_too(tmp_path: Path):
    torch.save({"model": {"a": torch.ones(2)}}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_file(tmp_path / "x.pt")["model"]["a"], torch.ones(2))


def test_every_flipped_bit_and_every_truncation_is_noticed(tmp_path: Path):
    written = tmp_path / "x.pt"
    write(written, {"format": 1, "step": 7, "model": {"weight": torch.arange(300.0)}})
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
    ("damaged", "taken", "looked_at"),  # best.pt is never resumed from
    [
        ([], 8, []),
        ([6], 8, []),
        ([6, 8], 4, [6, 8]),
        (["best", 8], 6, ["best", 8]),
        ([4, 6, 8], None, [4, 6, 8]),
        (["best", 4, 6, 8], None, ["best", 4, 6, 8]),
    ],
)
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "of another step"])
def test_the_newest_good_checkpoint_is_taken_and_damaged_newer_ones_and_the_best_are_kept_aside(
    damaged: list[Any], taken: int | None, looked_at: list[Any], cut: bool, tmp_path: Path
):
    files = {step: step_file(tmp_path, step) for step in (4, 6, 8)} | {"best": tmp_path / "best.pt"}
    for step, path in files.items():
        write(path, {"format": 1, "step": step})
    for step in damaged:
        if cut or step == "best":
            files[step].write_bytes(files[step].read_bytes()[:-1])
        else:
            write(files[step], {"format": 1, "step": 30})
    path, told = newest_checkpoint(tmp_path)
    assert path == (files[taken] if taken else None)
    assert len(told) == len(looked_at)
    aside = [f"{files[step].name}.broken" for step in looked_at if taken]
    assert sorted(path.name for path in tmp_path.glob("*.broken")) == aside


@pytest.mark.parametrize(
    ("where", "name", "error"),
    [
        (Path, "read_bytes", OSError(errno.EIO, "Input/output error")),
        (Path, "read_bytes", MemoryError()),
        (torch, "load", MemoryError()),
        (torch, "load", RuntimeError("DefaultCPUAllocator: can't allocate memory")),
        (os, "listdir", OSError(errno.EMFILE, "Too many open files")),
    ],
    ids=str,
)
def test_what_the_system_fails_to_read_is_tried_again_and_never_taken_for_damage(
    where: Any, name: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for step in (4, 8):
        write(step_file(tmp_path, step), {"format": 1, "step": step})
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    read, last_failure = getattr(where, name), 2

    def failing(*given: Any, **named: Any) -> Any:
        if len(waits) < last_failure:
            raise error
        return read(*given, **named)

    monkeypatch.setattr(where, name, failing)
    if where is not os:  # listing a folder isn't retried
        assert newest_checkpoint(tmp_path) == (step_file(tmp_path, 8), [])
        assert len(waits) == last_failure
    waits, last_failure = [], 99
    monkeypatch.setattr("time.sleep", waits.append)
    with pytest.raises(UnreadableError, match="can't be read"):
        newest_checkpoint(tmp_path)
    monkeypatch.undo()
    assert saved_steps(tmp_path) == [step_file(tmp_path, step) for step in (4, 8)]
