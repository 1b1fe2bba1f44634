"""README's map against the code: what a reader looks for stands in it."""

from fnmatch import fnmatch
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
MAP = (ROOT / "README.md").read_text(encoding="utf-8").split("## Find your way")[1].split("```")[1]


def part_of(package: str) -> list[str]:
    """Return the words of the map from a package's line to the next line that isn't indented."""
    lines = MAP.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"{package}/"))
    end = next(number for number in range(begin + 1, len(lines)) if not lines[number].startswith(" "))
    return " ".join(lines[begin:end]).split()


@pytest.mark.parametrize("package", ["ssd", "data"])
def test_every_module_stands_in_the_map(package: str):
    """A module by its name or by its beginning and a star; of a package within, the package."""
    words = part_of(package)
    inside = sorted((ROOT / package).iterdir())
    names = [path.stem for path in inside if path.suffix == ".py" and path.stem != "__init__"]
    names += [f"{path.name}/" for path in inside if (path / "__init__.py").exists()]
    assert len(names) > 10
    assert [name for name in names if not any(fnmatch(name, word) for word in words)] == []
