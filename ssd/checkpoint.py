"""Checkpoint files: written atomically, sealed with a checksum, read without running code.

Also finds a run's newest good checkpoint and deletes old ones.
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
    *("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12", "nvidia-nvjpeg"),  # DALI decodes with these
)
PLAIN = (int, float, str, bool, type(None), Tensor)
RETRY_WAITS_S = (1.0, 2.0, 4.0)  # before each retry of a read that the system failed

# torch.save writes a zip archive. The seal is the archive's comment, at its very end, which zip readers
# ignore. So data and checksum are one file, and one rename makes both visible.
_SEAL = b"sha256:"
_SEAL_SIZE = len(_SEAL) + 64
_ZIP_END, _ZIP_END_SIZE = b"PK\x05\x06", 22


class CheckpointError(UserError):
    """A checkpoint that can't be read, written or used; the message names the file and the fix."""


class UnreadableError(CheckpointError):
    """The system failed to read a file; the file itself may be good."""


def step_file(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"step_{step:08d}.pt"


def saved_steps(folder: Path, wanted: Callable[[int], bool] = lambda _: True) -> list[Path]:
    """List a folder's checkpoints of the wanted steps, oldest first. Raises UnreadableError if it can't."""
    try:
        names = os.listdir(folder)  # glob treats an unreadable folder as empty
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UnreadableError(f"{folder} can't be read ({error.strerror})") from error
    matches = (re.fullmatch(r"step_(\d{8,})\.pt", name) for name in names)
    steps = sorted(int(match[1]) for match in matches if match)
    return [step_file(folder, step) for step in steps if wanted(step)]


def package_versions() -> dict[str, str]:
    """Return the versions of the installed packages that affect results (CUDA 12 or CUDA 13 builds)."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def check_plain(value: object, key: str = "checkpoint") -> None:
    """Raise TypeError, naming the key, unless torch.load(weights_only=True) will read the value back.

    Allowed are values of the types in PLAIN, and lists and dicts of them; no subclasses (numpy, OmegaConf).
    """
    if type(value) is list:
        value = dict(enumerate(value))
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for name, entry in value.items():
            check_plain(entry, f"{key}[{name!r}]")
    elif type(value) not in PLAIN:
        raise TypeError(f"{key} is a {type(value).__name__}: convert it to a plain value before saving")


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: even after a power failure, the path holds the old or the new file.

    The new file is read back and checked before it is renamed to the path.
    Raises OSError if the disk or folder fails; then no partial file is left.
    """
    check_plain(state)
    # In memory first: torch.save raises no OSError if the disk is full.
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
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    finally:
        with suppress(OSError):  # must not hide the original error
            temporary.unlink(missing_ok=True)


def _sealed(archive: memoryview) -> bytes:
    """Append a zip comment that holds the checksum of all bytes before it."""
    assert archive[-_ZIP_END_SIZE:][: len(_ZIP_END)] == _ZIP_END, "torch.save wrote no plain zip archive"
    announced = bytes(archive[:-2]) + struct.pack("<H", _SEAL_SIZE)  # the comment's length
    return announced + _SEAL + _checksum(announced)


def _checksum(content: bytes | memoryview) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def keep_newest(folder: Path, keep: int, written: Path, needed: Callable[[int], bool]) -> None:
    """Delete step checkpoints, except the newest `keep`, the newest needed one and the one just written.

    Call it right after `write`, which has verified that `written` is good.
    """
    spared = [written, *saved_steps(folder, needed)[-1:]]
    for path in saved_steps(folder)[:-keep]:
        if path not in spared:
            path.unlink()


def newest_checkpoint(
    folder: Path, wanted: Callable[[int], bool] = lambda _: True
) -> tuple[Path | None, list[str]]:
    """Find a run's newest good checkpoint of the wanted steps; never best.pt, which can't be resumed from.

    Returns its path, or None, and a line about each damaged file found, including best.pt, or about a
    best.pt without any step_*.pt. Damaged files are renamed, so that they are neither used nor deleted. If
    no checkpoint is good, nothing is renamed, so that a person can look. Raises UnreadableError, with nothing
    renamed, if the system fails.
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
    """Return why a checkpoint can't be used, None if it can. Raises UnreadableError if the system fails."""
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

    Raises CheckpointError if the file is missing, broken or holds anything else, or if it is one of ours and
    doesn't match its checksum; UnreadableError if the system fails.
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
        with warnings.catch_warnings(action="ignore"):  # about how a rejected file was written
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except UnpicklingError:
        # torch's own message explains how to load such a file anyway, which would run its code.
        what = "it is broken, or holds more than tensors and plain values, and reading that could run code"
        raise CheckpointError(f"checkpoint {path} can't be read: {what}; give another file") from None
    except Exception as error:  # torch may raise anything on a broken file
        reason = (str(error) or repr(error)).splitlines()[0]
        kind = UnreadableError if sealed else CheckpointError  # the checksum matches
        what = f"it is cut short, damaged or no checkpoint ({reason})"
        raise kind(f"checkpoint {path} can't be read: {what}; give another file") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} is a {type(state).__name__}, not a dict; give another file")
    if state.get("format") == FORMAT and not sealed:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum is missing; give another file")
    return state


def _check_size(content: bytes) -> None:
    """Raise ValueError if a zip archive unpacks to more bytes than it has; torch.save's never do."""
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > len(content):
            raise ValueError(f"{len(content)} bytes unpack to {unpacked}, and torch.save never compresses")


def load_run(path: Path) -> dict[str, Any]:
    """Read one of our checkpoints; retries if the system fails to read it.

    Raises CheckpointError for any other or damaged file, UnreadableError if the last retry fails too.
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
