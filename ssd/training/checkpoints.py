"""Which of a run's checkpoints it goes on from."""

from datetime import timedelta
from pathlib import Path
from typing import Any

from ssd.checkpoint import CheckpointError, load_run, saved_steps, set_aside
from ssd.training.saved_run import SavedRun
from ssd.training.session import Session

CHOOSING_TIMEOUT = timedelta(minutes=10)


def newest_checkpoint(session: Session) -> SavedRun | None:
    """Return a run's newest good checkpoint, the same on all ranks; None where the run has not begun.

    Newer ones that are damaged are named and kept under another name. best.pt counts as the oldest.
    Raises CheckpointError where there are checkpoints and none is good: starting over would lose the run.
    """
    folder = session.folder / "checkpoints"
    chosen = session.ranks.on_main(lambda: _choose(folder), CHOOSING_TIMEOUT)
    session.console.say(*chosen["broken"])
    if chosen["path"]:
        path = Path(chosen["path"])
        return SavedRun.from_plain(load_run(path), path)
    if chosen["broken"]:
        raise CheckpointError(
            "no checkpoint of the run is good: "
            + "; ".join(chosen["broken"])
            + ". Put a good one there, or give name=… to start another run"
        )
    return None


def _choose(folder: Path) -> dict[str, Any]:
    """Return the newest good checkpoint's path ("" for none), and a line about each newer one."""
    broken: dict[Path, str] = {}
    best = folder / "best.pt"
    for path in [*reversed(saved_steps(folder)), *([best] if best.exists() else [])]:
        try:
            load_run(path)
        except CheckpointError as error:
            broken[path] = str(error)
            continue
        return {"path": str(path), "broken": [f"{why}; {_aside(bad)}" for bad, why in broken.items()]}
    return {"path": "", "broken": list(broken.values())}


def _aside(path: Path) -> str:
    try:
        return f"it is kept as {set_aside(path).name}"
    except OSError as error:
        return f"it can't be renamed ({error.strerror})"
