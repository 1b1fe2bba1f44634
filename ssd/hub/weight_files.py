"""A weight file by path or URL → a file on this machine, downloaded once into torch.hub's folder."""

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import urldefrag, urlsplit
from uuid import uuid4

import torch

from ..download import DownloadError, download
from ..errors import UserError
from .places import Place, is_url, local_file

# NVIDIA's published SSD300 v1.1: ResNet-50 trained on COCO 2017 (RECIPE 8).
NVIDIA_URL = (
    "https://api.ngc.nvidia.com/v2/models/nvidia/ssd_pyt_ckpt_amp/versions/20.06.0/files/"
    "nvidia_ssdpyt_amp_200703.pt"
)
ENVIRONMENT_VARIABLE = "NVIDIA_SSD_WEIGHTS"


def nvidia_weights() -> str:
    """Return where nvidia_ssd's weights lie: the path or URL in NVIDIA_SSD_WEIGHTS, else NVIDIA's URL."""
    return os.environ.get(ENVIRONMENT_VARIABLE) or NVIDIA_URL


def weight_file(place: Place, force_reload: bool = False) -> Path:
    """Return a file of this machine with what lies at a path or URL.

    http(s) is downloaded once, into checkpoints/ of `torch.hub.get_dir()`, and again with force_reload; what
    was there stays if that fails. A URL may end in #sha256=<64 hex digits> for the file to have. A path is
    given back as it is, whether there is a file or not.
    Raises UserError where the download fails, the sha256 is another, or the place can't be understood.
    """
    if not is_url(place):
        return Path(os.path.expanduser(place))
    url, sha256 = _split_sha256(os.fspath(place))
    path = local_file(url)
    if path is None:
        return _downloaded(url, sha256, force_reload)
    if sha256 is not None:
        _check_sha256(path, sha256)
    return path


def _split_sha256(url: str) -> tuple[str, str | None]:
    """Split off #sha256=…, as pip writes it."""
    bare, fragment = urldefrag(url)
    if not fragment:
        return bare, None
    digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if digest is None:
        raise UserError(f"{url}: #{fragment} must be #sha256= and 64 hex digits, or be left out")
    return bare, digest[1].lower()


def _check_sha256(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise UserError(f"{path} does not exist; correct the file: URL")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise UserError(f"{path}: its sha256 is {found}, not {sha256}; get the file anew or correct the URL")


def _downloaded(url: str, sha256: str | None, force_reload: bool) -> Path:
    folder = Path(torch.hub.get_dir(), "checkpoints")
    target = folder / _cache_name(url, sha256)
    if target.is_file() and not force_reload:
        return target
    # Its own folder: of several that reload at once none gets another's half, or what lay there before.
    aside = folder / f"reload-{uuid4().hex}"
    arriving = aside / target.name if force_reload else target
    print(f"Downloading {url} to {target}", end="", file=sys.stderr, flush=True)
    try:
        download(url, arriving, sha256=sha256, report=_Progress())
        if force_reload:
            arriving.replace(target)
    except DownloadError as error:
        raise UserError(
            f"{error}. Or get the file by other means and pass its path as weights= (ssd300: checkpoint=); "
            f"for nvidia_ssd {ENVIRONMENT_VARIABLE}=PATH does it too"
        ) from error
    finally:
        print(file=sys.stderr)
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _cache_name(url: str, sha256: str | None) -> str:
    """Name it after the URL's file, for people to find, and as no other URL or content would be named."""
    name = PurePosixPath(urlsplit(url).path)
    readable = re.sub(r"[^\w.-]", "_", name.stem)[:64]
    unique = hashlib.sha256(f"{url}#{sha256}".encode()).hexdigest()[:16]
    return f"{readable}-{unique}.pt"


class _Progress:
    """Writes every tenth of a download to stderr; a log file stays readable, a notebook too."""

    def __init__(self) -> None:
        self.tenths = 0

    def __call__(self, received: int, total: int | None) -> None:
        if total and 10 * received // total > self.tenths:
            self.tenths = 10 * received // total
            print(f" {10 * self.tenths} %", end="", file=sys.stderr, flush=True)
