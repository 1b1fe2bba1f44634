"""Category names: a classes file holds one a line, in the order of their ids."""

from collections.abc import Sequence
from pathlib import Path

from data.convert.text import read_lines
from ssd.errors import UserError

CLASSES_FILE = "classes.txt"
"""Where the writers put them, and the readers look first."""


def read_names(file: Path) -> tuple[str, ...]:
    """Return the names of a classes file; the first line's index is 0. Raises UserError."""
    lines = read_lines(file)
    while lines and not lines[-1]:
        lines.pop()
    return check_names(lines, file)


def check_names(names: Sequence[str], place: object) -> tuple[str, ...]:
    """Return the names, unchanged: at least one, none twice, each fit to be one line of a classes file.

    place: where they stand, for the error. Raises UserError.
    """
    if not names:
        raise UserError(f"{place}: no category name; write one a line into a file and give --classes FILE")
    for index, name in enumerate(names):
        if not name or name != name.strip() or not name.isprintable():
            raise UserError(
                f"{place}: name {index}, {name!r}, is blank, or has a space at an end or a character "
                "that cannot be printed; rename it"
            )
    if len(set(names)) < len(names):
        first, second = next(
            (names.index(name), index) for index, name in enumerate(names) if names.index(name) < index
        )
        raise UserError(f"{place}: names {first} and {second} are both {names[first]!r}; rename one")
    return tuple(names)
