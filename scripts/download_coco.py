"""Download COCO 2017 into the layout that data.path= takes: python scripts/download_coco.py DIR.

One after the other DIR/train2017, DIR/val2017 and DIR/annotations are fetched, checked against the published
size and sha256, unpacked beside and moved into place whole. Run again, it goes on where it was stopped and
leaves alone what is there. DIR/FOLDER.sha256 has the sha256 of the files of FOLDER, against which --verify
reads them anew, as `sha256sum -c` does.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from data.archive import unpack
from data.checksums import (
    changed_files,
    checksum_file,
    missing_files,
    read_checksums,
    sha256_of,
    write_checksums,
)
from data.coco2017 import COCO_2017, SOURCE, Published, disk_needed
from ssd.download import download
from ssd.errors import UserError

NAMED_FILES = 5
"""Damaged files that an error lists."""

CONSOLE = Console(highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Download or verify; the exit status is 0 where all that was asked for is there and whole."""
    options = _options(arguments)
    parts = [part for part in COCO_2017 if part.folder in options.parts]
    try:
        if options.verify:
            verify(options.folder, parts)
        else:
            install(options.folder, parts, options.source, options.keep_archives)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except OSError as error:
        place = error.filename or options.folder  # the system names none for a full disk
        raise SystemExit(f"error: {place}: {error.strerror}; mend that and run again") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from here") from None


def install(folder: Path, parts: Sequence[Published], source: str, keep_archives: bool) -> None:
    """Fetch and unpack the parts that the folder does not hold yet.

    Raises UserError where a part in place lacks files or the disk is too small, and as download and
    unpack do.
    """
    with _alone(folder):
        missing = []
        for part in parts:
            shutil.rmtree(_unpacking(folder, part), ignore_errors=True)  # of a run that was stopped
            if _is_there(folder, part):
                _say(f"{part.folder}: there, {part.files:,} files")
            else:
                missing.append(part)
        if missing:
            _check_disk(folder, missing, keep_archives)
        for part in missing:
            archive = _fetch(folder, part, source)
            _unpack(folder, part, archive)
            if not keep_archives:
                archive.unlink()
    _say(f"ready: data.path={folder}")


def verify(folder: Path, parts: Sequence[Published]) -> None:
    """Read anew the parts' files, and their archives where kept; raise UserError unless all are whole."""
    damaged = []
    for part in parts:
        place = folder / part.folder
        if not _is_there(folder, part):
            raise UserError(f"{place} is not there; run without --verify to download it")
        sums = read_checksums(place)
        if sums is None:
            reason = f"there is no {checksum_file(place).name} to compare it with"
            raise UserError(f"{place}: {reason}; move it away and run without --verify to have it anew")
        with _progress(f"{part.folder}: reading", in_bytes=False) as report:
            damaged += [f"{part.folder}/{name}" for name in changed_files(place, sums, report)]
        archive = folder / part.archive
        if archive.is_file() and not _is_published(archive, part):
            damaged.append(part.archive)
    if damaged:
        named = ", ".join(damaged[:NAMED_FILES])
        mend = "delete the folders and archives they are of and run without --verify to have them anew"
        raise UserError(f"{folder}: not what was unpacked: {len(damaged)} files, such as {named}; {mend}")
    _say(f"whole: {', '.join(part.folder for part in parts)}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    whole = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=whole)
    folders = [part.folder for part in COCO_2017]
    parser.add_argument("folder", metavar="DIR", type=Path, help="where to; made if it is not there")
    parser.add_argument(
        "--parts", type=_parts, default=folders, help=f"comma-separated, of {','.join(folders)} (all)"
    )
    parser.add_argument("--verify", action="store_true", help="download nothing, read anew what is there")
    parser.add_argument(
        "--keep-archives", action="store_true", help="do not delete the archives once unpacked"
    )
    parser.add_argument("--source", default=SOURCE, help="a mirror's URL, http, https or file (%(default)s)")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    for part in parts:
        if part not in [published.folder for published in COCO_2017]:
            raise argparse.ArgumentTypeError(f"no part is named {part!r}")
    return parts


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs of this script out of the folder; wait while one is at work there."""
    lock = FileLock(folder / ".download_coco.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _say(f"another run is at work in {folder}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); mend that and run again") from error
    try:
        yield
    finally:
        lock.release()


def _is_there(folder: Path, part: Published) -> bool:
    """Tell whether a part is in place; raise UserError where it is, but lacks files."""
    place = folder / part.folder
    if not place.is_dir():
        return False
    sums = read_checksums(place)
    lacking = part.files - len(os.listdir(place)) if sums is None else len(missing_files(place, sums))
    if lacking > 0:
        raise UserError(f"{place} lacks {lacking} of {part.files} files; move it away and run again")
    return True


def _check_disk(folder: Path, parts: Sequence[Published], keep_archives: bool) -> None:
    """Say how much disk is needed and free; raise UserError where that is not enough."""
    present = []
    for part in parts:
        archive = folder / part.archive
        partial = archive.with_name(f"{archive.name}.part")
        here = sum(path.stat().st_size for path in (archive, partial) if path.exists())
        present.append((part, min(part.size, here)))
    needed, free = disk_needed(present, keep_archives), shutil.disk_usage(folder).free
    figures = f"{_gigabytes(needed)} of disk needed, {_gigabytes(free)} free"
    _say(f"{', '.join(part.folder for part in parts)}: {figures}")
    if needed > free:
        mend = "free the rest, name a folder on another disk, or take fewer parts with --parts"
        raise UserError(f"{folder}: {figures}; {mend}")


def _fetch(folder: Path, part: Published, source: str) -> Path:
    """Return the part's archive, fetched or found, which is what was published."""
    archive = folder / part.archive
    if archive.is_file():
        if not _is_published(archive, part):
            raise UserError(f"{archive} is not the published archive; delete it and run again")
        return archive
    with _progress(f"{part.archive}: fetching") as report:
        url = f"{source.rstrip('/')}/{part.path}"
        download(url, archive, sha256=part.sha256, size=part.size, report=report)
    return archive


def _unpack(folder: Path, part: Published, archive: Path) -> None:
    place, unpacking = folder / part.folder, _unpacking(folder, part)
    unpacking.mkdir()
    with _progress(f"{part.archive}: unpacking") as report:
        sums = unpack(archive, part.folder, unpacking, part.limits, report)
    # In this order, and all of it on the disk first: the folder's name stands for files that are whole.
    write_checksums(place, sums)
    os.sync()
    unpacking.rename(place)


def _unpacking(folder: Path, part: Published) -> Path:
    return folder / f".{part.folder}.unpacking"


def _is_published(archive: Path, part: Published) -> bool:
    _say(f"{archive.name}: there, checking its sha256")
    return archive.stat().st_size == part.size and sha256_of(archive) == part.sha256


@contextmanager
def _progress(title: str, in_bytes: bool = True) -> Iterator[Callable[[int, int | None], None]]:
    """Show how far a stage is: a bar in a terminal, elsewhere a line where it begins."""
    live = CONSOLE.is_terminal
    if not live:
        _say(title)
    figures = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else ()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *figures, TimeRemainingColumn())
    with Progress(*columns, console=CONSOLE, disable=not live) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _say(text: str) -> None:
    CONSOLE.print(text, markup=False)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


if __name__ == "__main__":
    main()
