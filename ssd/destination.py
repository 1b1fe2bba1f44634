"""Places that results go to: that they can be written is learned before the work, not after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from .errors import UserError


class DestinationError(UserError):
    """A place that can't be written; the message names it and the key that gives another."""


@contextmanager
def writing(path: Path, key: str) -> Iterator[None]:
    """Turn what goes wrong while a place is written into DestinationError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise DestinationError(
            f"{path} can't be written ({reason}); give another {key}=…, or make room"
        ) from error


def check_folder(folder: Path, key: str) -> None:
    """Make a folder, and raise DestinationError, naming the key that gave it, unless it takes files."""
    with writing(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()


def check_file(given: str, key: str) -> None:
    """Raise DestinationError, naming the key that gave it, unless a file can be written there.

    Makes the file's folder, and leaves a file that is there as it is.
    """
    path = Path(given)
    if path.is_dir():
        raise DestinationError(f"{key}={given} names the folder {path}; give {key}={path / 'NAME.json'}")
    check_folder(path.parent, key)
    if path.exists():
        with writing(path, key):
            path.open("ab").close()
