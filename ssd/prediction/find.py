"""What the user names, files, folders and globs → the pictures, each once, in an order that stays."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd.errors import UserError

# Of what Pillow reads the kinds that are pictures: not its documents (.eps), films (.mpg) and data (.h5).
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".pnm", ".ppm", ".pgm", ".pbm", ".tga", ".qoi"}
)

_KINDS = f"it takes files that end in {' '.join(sorted(SUFFIXES))}"
_QUOTES = "a name that isn't plain needs quotes: 'images=\"…\"'"


@dataclass(frozen=True)
class PictureFile:
    """A picture to look at.

    image_id: its place among all found, from 1. path: where it lies. name: its path from the folder that was
    searched, or from the deepest one that holds all that were, with /: no two pictures have the same.
    """

    image_id: int
    path: Path
    name: str

    def __str__(self) -> str:
        """Return the path as any terminal can print it: file names need not be UTF-8."""
        return os.fsencode(self.path).decode("utf-8", "replace")


def find_pictures(places: Sequence[str], out: Path) -> list[PictureFile]:
    """Find the pictures of files, folders and globs, sorted by name, but not what was drawn in `out` before.

    A file that is named is taken whatever its suffix. Folders and globs give files with one of SUFFIXES, not
    hidden ones; folders are searched through and through, links to folders not followed.
    Raises UserError where a place gives nothing, or where `out` is a folder that is searched.
    """
    drawn = out.resolve()
    searched = []
    found: set[Path] = set()
    for place in places:
        base, files = _look(place)
        if base.resolve() == drawn:
            raise UserError(
                f"out={out} is where images={place} lie; give another folder, so that none is lost"
            )
        own = [file for file in files if not file.resolve().is_relative_to(drawn)]
        # `out` may also hold the place as a whole (out=. beside photos/); then nothing in it was drawn.
        own = files if base.resolve().is_relative_to(drawn) else own
        if not own:
            raise UserError(_nothing_in(place))
        searched.append(base)
        found.update(own)
    top = Path(os.path.commonpath(searched))
    names = sorted((file.relative_to(top).as_posix(), file) for file in found)
    return [PictureFile(number, file, name) for number, (name, file) in enumerate(names, start=1)]


def _look(place: str) -> tuple[Path, list[Path]]:
    """Return the folder that a place stands for and the files that it names, as absolute paths."""
    path = _absolute(place)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, list(_pictures_below(path))
    matches = map(_absolute, glob.glob(place, recursive=True))
    return _fixed_part(place), [
        each for each in matches if each.suffix.lower() in SUFFIXES and each.is_file()
    ]


def _absolute(place: str) -> Path:
    return Path(os.path.abspath(place))  # Path.absolute() leaves .. in; resolve() would follow links


def _pictures_below(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} can't be searched ({error.strerror}); make it readable")


def _fixed_part(pattern: str) -> Path:
    """Return the folder down to where a glob begins to vary."""
    fixed = Path(pattern)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    return _absolute(str(fixed))


def _nothing_in(place: str) -> str:
    where = _absolute(place)
    if where.is_dir():
        return f"images={place}: {where} holds no picture; {_KINDS}"
    if not glob.has_magic(place):
        return f"images={place}: {where} is neither a file nor a folder; {_QUOTES}"
    return (
        f"images={place}: no picture matches {where}; a glob names files, DIR/**/*.jpg in all folders below "
        f"DIR; {_KINDS}"
    )
