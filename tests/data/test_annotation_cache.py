"""From the cache comes what parsing gives, whatever befell it; one process parses for all."""

import hashlib
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import data.annotation_cache
from data.annotation_cache import CLOCK_TICK_S, OUTDATED_AFTER_S, cache_folder, find_kept, open_annotations
from data.annotations import Annotations, read_annotations
from data.coco import CocoIndex, Selection, read_index
from data.coco_json import Source
from ssd.errors import UserError
from tests.data.coco_folder import CocoFolder, noise_folder, three_pictures

pytestmark = pytest.mark.unit

SELECTIONS = [
    Selection(),
    Selection(limit=1),
    Selection(limit=2, images_without_boxes=True),
    Selection(crowd_boxes=False, min_box_px=30),
    Selection("val", min_box_px=0.0, images_without_boxes=True),
]
LONG_AGO = 1_600_000_000


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    """A set whose annotation file has not changed for long, so that nobody waits for the clock."""
    data = three_pictures(tmp_path)
    data.annotations[1]["iscrowd"] = 1
    data.annotations[2]["bbox"] = [-3.3, 25, 50, 90]  # hangs over
    data.write()
    os.utime(data.annotation_file, (LONG_AGO, LONG_AGO))
    return data


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "below"


def source(folder: CocoFolder) -> Source:
    return Source(folder.annotation_file, folder.image_folder, "train")


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.v*"))


