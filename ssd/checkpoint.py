"""Checkpoint files: written whole or not at all, sealed by a checksum, read without running code.

Also which of a run's checkpoints is the newest good one, and which stay.
"""

import hashlib
import os
import re
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from .errors import UserError

FORMAT = 1
PACKAGES = (
    *("torch", "torchvision", "numpy", "hydra-core", "nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    *("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12", "nvidia-nvjpeg"),  # with which DALI decodes
)
PLAIN = (int, float, str, bool, type(None), Tensor)
RETRY_WAITS_S = (1.0, 2.0, 4.0)  # before what a failing system didn't read is read again

# torch.save writes a zip archive. The seal is the archive's comment, its very end, which every reader
# of zip files passes over: data and checksum are one file and become visible by one rename.
_SEAL = b"sha256:"
_SEAL_SIZE = len(_SEAL) + 64
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22


class CheckpointError(UserError):
    """A checkpoint that can't be read, written or used; the message names the file and the fix."""


class UnreadableError(CheckpointError):
    """The system failed while it read a file, which may be a good one."""


def step_file(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path, wanted: Callable[[int], bool] = lambda _: True) -> list[Path]:
    """List a folder's checkpoints of the wanted steps, oldest first. Raises UnreadableError."""
    try:
        names = os.listdir(folder)  # glob takes a folder that it fails to read for an empty one
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableError(f"{folder} can't be read ({error.strerror})") from error
    matches = (re.fullmatch(r"step_(\d{8,})\.pt", name) for name in names)
    steps = sorted(int(match[1]) for match in matches if match)
    return [step_file(folder, step) for step in steps if wanted(step)]


def package_versions() -> dict[str, str]:
    """Return the versions of what shapes a trajectory; of the builds for CUDA 12 and 13 one is installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def check_plain(value: object, key: str = "checkpoint") -> None:
    """Raise TypeError, naming the key, unless torch.load(weights_only=True) will read the value back.

    That is: values of PLAIN, lists and dicts of these; no subclasses, as numpy's and OmegaConf's values are.
    """
    if type(value) is list:
        value = dict(enumerate(value))
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for name, entry in value.items():
            check_plain(entry, f"{key}[{name!r}]")
    elif type(value) not in PLAIN:
        raise TypeError(f"{key} is a {type(value).__name__}: convert it to a plain value before saving")


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that the path holds it whole or what it held before, even if power fails.

    What was written is read back and checked before it takes the name.
    Raises OSError where the disk or the folder fails; nothing is left behind then.
    """
    check_plain(state)
    # In memory first: torch.save into a file that can't grow raises no OSError.
    archive = BytesIO()
    torch.save(state, archive)
    content = _sealed(archive.getbuffer())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if temporary.read_bytes() != content:
            raise OSError(f"{temporary} reads back other than it was written: disk or memory is faulty")
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):  # the failure that led here is the one to be told
            temporary.unlink(missing_ok=True)


def _sealed(archive: memoryview) -> bytes:
    """Append the checksum of everything before it as the zip archive's comment."""
    assert archive[-_ZIP_END_SIZE:][: len(_ZIP_END)] == _ZIP_END, "torch.save wrote no plain zip archive"
    announced = bytes(archive[:-2]) + struct.pack("<H", _SEAL_SIZE)  # the comment's length
    return announced + _SEAL + _checksum(announced)


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def keep_newest(folder: Path, keep: int, written: Path, needed: Callable[[int], bool]) -> None:
    """Delete all step checkpoints but the newest `keep`, the newest of the needed steps and the one written.

    For right after a `write`, which checked what it wrote: that one is good.
    """
    spared = [written, *saved_steps(folder, needed)[-1:]]
    for path in saved_steps(folder)[:-keep]:
        if path not in spared:
            path.unlink()


