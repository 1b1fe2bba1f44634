"""Checksums kept beside a folder: what they notice, and that sha256sum reads them."""

import hashlib
import subprocess
from pathlib import Path

import pytest

from data.checksums import changed_files, missing_files, read_checksums, sha256_of, write_checksums
from ssd.errors import UserError

pytestmark = pytest.mark.unit

CONTENTS = {"a b.jpg": b"first", "é.jpg": b"second", "empty": b""}
SUMS = {name: hashlib.sha256(body).hexdigest() for name, body in CONTENTS.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set.2017"
    folder.mkdir()
    for name, body in CONTENTS.items():
        (folder / name).write_bytes(body)
    write_checksums(folder, SUMS)
    return folder


def changed(folder: Path) -> list[str]:
    return changed_files(folder, SUMS, lambda _read, _total: None)


def test_what_is_written_is_read_back(folder: Path) -> None:
    assert read_checksums(folder) == SUMS
    assert sorted(path.name for path in folder.parent.iterdir()) == ["set.2017", "set.2017.sha256"]


def test_sha256sum_reads_it(folder: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "set.2017.sha256"]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=True)
    assert done.stdout.count(": OK") == 3


def test_whole_folder_has_nothing_missing_and_nothing_changed(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert missing_files(folder, SUMS) == []
    assert changed_files(folder, SUMS, lambda *figures: seen.append(figures)) == []
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_changed_emptied_and_missing_files_are_named(folder: Path) -> None:
    (folder / "a b.jpg").write_bytes(b"fIrst")
    (folder / "é.jpg").unlink()
    assert missing_files(folder, SUMS) == ["é.jpg"]
    assert changed(folder) == ["a b.jpg", "é.jpg"]


def test_a_folder_in_a_files_place_is_no_file(folder: Path) -> None:
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert changed(folder) == ["empty"]


def test_files_of_others_are_no_ones_business(folder: Path) -> None:
    (folder / "mine.json").write_text("{}")
    assert missing_files(folder, SUMS) == []
    assert changed(folder) == []


def test_no_checksums_are_none(tmp_path: Path) -> None:
    assert read_checksums(tmp_path / "set") is None
    assert sha256_of(tmp_path / "set") is None


@pytest.mark.parametrize(
    "line",
    [
        "garbage",
        "",
        f"{'0' * 63}  set.2017/a",
        f"{'0' * 64} set.2017/a",
        f"{'0' * 64}  other/a",
        f"{'0' * 64}  setX2017/a",
        f"{'0' * 64}  set.2017/../a",
        f"{'0' * 64}  set.2017/",
    ],
)
def test_line_of_another_kind_is_named(folder: Path, line: str) -> None:
    path = folder.with_name("set.2017.sha256")
    path.write_text(f"{'0' * 64}  set.2017/a\n{line}\n")
    with pytest.raises(UserError, match=r"set\.2017\.sha256: line 2 is not .* move it and .* away"):
        read_checksums(folder)


def test_checksums_that_are_no_text_are_refused(folder: Path) -> None:
    folder.with_name("set.2017.sha256").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_checksums(folder)
