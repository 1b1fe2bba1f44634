"""The index is what a literal reading gives, from the cache too, whatever befell that; one process parses."""

import hashlib
import os
import time
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import data.index
from data.index import (
    FORMAT,
    OUTDATED_AFTER_S,
    Selection,
    Source,
    cache_folder,
    open_annotations,
    read_index,
)
from ssd.annotations import Annotations, read_annotations
from ssd.categories import Categories
from ssd.errors import UserError
from tests.data.coco_folder import EVERY_VAL_IMAGE, CocoFolder, index_of, noise_folder, three_pictures

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path: Path) -> CocoFolder:
    return three_pictures(tmp_path).write()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "below"


def test_index_holds_what_the_file_says(folder: CocoFolder) -> None:
    index = index_of(folder)
    assert index.categories == Categories(ids=(7, 90, 3), names=("bird", "bus", "cup"))
    assert index.image_ids.tolist() == [30, 20]
    names = ("b.png", "sub/deep/a.png")
    assert [index.path(image) for image in range(2)] == [str(folder.image_folder / name) for name in names]
    assert index.sizes_px.tolist() == [[200, 100], [200, 100]]
    assert index.box_starts.tolist() == [0, 2, 3]
    expected = np.array([[0.1, 0.1, 0.6, 0.6], [0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5]], np.float32)
    assert np.array_equal(index.boxes_ltrb, expected)
    assert index.labels.tolist() == [1, 2, 3]
    assert (index.boxes_ltrb.dtype, index.labels.dtype) == (np.float32, np.int32)
    assert index.dropped["images without boxes"] == 1
    assert len(index) == 2


def test_file_that_lists_images_alone_can_be_evaluated_on(folder: CocoFolder) -> None:
    folder.annotations = []
    assert index_of(folder, EVERY_VAL_IMAGE).box_starts.tolist() == [0, 0, 0, 0]
    with pytest.raises(UserError, match="no image with a box is left; not used: 3 images without boxes"):
        index_of(folder)