def test_what_is_kept_is_found_without_parsing(
    folder: CocoFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_kept(source(folder), cache) is None
    assert not cache.exists()
    opened = open_annotations(source(folder), cache)
    forbid_parsing(monkeypatch)
    kept = find_kept(source(folder), cache)
    assert kept is not None
    assert np.array_equal(kept.boxes_ltrb, opened.boxes_ltrb)
    folder.annotation_file.write_text(folder.annotation_file.read_text() + " ")
    assert find_kept(source(folder), cache) is None
    folder.annotation_file.unlink()
    with pytest.raises(UserError, match=r"data.train_annotations=.*No such file"):
        find_kept(source(folder), cache)


def forbid_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(_: Source) -> Annotations:
        raise AssertionError("the annotation file was parsed")

    monkeypatch.setattr(data.annotation_cache, "read_annotations", parse)


def assert_equal_indexes(ours: CocoIndex, expected: CocoIndex) -> None:
    assert ours.fingerprint() == expected.fingerprint()
    for field in fields(CocoIndex):
        ours_value, expected_value = getattr(ours, field.name), getattr(expected, field.name)
        if isinstance(expected_value, np.ndarray):
            assert ours_value.dtype == expected_value.dtype
            assert np.array_equal(ours_value, expected_value)
        elif field.name == "file_names":
            assert list(ours_value) == list(expected_value)
        else:
            assert ours_value == expected_value


@pytest.mark.parametrize("selection", SELECTIONS)
def test_cached_index_equals_a_parsed_one(folder: CocoFolder, cache: Path, selection: Selection) -> None:
    expected = read_index(folder.annotation_file, folder.image_folder, selection)
    for _ in ("first start", "second start"):
        ours = read_index(folder.annotation_file, folder.image_folder, selection, cache)
        assert_equal_indexes(ours, expected)


@pytest.mark.real_data
@pytest.mark.parametrize("selection", SELECTIONS)
def test_cached_index_of_real_photographs_equals_a_parsed_one(
    test_data: Path, cache: Path, selection: Selection
) -> None:
    file = test_data / "coco_mini" / "annotations" / "instances_train2017.json"
    expected = read_index(file, test_data, selection)
    for _ in ("first start", "second start"):
        assert_equal_indexes(read_index(file, test_data, selection, cache), expected)


def test_later_starts_do_not_parse(folder: CocoFolder, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_annotations(source(folder), cache)
    forbid_parsing(monkeypatch)
    assert open_annotations(source(folder), cache).labels.tolist() == [1, 2, 3]
    (folder.folder / "link.json").symlink_to(folder.annotation_file)
    linked = Source(folder.folder / "link.json", folder.image_folder, "train")
    assert open_annotations(linked, cache).labels.tolist() == [1, 2, 3]


def test_index_keeps_nothing_of_the_mapped_file(folder: CocoFolder, cache: Path) -> None:
    """The file may be deleted on a file server while a run of days goes on."""
    index = read_index(folder.annotation_file, folder.image_folder, None, cache)
    arrays = [value for value in vars(index).values() if isinstance(value, np.ndarray)]
    for array in [*arrays, index.file_names.utf8, index.file_names.starts]:
        while isinstance(array.base, np.ndarray):
            array = array.base
        assert array.base is None


def test_changed_file_is_parsed_anew(folder: CocoFolder, cache: Path) -> None:
    open_annotations(source(folder), cache)
    folder.categories.append({"id": 4, "name": "new"})
    folder.write()
    assert open_annotations(source(folder), cache).categories.names[-1] == "new"


def test_file_is_not_parsed_while_a_change_could_still_carry_the_same_time(
    folder: CocoFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ages = []

    def parse(place: Source) -> Annotations:
        ages.append(time.time() - place.annotation_file.stat().st_mtime)
        return read_annotations(place)

    monkeypatch.setattr(data.annotation_cache, "read_annotations", parse)
    folder.write()
    open_annotations(source(folder), cache)
    assert ages[0] >= CLOCK_TICK_S


def test_file_from_the_future_is_not_waited_for(folder: CocoFolder, cache: Path) -> None:
    """Clocks of file servers go wrong; a wait that long would not end."""
    os.utime(folder.annotation_file, (time.time() + 1e6,) * 2)
    assert open_annotations(source(folder), cache).labels.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-1], lambda text: text[:0], lambda text: b"x" * len(text)]
)
def test_damaged_entry_is_made_anew(
    folder: CocoFolder, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    open_annotations(source(folder), cache)
    (entry,) = entries(cache)
    sound = entry.read_bytes()
    entry.write_bytes(damage(sound))
    assert open_annotations(source(folder), cache).labels.tolist() == [1, 2, 3]
    assert entry.read_bytes() == sound


def test_what_a_killed_process_left_does_not_matter(folder: CocoFolder, cache: Path) -> None:
    open_annotations(source(folder), cache)
    (entry,) = entries(cache)
    entry.rename(f"{entry}.tmp")
    Path(f"{entry}.tmp").write_bytes(b"half")
    assert open_annotations(source(folder), cache).labels.tolist() == [1, 2, 3]
    assert entries(cache) == [entry]


def test_entries_of_a_changed_file_are_deleted_once_nobody_can_be_opening_them(
    folder: CocoFolder, cache: Path
) -> None:
    def change_and_open(age_of_entries: float) -> list[Path]:
        for entry in entries(cache):
            os.utime(entry, (time.time() - age_of_entries,) * 2)
        folder.categories.append({"id": len(folder.categories) + 100, "name": "new"})
        open_annotations(source(folder.write()), cache)
        return entries(cache)

    other = noise_folder(folder.folder / "other", 2)
    open_annotations(source(other), cache)
    (others_entry,) = entries(cache)
    open_annotations(source(folder), cache)
    assert len(change_and_open(OUTDATED_AFTER_S - 60)) == 3
    assert len(left := change_and_open(OUTDATED_AFTER_S + 60)) == 2
    assert others_entry in left


def test_refused_annotation_file_leaves_no_entry(folder: CocoFolder, cache: Path) -> None:
    folder.annotation_file.write_text("{")
    with pytest.raises(UserError, match="breaks off"):
        open_annotations(source(folder), cache)
    assert entries(cache) == []
    with pytest.raises(UserError, match=r"data.train_annotations=.*No such file"):
        open_annotations(Source(folder.folder / "none.json", folder.image_folder, "train"), cache)


def test_unusable_cache_folder_is_named_with_its_key(folder: CocoFolder) -> None:
    with pytest.raises(
        UserError, match=r"data.cache=.*/annotations.json/x: .*Not a directory.*data.cache=DIR"
    ):
        open_annotations(source(folder), folder.annotation_file / "x")


def test_disk_that_runs_full_is_an_error_that_names_the_key(
    folder: CocoFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"data.cache=.*No space left on device.*data.cache=DIR"):
        open_annotations(source(folder), cache)


def test_cache_lies_in_the_users_cache_folder_unless_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_folder("x/y") == Path("x/y")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "ssd-trainer"
    monkeypatch.setenv("HOME", "/home/somebody")
    for ignored in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_folder(None) == Path("/home/somebody/.cache/ssd-trainer")


def test_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(UserError, match=r"data.cache=null: .*give data.cache=DIR"):
        cache_folder(None)


def test_format_is_counted_up_when_entries_change(folder: CocoFolder, cache: Path) -> None:
    """Where this fails, entries made before would be read as if they were of today: count FORMAT up."""
    open_annotations(source(folder), cache)
    (entry,) = entries(cache)
    digest = hashlib.sha256(entry.read_bytes()).hexdigest()[:16]
    assert (data.annotation_cache.FORMAT, digest) == (1, "12fe0e08bcd45495")


def open_and_note(
    folder: Path, cache: Path, parsed: Path, results: "multiprocessing.Queue[list[int]]"
) -> None:
    """Open annotations in a process of its own; write a line into `parsed` where they are parsed."""

    def parse_slowly(place: Source) -> Annotations:
        with parsed.open("a") as file:
            file.write("parsed\n")
        time.sleep(1.0)
        return read_annotations(place)

    data.annotation_cache.read_annotations = parse_slowly
    place = Source(folder / "annotations.json", folder / "pictures", "train")
    results.put(open_annotations(place, cache).labels.tolist())


def test_of_several_processes_one_parses_and_the_others_wait(folder: CocoFolder, cache: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[list[int]] = spawn.Queue()
    parsed = folder.folder / "parsed"
    processes = [
        spawn.Process(target=open_and_note, args=(folder.folder, cache, parsed, results)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [[1, 2, 3]] * 3
    for process in processes:
        process.join()
    assert parsed.read_text() == "parsed\n"
