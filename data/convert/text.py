"""Text files that people and tools wrote → lines and numbers, or an error that says what is wrong."""

import math
from pathlib import Path

from ssd.errors import UserError


def read_lines(file: Path) -> list[str]:
    """Return the lines of a text file, bare of white space at both ends; a byte-order mark is skipped.

    Raises UserError.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); make it a readable file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: byte {error.start} is no UTF-8 text; save it as UTF-8") from error


def number(text: str, what: str) -> float:
    """Return a finite number, or raise UserError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{what} {text!r} is no number; correct it")
    return value


def whole_number(text: str, what: str) -> int:
    """Return a whole number, written 3 or 3.0, or raise UserError."""
    value = number(text, what)
    if not value.is_integer():
        raise UserError(f"{what} {text!r} is no whole number; correct it")
    return int(value)
