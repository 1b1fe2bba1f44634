"""Checkpoint files: written whole or not at all, read without running code, the newest few kept."""

import os
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

FORMAT = 1
PACKAGES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "hydra-core")
PLAIN = (int, float, str, bool, type(None), Tensor)


class CheckpointError(UserError):
    """A checkpoint that can't be read or used; the message names the file and the mend."""


def step_file(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path) -> list[Path]:
    """List a folder's step checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step_*.pt") if re.fullmatch(r"step_\d{8,}\.pt", path.name))


def package_versions() -> dict[str, str]:
    """Return the versions of what shapes a trajectory, of the packages installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # one DALI build of the two is installed, never both
            continue
    return found


def check_plain(value: object, place: str = "checkpoint") -> None:
    """Raise TypeError, naming the place, unless torch.load(weights_only=True) will read the value back.

    That is: int, float, str, bool, None, tensors, and lists and dicts of these; no subclasses, which numpy's
    and OmegaConf's values would smuggle in.
    """
    if type(value) is dict or (isinstance(value, dict) and type(value).__name__ == "OrderedDict"):
        for key, entry in value.items():
            check_plain(entry, f"{place}[{key!r}]")
    elif type(value) is list:
        for index, entry in enumerate(value):
            check_plain(entry, f"{place}[{index}]")
    elif type(value) not in PLAIN:
        raise TypeError(f"{place} is a {type(value).__name__}: convert it to a plain value before saving")


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that the path holds it whole or what it held before, even if power fails."""
    check_plain(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
    _publish(temporary, path)


def copy(source: Path, target: Path) -> None:
    """Copy a checkpoint with the same promise as `write`."""
    temporary = target.with_name(target.name + ".tmp")
    shutil.copyfile(source, temporary)
    _publish(temporary, target)


def _publish(temporary: Path, path: Path) -> None:
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must reach the disk
    finally:
        os.close(folder)


def keep_newest(folder: Path, keep: int) -> None:
    """Delete all step checkpoints but the newest `keep`."""
    for path in saved_steps(folder)[:-keep]:
        path.unlink()


def load_file(path: Path) -> dict[str, Any]:
    """Read tensors and plain values; nothing else is unpickled, so a file can't run code.

    Raises CheckpointError where the file is missing, broken, or holds anything else.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file may raise anything at all out of the unpickler
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"checkpoint {path} can't be read ({reason}); give another file") from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(state).__name__}, not a dict; give another file"
        )
    return state


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, all of it. Raises CheckpointError for any other file."""
    state = load_file(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer (format {state.get('format')!r})")
    return state
