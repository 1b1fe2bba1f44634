"""download_coco.sh against a server on 127.0.0.1 with a small COCO: it leaves whole folders or none."""

import hashlib
import io
import os
import random
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.web_site import Site, serving

pytestmark = pytest.mark.unit

SCRIPT = Path(__file__).parent.parent / "scripts" / "download_coco.sh"
DRAW = random.Random(0)
FOLDERS = {
    "train2017": {f"{number:012}.jpg": DRAW.randbytes(40_000) for number in range(8)},
    "val2017": {f"{number:012}.jpg": DRAW.randbytes(20_000) for number in range(3)},
    "annotations": {"instances_train2017.json": b"[1] " * 9_000, "instances_val2017.json": b"[2] " * 5_000},
}
TRAIN, VAL = "/zips/train2017.zip", "/zips/val2017.zip"


def archive_of(folder: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in FOLDERS[folder].items():
            archive.writestr(f"{folder}/{name}", body)
    return stream.getvalue()


PATHS = (TRAIN, VAL, "/annotations/annotations_trainval2017.zip")
ARCHIVES = {path: archive_of(folder) for path, folder in zip(PATHS, FOLDERS, strict=True)}
SHA256 = {path: hashlib.sha256(body).hexdigest() for path, body in ARCHIVES.items()}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files |= ARCHIVES
        yield site


def run(site: Site, folder: Path, gigabytes: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the script on the small archives, telling it that each needs this many GB of disk."""
    archives = folder.parent / "archives"
    rows = zip(SHA256.items(), FOLDERS, strict=True)
    lines = [f"{sha256} {path[1:]} {unpacked} {gigabytes}\n" for (path, sha256), unpacked in rows]
    archives.write_text("".join(lines))
    environment = os.environ | {"COCO_URL": site.url, "COCO_ARCHIVES": str(archives)}
    return subprocess.run([SCRIPT, folder], env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, object]:
    """Return the visible files and folders by name: a file's bytes, a folder's contents."""
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: contents(path) if path.is_dir() else path.read_bytes() for path in visible}


def test_a_broken_connection_is_only_slower_and_a_second_run_does_nothing(site: Site, tmp_path: Path):
    site.breaks[TRAIN] = 100_000
    done = run(site, tmp_path / "coco")
    assert done.returncode == 0, done.stderr
    assert f"ready: data.path={tmp_path / 'coco'}" in done.stdout
    assert site.ranges[:2] == [(TRAIN, None), (TRAIN, "bytes=100000-")]
    assert contents(tmp_path / "coco") == FOLDERS

    site.ranges.clear()
    assert run(site, tmp_path / "coco").returncode == 0
    assert site.ranges == []
    assert contents(tmp_path / "coco") == FOLDERS


@pytest.mark.parametrize("came", [70_000, len(ARCHIVES[TRAIN])], ids=["in the middle", "all of it"])
def test_a_stopped_run_goes_on(came: int, site: Site, tmp_path: Path):
    unpacking = tmp_path / "coco" / "train2017.unpacking" / "train2017"
    unpacking.mkdir(parents=True)
    (unpacking / "half.jpg").write_bytes(b"half")
    (tmp_path / "coco" / "train2017.zip").write_bytes(ARCHIVES[TRAIN][:came])
    assert run(site, tmp_path / "coco").returncode == 0
    assert site.ranges[0] == (TRAIN, f"bytes={came}-")
    assert contents(tmp_path / "coco") == FOLDERS


def test_another_sha256_is_refused_and_named(site: Site, tmp_path: Path):
    site.files[TRAIN] = site.files[TRAIN].replace(b"train2017", b"brain2017")
    done = run(site, tmp_path / "coco")
    assert done.returncode == 1
    assert f"error: {site.url}{TRAIN}: its sha256 is not {SHA256[TRAIN]}" in done.stderr
    assert contents(tmp_path / "coco") == {}


def test_what_is_missing_on_the_server_is_named_and_what_came_stays(site: Site, tmp_path: Path):
    del site.files[VAL]
    done = run(site, tmp_path / "coco")
    assert done.returncode == 1
    assert f"error: {site.url}{VAL} failed; run again, or set COCO_URL to a mirror" in done.stderr
    assert contents(tmp_path / "coco") == {"train2017": FOLDERS["train2017"]}


def test_a_disk_that_is_too_small_is_refused_before_anything_is_downloaded(site: Site, tmp_path: Path):
    done = run(site, tmp_path / "coco", gigabytes=1_000_000)
    assert done.returncode == 1
    assert "train2017: needs 1000000 GB of disk" in done.stdout
    assert "the disk is too small" in done.stderr
    assert site.ranges == []


@pytest.mark.parametrize("arguments", [[], ["--help"], ["a", "b"]])
def test_without_one_folder_it_says_how_to_call_it(arguments: list[str]):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, f"error: usage: {SCRIPT} DIR\n")
