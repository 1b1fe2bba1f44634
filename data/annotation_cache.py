"""Annotation files parsed once: the first process of all ranks parses and checks, the others wait and map.

An entry belongs to one state of one file (its path, size and time of change) and to one FORMAT. It is never
changed, only replaced as a whole, so reading takes no lock.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from data.annotations import Annotations, read_annotations
from data.array_file import Arrays, map_arrays, write_arrays
from data.coco_json import Source
from data.file_names import FileNames
from ssd.categories import Categories
from ssd.errors import UserError

FORMAT = 1
"""Of the entries. Count it up whenever other arrays, or other values, follow from the same file."""

CLOCK_TICK_S = 0.05
"""Two changes of a file within a tick of the file system's clock carry the same time."""

OUTDATED_AFTER_S = 3600.0
"""An older entry of a file that has changed is deleted. A younger one may be in use: machines that share a
cache, but not the annotation file, each have one of their own."""


_ARRAYS = ("image_ids", "sizes_px", "box_starts", "boxes_ltrb", "labels", "crowd", "shorter_sides_px")
"""Fields of Annotations that are stored as they are."""


def cache_folder(given: str | None) -> Path:
    """Return data.cache as given; where it is null, ssd-trainer in the user's cache folder.

    Raises UserError where the user has no home.
    """
    if given is not None:
        return Path(given)
    user_folder = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(user_folder):  # others are to be ignored, says the XDG specification
        return Path(user_folder, "ssd-trainer")
    try:
        return Path.home() / ".cache" / "ssd-trainer"
    except RuntimeError as error:
        raise UserError(
            "data.cache=null: there is no home folder to keep parsed annotation files in; give data.cache=DIR"
        ) from error


def open_annotations(source: Source, folder: Path) -> Annotations:
    """Return data.annotations.read_annotations(source) in mapped memory; parse the file where no entry is.

    Raises UserError as read_annotations does, UserError where the folder cannot be used.
    """
    place = _place(source, folder)
    with _naming(folder):
        annotations = _map(place.entry)
        if annotations is None:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / f"{place.name}.lock"):
                annotations = _map(place.entry)  # another process may have been first
                if annotations is None:
                    annotations = _build(place.entry, source, place.changed)
                    _delete_outdated(folder.glob(f"{place.name}-*"), place.entry)
    return annotations


def find_kept(source: Source, folder: Path) -> Annotations | None:
    """Return what open_annotations would map, None where it would parse the file.

    Raises UserError for an annotation file, UserError for a folder that cannot be read.
    """
    with _naming(folder):
        return _map(_place(source, folder).entry)


@dataclass(frozen=True)
class _Place:
    """Where the entry of an annotation file as it is now belongs: name is the file's, whatever its state."""

    name: str
    entry: Path
    changed: float


def _place(source: Source, folder: Path) -> _Place:
    path = os.path.realpath(source.annotation_file)
    try:
        state = os.stat(path)
    except OSError as error:
        raise source.unreadable(error) from error
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:32]
    entry = folder / f"{name}-{state.st_size}-{state.st_mtime_ns}.v{FORMAT}"
    return _Place(name, entry, state.st_mtime)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Raise UserError for what the system refuses in the cache folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.cache={folder}: parsed annotation files cannot be kept there ({error.strerror or error}); "
            "name a folder that can be written to with data.cache=DIR"
        ) from error


def _build(entry: Path, source: Source, changed: float) -> Annotations:
    """Parse the annotation file, last changed at that time, into the entry."""
    time.sleep(min(max(changed + CLOCK_TICK_S - time.time(), 0), CLOCK_TICK_S))
    annotations = read_annotations(source)
    about = {"category_ids": annotations.categories.ids, "category_names": annotations.categories.names}
    arrays: Arrays = {name: getattr(annotations, name) for name in _ARRAYS}
    arrays["file_name_bytes"] = annotations.file_names.utf8
    arrays["file_name_starts"] = annotations.file_names.starts
    write_arrays(entry, about, arrays)
    del annotations, arrays  # all ranks use the mapped ones, so that all share them
    built = _map(entry)
    if built is None:
        raise OSError("an entry reads back other than it was written")
    return built


def _map(entry: Path) -> Annotations | None:
    """Return what an entry holds; None where there is none or it is damaged."""
    content = map_arrays(entry)
    if content is None:
        return None
    about, arrays = content
    return Annotations(
        categories=Categories(tuple(about["category_ids"]), tuple(about["category_names"])),
        file_names=FileNames(arrays["file_name_bytes"], arrays["file_name_starts"]),
        **{name: arrays[name] for name in _ARRAYS},
    )


def _delete_outdated(entries: Iterable[Path], current: Path) -> None:
    oldest = time.time() - OUTDATED_AFTER_S
    for entry in entries:
        if entry != current and entry.stat().st_mtime < oldest:
            entry.unlink()
