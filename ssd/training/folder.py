"""A run's folder belongs to one run at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ssd.errors import UserError

WAIT_S = 60.0
"""A run that was just ended may still be writing its last checkpoint."""


class FolderInUseError(UserError):
    """Another process trains in the run's folder; the message names it and the mend."""


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold the run's folder; the kernel lets go of it when the process dies, however it dies.

    Raises FolderInUseError where another process has held it for WAIT_S, UserError where it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=WAIT_S)
        lock.acquire()
    except Timeout as error:
        raise FolderInUseError(
            f"{folder}: another process trains there; stop it, or give name=… for a run of another folder"
        ) from error
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); give hydra.run.dir=…") from error
    try:
        yield
    finally:
        lock.release()
