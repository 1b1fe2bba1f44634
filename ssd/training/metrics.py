"""metrics.jsonl: one json object a record, in the order of steps, also after a resume."""

import json
import math
import os
from pathlib import Path
from typing import Any

from ssd.errors import UserError


class MetricsFile:
    """Appends records to a run's metrics.jsonl, each handed to the system when `write` returns."""

    def __init__(self, path: Path, first_step: int, cut_evaluation: bool = False) -> None:
        """Open the file to go on after `first_step` steps; records of later ones will come anew and are cut.

        cut_evaluation: that step's evaluation will come anew too. A last line that a killed process left half
        written goes as well. Raises UserError naming a line before that is no record.
        """
        content = path.read_bytes() if path.exists() else b""
        self._size = _bytes_kept(path, content, first_step, cut_evaluation)
        if self._size < len(content):
            temporary = path.with_name(path.name + ".tmp")
            temporary.write_bytes(content[: self._size])
            temporary.replace(path)
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""

    def write(self, record: dict[str, Any]) -> None:
        """Append one record, numbers that are none as null, and before it what could not be written so far.

        Raises OSError where the disk doesn't take it; nothing is lost then, and no half line stays.
        """
        self._unwritten += json.dumps(_strict(record), allow_nan=False).encode() + b"\n"
        self._file.truncate(self._size)
        written = self._file.write(self._unwritten)
        if written != len(self._unwritten):  # the disk took only a part
            self._file.truncate(self._size)
            raise OSError(f"{self._file.name}: {written} of {len(self._unwritten)} bytes were written")
        os.fsync(self._file.fileno())  # a checkpoint that outlives a power cut relies on it
        self._size += written
        self._unwritten = b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _strict(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }


def _bytes_kept(path: Path, content: bytes, first_step: int, cut_evaluation: bool) -> int:
    """Return where the records end that don't come anew."""
    kept = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            break
        try:
            anew = _comes_anew(json.loads(line), first_step, cut_evaluation)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: line {number} is no record of a step ({line[:40]!r}…); mend or remove it"
            ) from error
        if anew:
            break
        kept += len(line)
    return kept


def _comes_anew(record: dict[str, Any], first_step: int, cut_evaluation: bool) -> bool:
    step: int = record["step"]
    return step > first_step or (cut_evaluation and step == first_step and "AP" in record)
