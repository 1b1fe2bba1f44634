"""download_coco.sh against a server on 127.0.0.1 of a small COCO: whole folders or none, always."""

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
TRAIN = "/zips/train2017.zip"
PATHS = (TRAIN, "/zips/val2017.zip", "/annotations/annotations_trainval2017.zip")


def archive_of(folder: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in FOLDERS[folder].items():
            archive.writestr(f"{folder}/{name}", body)
    return stream.getvalue()


ARCHIVES = {path: archive_of(folder) for path, folder in zip(PATHS, FOLDERS, strict=True)}


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.files |= ARCHIVES
        yield site


def run(site: Site, folder: Path, gigabytes: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the script on the small archives, which it is told to need so much disk."""
    archives = folder.parent / "archives"
    archives.write_text(
        "".join(
            f"{hashlib.sha256(body).hexdigest()} {path[1:]} {unpacked} {gigabytes}\n"
            for (path, body), unpacked in zip(ARCHIVES.items(), FOLDERS, strict=True)
        )
    )
    environment = os.environ | {"COCO_URL": site.url, "COCO_ARCHIVES": str(archives)}
    return subprocess.run([SCRIPT, folder], env=environment, capture_output=True, text=True, check=False)


def contents(folder: Path) -> dict[str, object]:
    """What is visible: a file's bytes, a folder's contents."""
    return {
        path.name: contents(path) if path.is_dir() else path.read_bytes()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def test_a_broken_connection_is_only_slower_and_a_second_run_does_nothing(site: Site, tmp_path: Path):
    folder = tmp_path / "new" / "coco"
    folder.parent.mkdir()
    site.breaks[TRAIN] = 100_000
    done = run(site, folder)
    assert done.returncode == 0, done.stderr
    assert f"ready: data.path={folder}" in done.stdout
    assert site.ranges[:2] == [(TRAIN, None), (TRAIN, "bytes=100000-")]
    assert contents(folder) == FOLDERS

    site.ranges.clear()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run(site, folder).returncode == 0
    assert site.ranges == []
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("came", [70_000, len(ARCHIVES[TRAIN])], ids=["in the middle", "all of it"])
def test_a_stopped_run_goes_on(came: int, site: Site, tmp_path: Path):
    (tmp_path / "coco" / "train2017.unpacking" / "train2017").mkdir(parents=True)
    (tmp_path / "coco" / "train2017.unpacking" / "train2017" / "half.jpg").write_bytes(b"half")
    (tmp_path / "coco" / "train2017.zip").write_bytes(ARCHIVES[TRAIN][:came])
    assert run(site, tmp_path / "coco").returncode == 0
    assert site.ranges[0] == (TRAIN, f"bytes={came}-")
    assert contents(tmp_path / "coco") == FOLDERS


def test_another_sha256_is_refused_and_named(site: Site, tmp_path: Path):
    site.files[TRAIN] = site.files[TRAIN].replace(b"train2017", b"brain2017")
    done = run(site, tmp_path / "coco")
    assert done.returncode == 1
    sha256 = hashlib.sha256(ARCHIVES[TRAIN]).hexdigest()
    assert f"error: {site.url}{TRAIN}: its sha256 is not {sha256}" in done.stderr
    assert contents(tmp_path / "coco") == {}
    site.files |= ARCHIVES
    assert run(site, tmp_path / "coco").returncode == 0


def test_what_is_missing_on_the_server_is_named_and_what_came_stays(site: Site, tmp_path: Path):
    del site.files[PATHS[1]]
    done = run(site, tmp_path / "coco")
    assert done.returncode == 1
    assert f"error: no {site.url}{PATHS[1]}; run again, or set COCO_URL to a mirror" in done.stderr
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
