"""What a process needs around its training run, opened and closed together."""

import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from errno import ENOENT, ENOTDIR
from os import stat_result
from os.path import samestat
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from ssd.cli import writing
from ssd.config import MINUTES_A_YEAR, TrainConfig
from ssd.console import RunConsole
from ssd.distributed import Ranks, open_ranks
from ssd.errors import UserError
from ssd.runtime import Runtime, set_up
from ssd.training.guards import GRACE, Watchdog
from ssd.training.signals import Preempted, StopSignals, end_with_parent, leave_if_preempted

LOCK_FILE = ".lock"
LOCK_WAIT_S = 60.0  # a run that was just stopped may still be writing its last checkpoint
ANEW_TIMEOUT = timedelta(minutes=10)  # gigabytes on a slow file system
TOKEN_TIMEOUT = timedelta(minutes=5)  # longer than rank 0 waits for the folder
TOKEN_WAIT_S = 10.0  # a network file system may show another machine's new file only after some seconds


@dataclass(frozen=True)
class Session:
    """A run's device, ranks, console, folder, stop signals and watchdog."""

    runtime: Runtime
    ranks: Ranks
    console: RunConsole
    folder: Path
    signals: StopSignals
    watchdog: Watchdog
    lock: stat_result | None  # of the lock file; None except on rank 0

    def lost_folder(self) -> bool:
        """Tell on rank 0 whether its locked folder was moved, removed or replaced; False on other ranks."""
        try:
            return self.lock is not None and not samestat(self.lock, (self.folder / LOCK_FILE).stat())
        except OSError as error:
            return error.errno in (ENOENT, ENOTDIR)  # for any other error, let the next write tell


@contextmanager
def open_session(config: TrainConfig, folder: Path) -> Iterator[Session]:
    """Join the ranks, set up the device, and handle signals until the session closes.

    Raises UserError if the device can't do what is asked or a machine doesn't see the folder, Preempted if
    the run must not continue.
    """
    end_with_parent()
    minutes = config.training.hang_timeout_minutes
    hang = None if minutes is None else timedelta(minutes=minutes)
    # Longer than any wait that the watchdog allows: the watchdog prints stacks, a group's timeout doesn't.
    longest = timedelta(minutes=MINUTES_A_YEAR) if hang is None else hang
    exchange = longest + timedelta(minutes=config.evaluation.timeout_minutes) + 2 * GRACE
    with (
        Watchdog(hang) as watchdog,
        open_ranks(config.runtime.device, exchange) as ranks,
        own_folder(folder) if ranks.is_main else nullcontext() as lock,
        RunConsole(ranks.is_main) as console,
        StopSignals(folder, ranks.is_main) as signals,
    ):
        try:
            require_seen_by_all(folder, ranks)
            leave_if_preempted(folder, ranks)
            if config.resume.never and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
                ranks.on_main(lambda: begin_anew(folder), ANEW_TIMEOUT)
            runtime = set_up(config.runtime, ranks.device)
            yield Session(runtime, ranks, console, folder, signals, watchdog, lock)
        except Preempted as preempted:  # printed here: a signal may arrive at any moment, even while printing
            console.say(*preempted.told)
            raise


@contextmanager
def own_folder(folder: Path) -> Iterator[stat_result]:
    """Lock the run's folder. The kernel releases the lock when the process dies, however it dies.

    Yields the stat of the lock file; no other file has its inode while the lock is held.
    Raises UserError if another process holds the lock for LOCK_WAIT_S, or if the folder can't be written.
    """
    with writing(folder, "hydra.run.dir"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / LOCK_FILE).acquire(timeout=LOCK_WAIT_S)
        except Timeout as error:
            fix = "stop it, or give another name=…"
            raise UserError(f"{folder}: another process trains there; {fix}") from error
    path = folder / LOCK_FILE
    with lock:
        try:
            yield path.stat()
        finally:
            with suppress(OSError):  # the folder was moved or removed
                if os.listdir(folder) == [LOCK_FILE]:
                    path.unlink()  # a refused start leaves nothing; a process waiting for it makes a new one


def begin_anew(folder: Path) -> None:
    """Remove what an earlier run left in the folder, if that run had resume.never; nothing else is removed.

    Files that the new run replaces stay until then: metrics and TensorBoard events are cut as on a resume,
    here after step 0. Raises UserError if a file can't be removed.
    """
    config = folder / "config.yaml"
    with writing(folder, "hydra.run.dir"):
        if config.exists() and "\n  never: true\n" in config.read_text(encoding="utf-8", errors="replace"):
            for name in ("run.log", "starts.jsonl"):
                (folder / name).unlink(missing_ok=True)
            for name in ("nonfinite", "pictures", "checkpoints"):
                if (folder / name).exists():
                    shutil.rmtree(folder / name)


def require_seen_by_all(folder: Path, ranks: Ranks) -> None:
    """Raise UserError on all ranks unless every rank sees what rank 0 writes to the run's folder.

    All ranks resume from the checkpoint that rank 0 names: without this check a run on several machines
    would train until its first restart and fail there.
    """
    token = folder / ranks.on_main(lambda: f".seen_by_all_{uuid4().hex}", TOKEN_TIMEOUT)  # not cached yet
    if ranks.is_main:
        token.touch()
    deadline = time.monotonic() + TOKEN_WAIT_S
    while not token.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    machines = ranks.gather((socket.gethostname(), token.exists()))
    if ranks.is_main:
        token.unlink()
    blind = sorted({machine for machine, sees in machines if not sees})
    if blind:
        raise UserError(
            f"hydra.run.dir={folder}: {', '.join(blind)} can't see there what {machines[0][0]}, the "
            "machine of rank 0, writes; give a folder on a file system that all machines share"
        )