@pytest.mark.parametrize(
    ("box_ltwh_px", "expected"),
    [
        ((-20, 10, 60, 50), [0, 0.1, 0.2, 0.6]),
        ((180, 90, 100, 100), [0.9, 0.9, 1, 1]),
        ((-5, -5, 500, 500), [0, 0, 1, 1]),
        ((15.4, 50, 1, 1), [0.077, 0.5, 0.082, 0.51]),  # 15.4 + 1 - 15.4 < 1 in floating point
        ((20, 10, 0.99, 50), "boxes under 1 px"),
        ((20, 10, 50, 0), "boxes under 1 px"),
        ((20, 10, -50, 50), "boxes under 1 px"),
        ((-20, 10, 20.5, 50), "boxes with under 1 px inside the image"),
        ((300, 10, 20, 50), "boxes with under 1 px inside the image"),
        ((1e308, 10, 1e308, 50), "boxes with under 1 px inside the image"),
    ],
)
def test_boxes_are_clipped_to_the_image_or_dropped_and_counted(
    folder: CocoFolder, box_ltwh_px: tuple[float, ...], expected: list[float] | str
) -> None:
    folder.annotations[2]["bbox"] = box_ltwh_px
    index = index_of(folder)
    if isinstance(expected, str):
        assert index.labels.tolist() == [1, 2]
        assert index.dropped == dict.fromkeys(index.dropped, 0) | {"images without boxes": 2, expected: 1}
    else:
        np.testing.assert_allclose(index.boxes_of(1)[0], [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("selection", "used", "dropped"),
    [
        (Selection(), ([30, 20], [1, 2, 3]), {"images without boxes": 1}),
        (EVERY_VAL_IMAGE, ([30, 10, 20], [1, 2, 3]), {}),
        (Selection(crowd_boxes=False), ([30, 20], [2, 3]), {"images without boxes": 1, "crowd boxes": 1}),
        (Selection(min_box_px=30), ([30], [1, 2]), {"images without boxes": 2, "boxes under 30 px": 1}),
        (Selection(limit=2), ([30], [1, 2]), {"images beyond data.limit": 1, "images without boxes": 1}),
        (replace(EVERY_VAL_IMAGE, limit=2), ([30, 10], [1, 2]), {"images beyond data.limit": 1}),
    ],
)
def test_selection_says_what_is_used_and_a_cached_file_gives_the_same(
    folder: CocoFolder, cache: Path, selection: Selection, used: object, dropped: dict[str, int]
) -> None:
    folder.annotations[0]["iscrowd"] = 1
    index = index_of(folder, selection)
    assert (index.image_ids.tolist(), index.labels.tolist()) == used
    assert index.dropped == dict.fromkeys(index.dropped, 0) | dropped
    for _ in ("first start", "second start"):
        cached = read_index(folder.annotation_file, folder.image_folder, selection, cache)
        assert cached.fingerprint() == index.fingerprint()
        assert (cached.source, cached.dropped) == (index.source, index.dropped)


CHANGES: list[Callable[[CocoFolder], None]] = [
    lambda data: data.annotations[0].update(bbox=[20, 10, 100, 51]),
    lambda data: data.annotations[0].update(category_id=3),
    lambda data: data.annotations[1].update(image_id=20),
    lambda data: data.categories[0].update(name="Bird"),
    lambda data: data.images.reverse(),
    lambda data: data.images[0].update(file_name="sub/other.png"),
    lambda data: data.images[0].update(width=201),
]


def test_fingerprint_tells_what_training_depends_on(folder: CocoFolder) -> None:
    fingerprints = [index_of(folder).fingerprint()]
    for change in CHANGES:
        change(folder)
        fingerprints.append(index_of(folder).fingerprint())
    assert len({*fingerprints}) == len(fingerprints)


def test_fingerprint_is_that_of_earlier_versions_wherever_the_data_lies(folder: CocoFolder) -> None:
    """Else their checkpoints could not be resumed."""
    folder.annotations[0]["area"] = 5  # nothing that training reads
    expected = "4e4e12a4dd301eb60f548e1433923c4eff097c75366948485f9d9705e1a6b6d5"
    assert index_of(folder).fingerprint() == expected


# ---- the cache


def source(folder: CocoFolder) -> Source:
    return Source(folder.annotation_file, folder.image_folder, "train")


def labels(folder: CocoFolder, cache: Path) -> list[int]:
    return open_annotations(source(folder), cache).labels.tolist()


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.npz"))


def same(one: Annotations, other: Annotations) -> bool:
    return all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Collect the files that are parsed, which takes a while."""
    files = []

    def parse_slowly(path: Path, key: str) -> Annotations:
        files.append(path)
        time.sleep(0.2)
        return read_annotations(path, key)

    monkeypatch.setattr(data.index, "read_annotations", parse_slowly)
    return files


def test_later_starts_do_not_parse(folder: CocoFolder, cache: Path, parsed: list[Path]) -> None:
    folder.categories[0]["name"] = "Vögel\0"
    folder.images[1]["file_name"] = "sub/é.png"
    opened = open_annotations(source(folder.write()), cache)
    link = folder.folder / "link.json"
    link.symlink_to(folder.annotation_file)
    for file in (folder.annotation_file, link):
        assert same(open_annotations(replace(source(folder), annotation_file=file), cache), opened)
    assert len(parsed) == 1


def test_file_that_changed_or_has_gone_has_no_entry(folder: CocoFolder, cache: Path) -> None:
    open_annotations(source(folder), cache)
    folder.categories.append({"id": 4, "name": "new"})
    folder.write()
    assert open_annotations(source(folder), cache).categories.names[-1] == "new"
    time.sleep(0.05)  # two changes within a tick of the file system's clock carry the same time
    times, text = folder.annotation_file.stat(), folder.annotation_file.read_text()
    folder.annotation_file.write_text(text.replace('"new"', '"old"'))  # as long, and as old:
    os.utime(folder.annotation_file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert open_annotations(source(folder), cache).categories.names[-1] == "old"
    folder.annotation_file.write_text("{")
    with pytest.raises(UserError, match="truncated"):
        open_annotations(source(folder), cache)
    assert len(entries(cache)) == 3
    folder.annotation_file.unlink()
    with pytest.raises(UserError, match=r"data.train_annotations=.*No such file"):
        open_annotations(source(folder), cache)


def test_old_entries_of_a_changed_file_are_deleted(folder: CocoFolder, cache: Path) -> None:
    open_annotations(source(noise_folder(folder.folder / "other", 2)), cache)
    (others_entry,) = entries(cache)
    open_annotations(source(folder), cache)
    for age, left in ((OUTDATED_AFTER_S - 60, 3), (OUTDATED_AFTER_S + 60, 2)):
        for entry in entries(cache):
            os.utime(entry, (time.time() - age,) * 2)
        folder.categories.append({"id": len(folder.categories) + 100, "name": "new"})
        open_annotations(source(folder.write()), cache)
        assert len(entries(cache)) == left
    assert others_entry in entries(cache)


def test_unusable_cache_is_named_with_its_key(
    folder: CocoFolder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"data.cache=.*/annotations.json/x: .*Not a directory.*=DIR"):
        open_annotations(source(folder), folder.annotation_file / "x")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.savez", full)
    with pytest.raises(UserError, match=r"data.cache=.*No space left on device.*data.cache=DIR"):
        open_annotations(source(folder), cache)
    assert entries(cache) == []


def test_cache_lies_in_the_users_cache_folder_unless_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_folder("x/y") == Path("x/y")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(None) == tmp_path / "ssd-trainer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder(None) == Path("/home/somebody/.cache/ssd-trainer")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as where there is no home
    with pytest.raises(UserError, match=r"data.cache=null: .*give data.cache=DIR"):
        cache_folder(None)


def test_format_is_counted_up_when_entries_change(folder: CocoFolder, cache: Path) -> None:
    """Where this fails, entries made before would be read as if they were of today: count FORMAT up."""
    open_annotations(source(folder), cache)
    (entry,) = entries(cache)
    with zipfile.ZipFile(entry) as archive:
        digest = hashlib.sha256(repr([(file.filename, file.CRC) for file in archive.filelist]).encode())
    assert (FORMAT, digest.hexdigest()[:16]) == (3, "3f75b3546eb2bfca")


def test_an_entry_damaged_anywhere_is_replaced(folder: CocoFolder, cache: Path) -> None:
    expected = open_annotations(source(folder), cache)
    (entry,) = entries(cache)
    entry.with_suffix(".tmp").write_bytes(b"")  # a killed process left it
    sound = entry.read_bytes()
    for place in range(0, len(sound), 53):
        for damaged in (sound[:place] + bytes([sound[place] ^ 0x40]) + sound[place + 1 :], sound[:place]):
            entry.write_bytes(damaged)
            assert same(open_annotations(source(folder), cache), expected), place
        assert entry.read_bytes() == sound
    assert entries(cache) == [entry]


def test_of_several_processes_one_parses_and_the_others_wait(
    folder: CocoFolder, cache: Path, parsed: list[Path]
) -> None:
    """Threads are as good: each call opens the lock file for itself, which is what the system locks by."""
    with ThreadPoolExecutor() as threads:
        found = [threads.submit(labels, folder, cache) for _ in range(4)]
        assert [each.result() for each in found] == [[1, 2, 3]] * 4
    assert len(parsed) == 1
