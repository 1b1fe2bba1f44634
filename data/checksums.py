"""The sha256 of each file of a folder, kept beside it as FOLDER.sha256 in the format of sha256sum."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ssd.errors import UserError

Report = Callable[[int, int], None]

READERS = 8
"""Files read at once: a file server answers each after a while, however many are asked for."""


def checksum_file(folder: Path) -> Path:
    """Return where the checksums of a folder's files are kept; `sha256sum -c` beside the folder reads it."""
    return folder.with_name(f"{folder.name}.sha256")


def write_checksums(folder: Path, sums: Mapping[str, str]) -> None:
    """Keep the sha256 of a folder's files, by file name, whole or not at all."""
    path = checksum_file(folder)
    partial = path.with_name(f"{path.name}.part")
    partial.write_text("".join(f"{sha256}  {folder.name}/{name}\n" for name, sha256 in sums.items()))
    partial.replace(path)


def read_checksums(folder: Path) -> dict[str, str] | None:
    """Return sha256 by file name, None where none are kept. Raises UserError for a file not of ours."""
    path = checksum_file(folder)
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}); move it away and run again") from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        entry = re.fullmatch(rf"([0-9a-f]{{64}})  {re.escape(folder.name)}/([^/]+)", line)
        if not entry:
            reason = f"line {number} is not 'SHA256  {folder.name}/NAME'"
            raise UserError(f"{path}: {reason}; move it and {folder} away and run again")
        sums[entry[2]] = entry[1]
    return sums


def missing_files(folder: Path, sums: Mapping[str, str]) -> list[str]:
    """Return the names that the folder does not hold: one listing, no file is opened."""
    present = set(os.listdir(folder))
    return [name for name in sums if name not in present]


def changed_files(folder: Path, sums: Mapping[str, str], report: Report) -> list[str]:
    """Read all files anew; return the names of those that are not what they were.

    `report` gets the files read and the files in all.
    """
    changed = []
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(sha256_of, (folder / name for name in sums))
        for read, (name, sha256) in enumerate(zip(sums, found, strict=True), 1):
            if sha256 != sums[name]:
                changed.append(name)
            report(read, len(sums))
    return changed


def sha256_of(path: Path) -> str | None:
    """Return a file's sha256 in lower-case hex, None where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
