"""Which image files of a data set are bad: each file is looked into once in each of its states.

A verdict depends on the file's path, size and time of change and on the width and height that the annotation
file tells, so other boxes, names, limits or selections of the same files throw none away. Machines may share
a cache folder, though their copies of the files were written at other times: every entry is read, and each
holds the states that one data set had on one machine.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from data.array_file import map_arrays, write_arrays
from data.coco import CocoIndex
from data.image_files import ImageDefect, Level, inspect_all, look_up
from ssd.console import RunConsole
from ssd.errors import UserError

FORMAT = 1
"""Of the entries. Count it up whenever the same files are judged otherwise."""

OUTDATED_AFTER_S = 30 * 24 * 3600.0
"""An older entry is deleted when another is written: a machine that still needs it looks once more."""

_NO_FILE = 0  # in place of a state
_CHUNK = 65_536  # paths in memory at a time


@dataclass(frozen=True)
class _Verdicts:
    """states: uint64, those of the files looked into. bad: why, by the states of the bad ones."""

    states: NDArray[np.uint64]
    bad: dict[int, str]


def find_bad_files(
    index: CocoIndex, level: Level, threads: int, cache: Path, console: RunConsole
) -> dict[int, str]:
    """Return why, by the bad images' ids; open only the files whose state nobody has looked into.

    Of several processes with files to open one does it, the others wait and find its verdicts. Where all are
    known the cache folder may be read-only.
    Raises UserError where the folder can't be used.
    """
    states, reasons = _look_up_states(index, threads)
    store = _Store.of(cache, index.source.image_folder, level)
    known = store.read()
    if len(_unknown(states, known)):
        with store.alone():
            known = store.read()
            new = _unknown(states, known)
            if len(new):
                found = _inspect(index, new, level, threads, console)
                bad = known.bad | {int(states[image]): why for image, why in found.items()}
                known = _Verdicts(np.unique(states[states != _NO_FILE]), bad)
                store.write(known)
    for image in np.flatnonzero(np.isin(states, np.array([*known.bad], dtype=np.uint64))).tolist():
        reasons[image] = known.bad[int(states[image])]
    return {
        int(index.image_ids[image]): f"{index.path(image)}: {reasons[image]}" for image in sorted(reasons)
    }


def _look_up_states(index: CocoIndex, threads: int) -> tuple[NDArray[np.uint64], dict[int, str]]:
    """Return each file's state, or _NO_FILE, and by the image's place why it is no file to be looked into."""
    states = np.full(len(index), _NO_FILE, dtype=np.uint64)
    reasons = {}
    for start in range(0, len(index), _CHUNK):
        places = range(start, min(start + _CHUNK, len(index)))
        looked_up = look_up([index.path(image) for image in places], threads)
        sizes_px = index.sizes_px[places.start : places.stop].tolist()
        for image, found, (width, height) in zip(places, looked_up, sizes_px, strict=True):
            if isinstance(found, ImageDefect):  # not kept: it may be a matter of permissions, or of a mount
                reasons[image] = found.detail
            else:
                about = f"{index.file_names[image]} {width} {height} {found[0]} {found[1]}"
                digest = hashlib.blake2b(about.encode(), digest_size=8).digest()
                states[image] = int.from_bytes(digest, "little")
    return states, reasons


def _unknown(states: NDArray[np.uint64], known: _Verdicts) -> NDArray[np.int64]:
    """Return the places of the files that have to be looked into."""
    return np.flatnonzero((states != _NO_FILE) & ~np.isin(states, known.states))


def _inspect(
    index: CocoIndex, places: NDArray[np.int64], level: Level, threads: int, console: RunConsole
) -> dict[int, str]:
    paths = [index.path(image) for image in places.tolist()]
    title = f"checking {len(paths)} image files of {index.source.image_folder} (data.check={level.value})"
    with console.counting(len(paths), title) as report:
        found = inspect_all(paths, index.sizes_px[places], level, threads, report)
    return {int(places[number]): defect.detail for number, defect in found.items()}


@dataclass(frozen=True)
class _Store:
    """The entries in the cache folder about one image folder at one level; `name` begins theirs."""

    cache: Path
    name: str

    @staticmethod
    def of(cache: Path, image_folder: Path, level: Level) -> "_Store":
        place = f"{image_folder.resolve()} {level.value}"
        return _Store(cache, f"files-{hashlib.sha256(place.encode()).hexdigest()[:32]}")

    def read(self) -> _Verdicts:
        """Return what all entries know; a damaged one knows nothing."""
        states: list[NDArray[np.uint64]] = [np.empty(0, dtype=np.uint64)]
        bad: dict[int, str] = {}
        with self._naming_the_key():
            for about, arrays in filter(None, map(map_arrays, self._entries())):
                states.append(arrays["states"])
                bad |= {int(state): why for state, why in about["bad"].items()}
        return _Verdicts(np.concatenate(states), bad)

    def write(self, verdicts: _Verdicts) -> None:
        """Keep a data set's verdicts as an entry, and delete outdated ones."""
        entry = self.cache / f"{self.name}-{hashlib.sha256(verdicts.states.data).hexdigest()[:32]}.v{FORMAT}"
        own = set(verdicts.states.tolist())
        bad = {str(state): why for state, why in verdicts.bad.items() if state in own}
        oldest = time.time() - OUTDATED_AFTER_S
        with self._naming_the_key():
            write_arrays(entry, {"bad": bad}, {"states": verdicts.states})
            for other in self._entries():
                if other.stat().st_mtime < oldest:
                    other.unlink()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from doing the same work; wait for the one that does it."""
        with self._naming_the_key():
            self.cache.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.cache / f"{self.name}.lock").acquire()
        with held:
            yield

    def _entries(self) -> list[Path]:
        return [*self.cache.glob(f"{self.name}-*.v{FORMAT}")]

    @contextmanager
    def _naming_the_key(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"data.cache={self.cache}: can't be used ({reason}); give data.cache=DIR"
            ) from error