def newest_checkpoint(
    folder: Path, wanted: Callable[[int], bool] = lambda _: True
) -> tuple[Path | None, list[str]]:
    """Find a run's newest good checkpoint of the wanted steps; never best.pt, which can't be resumed from.

    Returns its path, or None, and a line about each damaged one, best.pt always among those that are looked
    at, and one about a best.pt alone. Those are renamed, never to be taken nor deleted, unless none is good:
    then all stay as they are, for a person to look at. Raises UnreadableError, and leaves all as they are,
    where the system fails.
    """
    newest: Path | None = None
    damaged: dict[Path, str] = {}
    best = folder / "best.pt"
    candidates = [best] if os.path.exists(best) else []
    for path in [*candidates, *reversed(saved_steps(folder, wanted))]:
        if defect := _defect(path):
            damaged[path] = defect
        elif path != best:
            newest = path
            break
    if candidates and not damaged and not saved_steps(folder):
        damaged[best] = f"{best} is alone, and a run can't be resumed from it"
    if newest is None:
        return None, list(damaged.values())
    for path in damaged:
        aside = path.with_name(path.name + ".broken")
        try:
            path.replace(aside)
            damaged[path] += f"; it is kept as {aside.name}"
        except OSError as error:
            damaged[path] += f"; it can't be renamed ({error.strerror})"
    return newest, list(damaged.values())


def _defect(path: Path) -> str | None:
    """Say why a checkpoint can't be taken, None if it can. Raises UnreadableError where the system fails."""
    try:
        step = load_run(path).get("step")
    except UnreadableError:
        raise
    except CheckpointError as error:
        return str(error)
    is_of_step = path.name == "best.pt" or int(path.stem.removeprefix("step_")) == step
    return None if is_of_step else f"checkpoint {path} is of step {step}"


def load_file(path: Path) -> dict[str, Any]:
    """Read tensors and plain values; nothing else is unpickled, so a file can't run code.

    Raises CheckpointError where the file is missing, broken, holds anything else, or is one of ours and not
    what was sealed, to the last bit; UnreadableError where the system fails.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError(f"checkpoint {path} is no regular file; give another file")  # a pipe would hang
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist") from error
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", "out of memory")
        raise UnreadableError(f"checkpoint {path} can't be read ({reason}); try again once it can") from error
    sealed = content[-_SEAL_SIZE : -_SEAL_SIZE + len(_SEAL)] == _SEAL
    if sealed and content[-_SEAL_SIZE + len(_SEAL) :] != _checksum(memoryview(content)[:-_SEAL_SIZE]):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum differs; give another file")
    try:
        _check_size(content)
        with warnings.catch_warnings(action="ignore"):  # on what a refused file was written with
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except UnpicklingError:
        # torch's own message tells how to read such a file all the same, which would run its code.
        what = "it is broken, or holds more than tensors and plain values, and reading that could run code"
        raise CheckpointError(f"checkpoint {path} can't be read: {what}; give another file") from None
    except Exception as error:  # a broken file may raise anything at all out of torch
        reason = (str(error) or repr(error)).splitlines()[0]
        kind = UnreadableError if sealed else CheckpointError  # what is as it was sealed isn't broken
        what = f"it is cut short, damaged or no checkpoint ({reason})"
        raise kind(f"checkpoint {path} can't be read: {what}; give another file") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} is a {type(state).__name__}, not a dict; give another file")
    if state.get("format") == FORMAT and not sealed:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum is missing; give another file")
    return state


def _check_size(content: bytes) -> None:
    """Raise ValueError if a zip archive unpacks to more than it is, as torch.save's never do."""
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > len(content):
            raise ValueError(f"{len(content)} bytes unpack to {unpacked}, and torch.save never compresses")


def load_run(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours, all of it; what the system fails to read is tried again.

    Raises CheckpointError for any other or damaged file, UnreadableError where the system fails for good.
    """
    for wait in RETRY_WAITS_S:
        with suppress(UnreadableError):
            state = load_file(path)
            break
        time.sleep(wait)
    else:
        state = load_file(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer (format {state.get('format')!r})")
    return state


def learned(path: Path) -> dict[str, str]:
    """Return what tells two runs apart after a step: each tensor's checksum and the scores, by name."""
    saved = load_run(path)
    momenta = {
        f"momentum {key}": each["momentum_buffer"] for key, each in saved["optimizer"]["state"].items()
    }
    tensors = saved["model"] | momenta
    sums = {name: hashlib.sha256(each.contiguous().numpy()).hexdigest() for name, each in tensors.items()}
    return sums | {"scores": str(saved["scores"])}
