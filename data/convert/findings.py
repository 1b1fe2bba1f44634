"""What a conversion meets: problems that end it, told all at once, and what it did that one should know."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ssd.errors import UserError

NAMED_PROBLEMS = 20
"""Problems that the error lists."""


@dataclass
class _Count:
    """How often something was done, where first, and by how many pixels at most."""

    first: str
    times: int = 0
    most_px: float = 0.0


class Findings:
    """Collects while everything is read; nothing is written before stop_at_problems() has passed."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._remarks: list[str] = []
        self._counts: dict[str, _Count] = {}

    @contextmanager
    def collect(self, place: object) -> Iterator[None]:
        """Keep a UserError of the block as a problem of that place, and go on after the block."""
        try:
            yield
        except UserError as error:
            self._problems.append(f"{place}: {error}")

    def remark(self, line: str) -> None:
        """Say this once."""
        self._remarks.append(line)

    def count(self, what: str, place: object, pixels: float = 0.0) -> None:
        """Say how often this was done, where first, and by how many pixels at most."""
        count = self._counts.setdefault(what, _Count(str(place)))
        count.times += 1
        count.most_px = max(count.most_px, pixels)

    def count_cut(self, place: object, pixels: float) -> None:
        """Count a box that was cut at an edge of its picture, if it was."""
        if pixels:
            self.count("boxes hung over an edge of their picture and were cut there", place, pixels)

    def stop_at_problems(self, source: Path) -> None:
        """Raise one UserError that lists the problems met so far, if there are any."""
        if not self._problems:
            return
        if len(self._problems) == 1:
            raise UserError(self._problems[0])
        raise UserError(
            f"{source}: {len(self._problems)} problems, nothing was written:\n{_listed(self._problems)}"
        )

    def lines(self) -> list[str]:
        """Return the remarks and the counts, a line each."""
        return self._remarks + [
            f"{count.times} {what}"
            + (f", by {count.most_px:.3g} px at most" if count.most_px else "")
            + f" (first: {count.first})"
            for what, count in self._counts.items()
        ]


def _listed(problems: Sequence[str]) -> str:
    lines = [f"  {problem}" for problem in problems[:NAMED_PROBLEMS]]
    if len(problems) > NAMED_PROBLEMS:
        lines.append(f"  … and {len(problems) - NAMED_PROBLEMS} more")
    return "\n".join(lines)
