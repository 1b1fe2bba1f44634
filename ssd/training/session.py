"""What a run has around it on this process, opened and closed as one."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ssd.config import MINUTES_A_YEAR, TrainConfig
from ssd.console import RunConsole
from ssd.distributed import Ranks, open_ranks
from ssd.runtime import Runtime, set_up
from ssd.training.folder import own_folder, require_seen_by_all
from ssd.training.stop import StopSignals, end_with_parent, leave_if_preempted
from ssd.training.watchdog import GRACE, Watchdog


@dataclass(frozen=True)
class Session:
    """Where it computes, with whom, what it shows, where it writes, what may end it."""

    runtime: Runtime
    ranks: Ranks
    console: RunConsole
    folder: Path
    signals: StopSignals
    watchdog: Watchdog


@contextmanager
def open_session(config: TrainConfig, folder: Path) -> Iterator[Session]:
    """Join the ranks, set the device up, and take over the signals until the end.

    Raises UserError where the device can't do what is asked or a machine doesn't see the folder, Preempted
    where the run isn't to go on.
    """
    end_with_parent()
    minutes = config.training.hang_timeout_minutes
    hang = None if minutes is None else timedelta(minutes=minutes)
    # Longer than any wait that the watchdog allows: it shows the stacks, a group's timeout would not.
    longest = timedelta(minutes=MINUTES_A_YEAR) if hang is None else hang
    exchange = longest + timedelta(minutes=config.evaluation.timeout_minutes) + 2 * GRACE
    with (
        Watchdog(hang) as watchdog,
        open_ranks(config.runtime.device, exchange) as ranks,
        own_folder(folder) if ranks.is_main else nullcontext(),
        RunConsole(ranks.is_main) as console,
        StopSignals(folder, ranks.is_main) as signals,
    ):
        require_seen_by_all(folder, ranks)
        leave_if_preempted(folder, ranks)
        yield Session(set_up(config.runtime, ranks.device), ranks, console, folder, signals, watchdog)
