"""The folder that a conversion makes: there when all of it is, and pictures put into it."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory

from data.convert.dataset import Picture
from data.convert.progress import shown
from ssd.errors import UserError


class Link(Enum):
    """How a picture gets into the new folder.

    hard: a second name of the same file; costs no space and outlives the first, but both must be on one disk
    and an edit in place shows in both. symlink: a pointer to the file, anywhere. copy: a file of its own.
    """

    hard = "hard"
    symlink = "symlink"
    copy = "copy"

    def place(self, file: Path, target: Path) -> None:
        """Put a picture file at the target, whose folder is made; never encode it anew. Raises OSError."""
        target.parent.mkdir(parents=True, exist_ok=True)
        file = file.resolve()  # a hard link to a relative symlink would point nowhere
        match self:
            case Link.hard:
                target.hardlink_to(file)
            case Link.symlink:
                target.symlink_to(file)
            case Link.copy:
                shutil.copy2(file, target)


def place_pictures(pictures: Iterable[Picture], folder: Path, link: Link) -> None:
    """Put pictures into a folder under their names; raise UserError where that cannot be."""
    for picture in shown(list(pictures), f"pictures into {folder.name}"):
        try:
            link.place(picture.file, folder / picture.name)
        except OSError as error:
            raise UserError(
                f"{picture.file}: --link {link.value} to {picture.name} failed ({error.strerror}); "
                f"give --link {'symlink or copy' if link is Link.hard else 'copy'}, or make room"
            ) from error


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out` that becomes `out` when the block ends, and vanishes when it fails.

    Raises UserError where `out` is there and not empty, or cannot be made.
    """
    out = out.absolute()
    require_free(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
            unfinished = Path(temporary, out.name)
            unfinished.mkdir()
            yield unfinished
            unfinished.rename(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); give another folder") from error


def require_free(out: Path) -> None:
    """Raise UserError unless the folder is absent or empty."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there and is no empty folder; delete it, or give another one")
