"""Checkpoint files: written whole or not at all, sealed by a checksum, read without running code.

Also which of a run's checkpoints is the newest good one, and which stay.
"""

import hashlib
import os
import re
import stat
import struct
import time
import warnings
import zipfile
from collections import OrderedDict
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
PACKAGES = ("torch", "torchvision", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "hydra-core")
PLAIN = (int, float, str, bool, type(None), Tensor)
RETRY_WAITS_S = (1.0, 2.0, 4.0)  # before what a failing system didn't read is read again

# What entries of ours are, as check_kinds takes it. Whatever depends on the network is checked where it is.
KINDS: dict[str, Any] = {
    **dict.fromkeys(("step", "global_batch", "nonfinite_steps"), int),
    "config": {"data": {}, "model": {}, "optimizer": {}, "schedule": {}, "runtime": {"precision": str}},
    "categories": {"ids": [int], "names": [str]},
    "excluded_images": [int],
    "bad_images": [int],
    "model": {},
    "optimizer": {"state": {}},
    "scaler": {},
    "ranks": [{}],
}

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


def saved_steps(folder: Path) -> list[Path]:
    """List a folder's step checkpoints, oldest first."""
    try:
        names = os.listdir(folder)  # glob takes a folder that it fails to read for an empty one
    except FileNotFoundError:
        return []
    return sorted(folder / name for name in names if re.fullmatch(r"step_\d{8,}\.pt", name))


def package_versions() -> dict[str, str]:
    """Return the versions of what shapes a trajectory; of the two DALI builds one is installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def check_plain(value: object, key: str = "checkpoint") -> None:
    """Raise TypeError, naming the key, unless torch.load(weights_only=True) will read the value back.

    That is: values of PLAIN, lists and dicts of these; no subclasses, as numpy's and OmegaConf's values are.
    """
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for name, entry in value.items():
            check_plain(entry, f"{key}[{name!r}]")
    elif type(value) is list:
        for index, entry in enumerate(value):
            check_plain(entry, f"{key}[{index}]")
    elif type(value) not in PLAIN:
        raise TypeError(f"{key} is a {type(value).__name__}: convert it to a plain value before saving")


def check_kinds(value: Any, kind: Any, where: str) -> None:
    """Raise CheckpointError, naming the place, unless a value is of a kind.

    kind: a type; a tensor, for one of its shape and dtype that holds each of its numbers; a dict, for one
    that has its keys at least; [kind], for a list of any length; [kind, kind], for one of two entries.
    """
    due: Any = Tensor if isinstance(kind, Tensor) else kind if isinstance(kind, type) else type(kind)
    fits, told = isinstance(value, due), due.__name__
    if isinstance(kind, Tensor):
        told = f"a plain tensor {tuple(kind.shape)} of {kind.dtype}"
        fits = fits and value.layout is torch.strided and value.device.type == "cpu"
        fits = fits and (value.shape, value.dtype) == (kind.shape, kind.dtype)
        fits = fits and value.untyped_storage().nbytes() >= value.numel() * value.element_size()
    elif isinstance(kind, list) and len(kind) > 1:
        told, fits = f"a list of {len(kind)}", fits and len(value) == len(kind)
    if not fits:
        given = "missing" if value is None else f"a {type(value).__name__}"
        given = f"{given} {tuple(value.shape)}" if isinstance(value, Tensor) else given
        raise CheckpointError(f"{where} is {given}, not {told}; give another file, or move it away")
    if isinstance(kind, dict):
        for key, entry in kind.items():
            check_kinds(value.get(key), entry, f"{where}[{key!r}]")
    elif isinstance(kind, list):
        for index, entry in enumerate(value):
            check_kinds(entry, kind[index % len(kind)], f"{where}[{index}]")


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


def keep_newest(folder: Path, keep: int, written: Path) -> None:
    """Delete all step checkpoints but the newest `keep` and the one just written, which is a good one."""
    for path in saved_steps(folder)[:-keep]:
        if path != written:
            path.unlink()


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Find a run's newest good checkpoint; best.pt counts as the oldest, and is looked at in any case.

    Returns its path, or None, and a line about each damaged one. Those are renamed, never to be taken nor
    deleted, unless none is good: then all stay as they are, for a person to look at. So they do where the
    system fails to read one, which may be good: that gives None, and a line about it alone.
    """
    newest: Path | None = None
    damaged: dict[Path, str] = {}
    best = folder / "best.pt"
    try:
        steps = saved_steps(folder)
    except OSError as error:
        return None, [f"{folder} can't be read ({error.strerror})"]
    for path in [*reversed(steps), *([best] if os.path.lexists(best) else [])]:
        if newest is not None and path != best:
            continue
        try:
            step = load_run(path).get("step")
            if path != best and step != int(path.stem.removeprefix("step_")):
                raise CheckpointError(f"checkpoint {path} is damaged or renamed: it holds step {step}")
        except UnreadableError as error:
            return None, [str(error)]
        except CheckpointError as error:
            damaged[path] = str(error)
        else:
            newest = newest or path
    if newest is None:
        return None, list(damaged.values())
    return newest, [f"{error}; {_set_aside(bad)}" for bad, error in damaged.items()]


