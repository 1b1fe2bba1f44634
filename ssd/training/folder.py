"""A run's folder belongs to one run at a time, and every machine of that run sees it."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from tempfile import mkstemp

from filelock import FileLock, Timeout

from ssd.distributed import Ranks
from ssd.errors import UserError

WAIT_S = 60.0
"""A run that was just ended may still be writing its last checkpoint."""


SEEING_TIMEOUT = timedelta(minutes=5)  # longer than rank 0 waits for the folder
PATIENCE_S = 10.0
"""A network file system may show what another machine made only after some seconds."""


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Hold the run's folder; the kernel lets go of it when the process dies, however it dies.

    Raises UserError where another process has held it for WAIT_S, UserError where it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=WAIT_S)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{folder}: another process trains there; stop it, or give name=… for a run of another folder"
        ) from error
    except OSError as error:
        raise UserError(f"{folder} can't be written ({error.strerror}); give hydra.run.dir=…") from error
    try:
        yield
    finally:
        lock.release()


def require_seen_by_all(folder: Path, ranks: Ranks) -> None:
    """Raise UserError on all ranks unless each sees what rank 0 writes into the run's folder.

    All resume from the checkpoint that rank 0 names: without it a run of several machines would train until
    its first restart, and fail there.
    """
    token = Path(ranks.on_main(lambda: _leave_token(folder), SEEING_TIMEOUT))
    machines = ranks.gather((socket.gethostname(), _appears(token)))
    if ranks.is_main:
        token.unlink()
    blind = sorted({machine for machine, sees in machines if not sees})
    if blind:
        raise UserError(
            f"hydra.run.dir={token.parent}: {', '.join(blind)} can't see there what {machines[0][0]}, the "
            "machine of rank 0, writes; give a folder on a file system that all machines share"
        )


def _leave_token(folder: Path) -> str:
    """Make a file of a name that was never there before, and return its path."""
    open_file, path = mkstemp(prefix=".seen_by_all_", dir=folder)
    os.close(open_file)
    return path


def _appears(path: Path) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
