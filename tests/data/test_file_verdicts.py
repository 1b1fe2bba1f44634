"""Bad files are found before training; a file is opened once in each of its states, whoever asks."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.file_verdicts
from data.coco import CocoIndex, Selection, read_index
from data.file_verdicts import OUTDATED_AFTER_S, find_bad_files
from data.image_files import Level
from ssd.console import RunConsole
from ssd.errors import UserError
from tests.data.coco_folder import noise_folder

pytestmark = pytest.mark.unit

IMAGES = 6


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    folder = noise_folder(tmp_path / "noise", IMAGES)
    return read_index(folder.annotation_file, folder.image_folder)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files each inspection opened."""
    opened: list[int] = []
    inspect_all = data.file_verdicts.inspect_all
    monkeypatch.setattr(
        data.file_verdicts,
        "inspect_all",
        lambda paths, *given: (opened.append(len(paths)), inspect_all(paths, *given))[1],
    )
    return opened


def find(index: CocoIndex, cache: Path, level: Level = Level.header) -> dict[int, str]:
    return find_bad_files(index, level, threads=1, cache=cache, console=RunConsole(is_main=True))


def cut(index: CocoIndex, image: int, size: int = 20) -> int:
    """Shorten an image file; return the image's id."""
    path = Path(index.path(image))
    path.write_bytes(path.read_bytes()[:size])
    return int(index.image_ids[image])


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("files-*.v*"))


def test_bad_files_are_named_by_image(index: CocoIndex, cache: Path):
    short, empty, missing = cut(index, 1), cut(index, 2, 0), int(index.image_ids[4])
    Path(index.path(4)).unlink()
    bad = find(index, cache)
    assert [*bad] == [short, empty, missing]
    assert bad[short].startswith(f"{index.path(1)}: its header is cut short")
    assert bad[missing] == f"{index.path(4)}: there is no such file"


def test_what_is_bad_when_decoded_is_found_by_full_alone(index: CocoIndex, cache: Path):
    path = Path(index.path(2))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(500) + content[middle + 500 :])
    assert find(index, cache) == {}
    assert find(index, cache, Level.full).keys() == {int(index.image_ids[2])}


def test_only_files_that_changed_are_opened_again(index: CocoIndex, cache: Path, opened: list[int]):
    bad = cut(index, 1)
    for _ in range(3):
        assert find(index, cache).keys() == {bad}
    worse = cut(index, 3)
    for _ in range(2):
        assert find(index, cache).keys() == {bad, worse}
    assert opened == [IMAGES, 1]
    for entry in entries(cache):
        entry.write_bytes(entry.read_bytes()[:-1])
    assert find(index, cache).keys() == {bad, worse}
    assert opened == [IMAGES, 1, IMAGES]


def test_a_file_that_cannot_be_looked_up_is_asked_for_anew(index: CocoIndex, cache: Path, opened: list[int]):
    path, aside = Path(index.path(1)), Path(f"{index.path(1)}.aside")
    path.rename(aside)
    for _ in range(2):
        assert find(index, cache).keys() == {int(index.image_ids[1])}
    aside.rename(path)
    assert find(index, cache) == {}
    assert opened == [IMAGES - 1, 1]


def test_another_selection_of_the_same_files_opens_only_what_is_new(
    index: CocoIndex, cache: Path, opened: list[int]
):
    source = index.source

    def selected(**given: float) -> CocoIndex:
        return read_index(source.annotation_file, source.image_folder, Selection(**given))

    bad = cut(index, 1)
    assert find(selected(limit=2), cache).keys() == {bad}
    assert find(index, cache).keys() == {bad}
    assert find(selected(limit=2), cache).keys() == {bad}
    assert find(selected(min_box_px=20.0), cache).keys() == {bad}
    assert find(replace(index, boxes_ltrb=index.boxes_ltrb / 2), cache).keys() == {bad}
    assert opened == [2, IMAGES - 2]


def test_another_size_in_the_annotation_file_is_another_question(
    index: CocoIndex, cache: Path, opened: list[int]
):
    assert find(index, cache) == {}
    wrong = replace(index, sizes_px=index.sizes_px + np.arange(IMAGES)[:, None] // (IMAGES - 1))
    assert find(wrong, cache).keys() == {int(index.image_ids[-1])}
    assert opened == [IMAGES, 1]


def test_hosts_share_a_cache_though_their_copies_have_other_times(
    index: CocoIndex, cache: Path, opened: list[int]
):
    """As the two hosts' local disks would look under one path."""
    for _ in range(3):
        for changed in (1_600_000_000, 1_700_000_000):
            for image in range(IMAGES):
                os.utime(index.path(image), (changed, changed))
            assert find(index, cache) == {}
    assert opened == [IMAGES, IMAGES]


def test_outdated_entries_go_when_another_is_written(index: CocoIndex, cache: Path):
    find(index, cache)
    (first,) = entries(cache)
    cut(index, 1)
    find(index, cache)
    young = time.time() - OUTDATED_AFTER_S + 100
    os.utime(first, (young, young))
    cut(index, 2)
    find(index, cache)
    assert first in entries(cache)
    assert len(entries(cache)) == 3
    os.utime(first, (young - 200, young - 200))
    cut(index, 3)
    find(index, cache)
    assert first not in entries(cache)
    assert len(entries(cache)) == 3


def test_known_verdicts_are_read_from_a_cache_that_cannot_be_written(
    index: CocoIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    bad = cut(index, 1)
    find(index, cache)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(data.file_verdicts, "FileLock", forbidden)
    monkeypatch.setattr(Path, "mkdir", forbidden)
    assert find(index, cache).keys() == {bad}
    cut(index, 2)
    with pytest.raises(UserError, match=r"data\.cache=.*can't be used \(Permission denied\)"):
        find(index, cache)


def test_a_cache_that_cannot_be_written_names_the_key(index: CocoIndex, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=.*file.*give data\.cache=DIR"):
        find(index, tmp_path / "file")


def test_what_fails_while_inspecting_is_not_the_caches_fault(
    index: CocoIndex, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(data.file_verdicts, "inspect_all", failing)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        find(index, cache)
    monkeypatch.undo()
    assert find(index, cache) == {}