def _set_aside(path: Path) -> str:
    aside = path.with_name(path.name + ".broken")
    try:
        path.replace(aside)
    except OSError as error:
        return f"it can't be renamed ({error.strerror})"
    return f"it is kept as {aside.name}"


def load_file(path: Path) -> dict[str, Any]:
    """Read tensors and plain values; nothing else is unpickled, so a file can't run code.

    Raises CheckpointError where the file is missing, broken, holds anything else, or is one of ours and not
    what was sealed, to the last bit; UnreadableError where the system fails.
    """
    content = _read(path)
    sealed = content[-_SEAL_SIZE : -_SEAL_SIZE + len(_SEAL)] == _SEAL
    if sealed and content[-_SEAL_SIZE + len(_SEAL) :] != _checksum(memoryview(content)[:-_SEAL_SIZE]):
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum differs; give another file")
    try:
        _check_size(content)
        with warnings.catch_warnings(action="ignore"):  # on what a refused file was written with
            state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        # torch's own message tells how to read such a file all the same, which would run its code.
        name = re.search(r"GLOBAL (\S+)", str(error))
        named = f" (it names {name[1]})" if name else ""
        raise CheckpointError(
            f"checkpoint {path} can't be read: it is broken, or holds more than tensors and plain values"
            f"{named}, and reading that could run code; give another file"
        ) from None
    except Exception as error:  # a broken file may raise anything at all out of torch
        reason = (str(error) or repr(error)).splitlines()[0]
        kind = UnreadableError if sealed else CheckpointError  # what is as it was sealed isn't broken
        raise kind(f"checkpoint {path} can't be read ({reason}); give another file") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"checkpoint {path} is a {type(state).__name__}, not a dict; give another file")
    if state.get("format") == FORMAT and not sealed:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum is missing; give another file")
    if state.get("format") == FORMAT:
        kinds = {key: KINDS[key] for key in KINDS if key in state}
        check_kinds(state, kinds, f"checkpoint {path} can't be used: state")
    return state


def _read(path: Path) -> bytes:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would wait for ever
            raise CheckpointError(f"checkpoint {path} is no regular file; give another file")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path} does not exist") from error
    except (OSError, MemoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else "out of memory"
        raise UnreadableError(f"checkpoint {path} can't be read ({reason})") from error


def _check_size(content: bytes) -> None:
    """Raise ValueError where a zip archive unpacks to more than it is: torch.save never compresses."""
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
        try:
            state = load_file(path)
            break
        except UnreadableError:
            time.sleep(wait)
    else:
        state = load_file(path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer (format {state.get('format')!r})")
    return state
