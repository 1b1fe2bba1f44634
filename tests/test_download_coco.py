"""download_coco.py against a server on 127.0.0.1 of a small COCO: whole folders or none, always."""

import errno
import hashlib
import io
import os
import random
import subprocess
import sys
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data.coco2017 import COCO_2017, SOURCE, Published, disk_needed
from scripts import download_coco as script
from ssd import download as download_module
from tests.web_site import Site, serve_until, serving, status, whole

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
DRAW = random.Random(0)
FOLDERS = {
    "train2017": {f"{number:012}.jpg": DRAW.randbytes(40_000) for number in range(8)},
    "val2017": {f"{number:012}.jpg": DRAW.randbytes(20_000) for number in range(3)},
    "annotations": {"instances_train2017.json": b"[1] " * 9_000, "instances_val2017.json": b"[2] " * 5_000},
}
Disk = namedtuple("Disk", ["total", "used", "free"])


def archive_of(folder: str, contents: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{folder}/", b"")
        for name, body in contents.items():
            archive.writestr(f"{folder}/{name}", body)
    return stream.getvalue()


ARCHIVES = {folder: archive_of(folder, contents) for folder, contents in FOLDERS.items()}


def published(part: Published, archive: bytes) -> Published:
    """The table's entry, with the figures of a small archive in place of COCO's."""
    contents = FOLDERS[part.folder]
    return Published(
        folder=part.folder,
        path=part.path,
        size=len(archive),
        sha256=hashlib.sha256(archive).hexdigest(),
        files=len(contents),
        largest_bytes=max(len(body) for body in contents.values()),
        unpacked_bytes=sum(len(body) for body in contents.values()),
    )


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        for part in COCO_2017:
            site.files[f"/{part.path}"] = ARCHIVES[part.folder]
        yield site


@pytest.fixture(autouse=True)
def table(monkeypatch: pytest.MonkeyPatch) -> tuple[Published, ...]:
    table = tuple(published(part, ARCHIVES[part.folder]) for part in COCO_2017)
    monkeypatch.setattr(script, "COCO_2017", table)
    monkeypatch.setattr(download_module, "BACKOFF_SECONDS", (0.0, 0.0))
    return table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "coco"


def run(folder: Path, site: Site, *options: str) -> None:
    script.main([str(folder), "--source", site.url, *options])


def failure(folder: Path, site: Site, *options: str) -> str:
    """Run; return what the script ends with, which makes its exit status 1."""
    with pytest.raises(SystemExit) as ended:
        run(folder, site, *options)
    assert isinstance(ended.value.code, str)
    return ended.value.code


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def assert_whole(folder: Path, *parts: str) -> None:
    for part in parts or FOLDERS:
        assert {path.name: path.read_bytes() for path in (folder / part).iterdir()} == FOLDERS[part]


WHOLE = sorted([*FOLDERS, *(f"{part}.sha256" for part in FOLDERS)])


@contextmanager
def stopping(monkeypatch: pytest.MonkeyPatch, stage: str, after: int) -> Iterator[None]:
    """Press Ctrl-C in that stage, once so many bytes are done."""
    real = script._progress

    @contextmanager
    def progress(title: str, in_bytes: bool = True) -> Iterator[Callable[[int, int | None], None]]:
        def report(done: int, total: int | None) -> None:
            if stage in title and done > after:
                raise KeyboardInterrupt
            forward(done, total)

        with real(title, in_bytes) as forward:
            yield report

    with monkeypatch.context() as patch:
        patch.setattr(script, "_progress", progress)
        yield


def test_result_is_the_layout_that_data_path_takes(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, site)
    assert visible(folder) == WHOLE
    assert_whole(folder)
    assert f"ready: data.path={folder}" in capsys.readouterr().out
    subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", *(f"{part}.sha256" for part in FOLDERS)],
        cwd=folder,
        check=True,
    )


def test_parts_and_archives_as_asked_for(site: Site, folder: Path) -> None:
    run(folder, site, "--parts", "annotations,val2017", "--keep-archives")
    kept = ["annotations", "annotations.sha256", "annotations_trainval2017.zip"]
    assert visible(folder) == [*kept, "val2017", "val2017.sha256", "val2017.zip"]
    assert (folder / "val2017.zip").read_bytes() == ARCHIVES["val2017"]


def test_again_asks_for_nothing_and_changes_nothing(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, site)
    before = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    site.requests.clear()
    run(folder, site)
    assert site.requests == []
    assert {path: path.stat().st_mtime_ns for path in before} == {
        path: stat.st_mtime_ns for path, stat in before.items()
    }
    assert "train2017: there, 8 files" in capsys.readouterr().out


def test_server_that_breaks_off_is_only_slower(site: Site, folder: Path) -> None:
    site.answers["/zips/train2017.zip"] = [serve_until(100_000), status(500), serve_until(200_000)]
    run(folder, site)
    assert_whole(folder)
    assert site.ranges()[:4] == [None, "bytes=100000-", "bytes=100000-", "bytes=200000-"]


def test_server_without_ranges_is_only_slower(site: Site, folder: Path) -> None:
    site.answers["/zips/train2017.zip"] = [serve_until(100_000), whole]
    run(folder, site)
    assert_whole(folder)


def test_stopped_download_goes_on(site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.answers["/zips/train2017.zip"] = [serve_until(100_001)]
    with stopping(monkeypatch, "train2017.zip: fetching", 100_000):
        assert failure(folder, site) == "stopped; the same command goes on from here"
    site.requests.clear()
    run(folder, site)
    assert site.ranges()[0] == "bytes=100001-"
    assert_whole(folder)


def test_stopped_unpacking_starts_over_without_the_server(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopping(monkeypatch, "train2017.zip: unpacking", 100_000):
        failure(folder, site)
    assert visible(folder) == ["train2017.zip"]
    assert len(list((folder / ".train2017.unpacking").iterdir())) == 3
    site.requests.clear()
    run(folder, site)
    assert "/zips/train2017.zip" not in [path for path, _ in site.requests]
    assert visible(folder) == WHOLE
    assert not (folder / ".train2017.unpacking").exists()
    assert_whole(folder)


def test_killed_before_the_folder_had_its_name_it_unpacks_again(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "sync", killed)
        failure(folder, site, "--parts", "val2017")
    assert not (folder / "val2017").exists()
    run(folder, site, "--parts", "val2017")
    assert_whole(folder, "val2017")


def test_wrong_bytes_never_become_a_folder(site: Site, folder: Path) -> None:
    site.files["/zips/val2017.zip"] = ARCHIVES["val2017"][:-1] + b"x"
    message = failure(folder, site, "--parts", "val2017")
    assert message.startswith(f"error: cannot download {site.url}/zips/val2017.zip: its sha256 is ")
    assert visible(folder) == ["val2017.zip.lock"]


def test_archive_of_another_size_is_not_even_fetched(site: Site, folder: Path) -> None:
    site.files["/zips/val2017.zip"] = ARCHIVES["val2017"] + b"x"
    assert "the server has" in failure(folder, site, "--parts", "val2017")


def test_not_found_names_the_url(site: Site, folder: Path) -> None:
    del site.files["/zips/val2017.zip"]
    assert f"{site.url}/zips/val2017.zip: HTTP 404" in failure(folder, site)


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("val2017/../../evil", b"evil", "not a file right under val2017/"),
        ("/evil", b"evil", "not a file right under val2017/"),
        ("train2017/evil", b"evil", "not a file right under val2017/"),
        ("val2017/bomb", bytes(20_001), "unpacks to 20001 bytes, at most 20000"),
        ("val2017/one_more", b"", "5 members, at most 4"),
    ],
)
def test_evil_archive_of_the_right_checksum_becomes_nothing(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes, reason: str
) -> None:
    contents = FOLDERS["val2017"] if "more" in name else {}
    stream = io.BytesIO(archive_of("val2017", contents))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, body)
    part = published(COCO_2017[1], stream.getvalue())
    monkeypatch.setattr(script, "COCO_2017", (part,))
    site.files[f"/{part.path}"] = stream.getvalue()
    assert reason in failure(folder, site)
    assert visible(folder) == ["val2017.zip"]
    assert [path for path in folder.parent.rglob("*") if "evil" in path.name or "bomb" in path.name] == []


def test_small_disk_is_refused_before_anything_is_fetched(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, table: tuple[Published, ...]
) -> None:
    needed = disk_needed([(part, 0) for part in table], keep_archives=False)
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _folder: Disk(0, 0, needed - 1))
    message = failure(folder, site)
    assert f"{folder}: 0.0 GB of disk needed, 0.0 GB free; free the rest" in message
    assert site.requests == []
    monkeypatch.setattr(script.shutil, "disk_usage", lambda _folder: Disk(0, 0, needed))
    run(folder, site)
    assert_whole(folder)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stopped_in", [None, "fetching", "unpacking"])
def test_no_more_disk_is_taken_than_was_said(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, keep: bool, stopped_in: str | None
) -> None:
    options = ["--keep-archives"] if keep else []
    if stopped_in:
        site.answers["/zips/train2017.zip"] = [serve_until(150_000)]
        with stopping(monkeypatch, stopped_in, 140_000):
            failure(folder, site, *options)
    said: list[int] = []
    taken: list[int] = []
    before = 0

    def disk(_folder: Path) -> Disk:
        nonlocal before
        before = disk_of(folder)
        return Disk(0, 0, 10**12)

    def needed(parts: list[tuple[Published, int]], keep_archives: bool) -> int:
        said.append(disk_needed(parts, keep_archives))
        return said[-1]

    @contextmanager
    def progress(_title: str, in_bytes: bool = True) -> Iterator[Callable[[int, int | None], None]]:
        assert in_bytes
        yield lambda _done, _total: taken.append(disk_of(folder) - before)
        taken.append(disk_of(folder) - before)

    monkeypatch.setattr(script.shutil, "disk_usage", disk)
    monkeypatch.setattr(script, "disk_needed", needed)
    monkeypatch.setattr(script, "_progress", progress)
    run(folder, site, *options)
    assert 0.8 * said[0] < max(taken) <= said[0]


def disk_of(folder: Path) -> int:
    """Bytes of blocks that the folder's files take, as du counts them."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_archive_found_in_the_folder_is_taken_if_it_is_the_published_one(site: Site, folder: Path) -> None:
    folder.mkdir()
    (folder / "val2017.zip").write_bytes(ARCHIVES["val2017"])
    run(folder, site, "--parts", "val2017")
    assert site.requests == []
    assert_whole(folder, "val2017")


def test_another_archive_found_in_the_folder_is_refused_and_kept(site: Site, folder: Path) -> None:
    folder.mkdir()
    other = ARCHIVES["val2017"][:-1] + b"x"
    (folder / "val2017.zip").write_bytes(other)
    message = failure(folder, site, "--parts", "val2017")
    assert f"{folder / 'val2017.zip'} is not the published archive; delete it and run again" in message
    assert (folder / "val2017.zip").read_bytes() == other


def test_folder_of_someone_else_is_left_alone(site: Site, folder: Path) -> None:
    (folder / "val2017").mkdir(parents=True)
    for name in FOLDERS["val2017"]:
        (folder / "val2017" / name).write_text("mine")
    run(folder, site)
    assert {path.read_text() for path in (folder / "val2017").iterdir()} == {"mine"}
    assert_whole(folder, "train2017", "annotations")
    assert "there is no val2017.sha256 to compare it with" in failure(folder, site, "--verify")


@pytest.mark.parametrize("ours", [True, False])
def test_folder_that_lacks_files_is_refused_and_kept(site: Site, folder: Path, ours: bool) -> None:
    if ours:
        run(folder, site, "--parts", "val2017")
        (folder / "val2017" / "000000000001.jpg").unlink()
    else:
        (folder / "val2017").mkdir(parents=True)
        for name in list(FOLDERS["val2017"])[:2]:
            (folder / "val2017" / name).write_text("mine")
    assert f"{folder / 'val2017'} lacks 1 of 3 files; move it away" in failure(folder, site)
    assert len(list((folder / "val2017").iterdir())) == 2


def test_verify_reads_everything_anew_and_asks_no_server(
    site: Site, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, site, "--keep-archives")
    site.requests.clear()
    run(folder, site, "--verify")
    assert site.requests == []
    assert "whole: train2017, val2017, annotations" in capsys.readouterr().out


def test_verify_names_every_damaged_file_and_archive(site: Site, folder: Path) -> None:
    run(folder, site, "--keep-archives")
    for name in ("train2017/000000000003.jpg", "annotations/instances_val2017.json", "val2017.zip"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    message = failure(folder, site, "--verify")
    named = "train2017/000000000003.jpg, val2017.zip, annotations/instances_val2017.json"
    assert f"not what was unpacked: 3 files, such as {named}; delete" in message


def test_verify_of_what_is_not_there_makes_nothing(site: Site, folder: Path) -> None:
    assert f"{folder / 'train2017'} is not there; run without --verify" in failure(folder, site, "--verify")
    assert not folder.exists()


def test_verify_after_damage_and_its_mend_is_content(site: Site, folder: Path) -> None:
    run(folder, site, "--parts", "val2017")
    for path in (folder / "val2017").iterdir():
        path.unlink()
    (folder / "val2017").rmdir()
    run(folder, site, "--parts", "val2017")
    run(folder, site, "--parts", "val2017", "--verify")


def test_slash_behind_the_source_is_not_doubled(site: Site, folder: Path) -> None:
    site.files = {f"/mirror{path}": body for path, body in site.files.items()}
    run(folder, site, "--source", f"{site.url}/mirror/")
    assert_whole(folder)


def test_folder_of_files_is_a_mirror(tmp_path: Path, folder: Path) -> None:
    for part in COCO_2017:
        path = tmp_path / "a mirror" / part.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ARCHIVES[part.folder])
    script.main([str(folder), "--source", f"{(tmp_path / 'a mirror').as_uri()}/"])
    assert_whole(folder)


def test_of_several_runs_at_once_one_fetches(site: Site, folder: Path, table: tuple[Published, ...]) -> None:
    code = f"from data.coco2017 import Published; from scripts import download_coco as script\n\
script.COCO_2017 = {table!r}\nscript.main([{str(folder)!r}, '--source', {site.url!r}])"
    runs = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) for _ in range(3)]
    assert [run.wait(timeout=120) for run in runs] == [0, 0, 0]
    assert len(site.requests) == 3
    assert_whole(folder)


def test_place_that_cannot_be_written_is_named(site: Site, folder: Path) -> None:
    folder.write_text("a file")
    assert failure(folder, site).startswith(f"error: {folder} cannot be written (File exists)")


@pytest.mark.parametrize(("given", "named"), [("/dev/disk", "/dev/disk"), (None, "{folder}")])
def test_failure_at_work_is_not_taken_for_a_folder_that_cannot_be_written(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch, given: str | None, named: str
) -> None:
    def failing(_: Path) -> Disk:
        raise OSError(errno.EIO, "Input/output error", given)

    monkeypatch.setattr(script.shutil, "disk_usage", failing)
    expected = f"error: {named.format(folder=folder)}: Input/output error; mend that and run again"
    assert failure(folder, site) == expected


def test_folder_that_cannot_be_read_is_named(
    site: Site, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "val2017").mkdir(parents=True)

    def denied(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", denied)
    message = failure(folder, site, "--verify", "--parts", "val2017")
    assert message == f"error: {folder / 'val2017'}: Permission denied; mend that and run again"


@pytest.mark.parametrize("parts", ["train2014", "", "val2017,", "val2017, annotations"])
def test_unknown_part_is_refused(site: Site, folder: Path, parts: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(folder, site, "--parts", parts)


def test_help_works_from_the_root() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # where the project is not installed
    command = [sys.executable, "scripts/download_coco.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "--verify" in done.stdout


def test_published_urls_are_cocos() -> None:
    assert [f"{SOURCE}/{part.path}" for part in COCO_2017] == [
        "http://images.cocodataset.org/zips/train2017.zip",
        "http://images.cocodataset.org/zips/val2017.zip",
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip",
    ]


def test_disk_needed_is_the_worst_moment_of_all() -> None:
    big, small = (
        Published("f", "p", size=size, sha256="", files=0, largest_bytes=0, unpacked_bytes=unpacked)
        for size, unpacked in ((100, 110), (10, 150))
    )
    assert disk_needed([(big, 0), (small, 0)], keep_archives=False) == 110 + 10 + 150
    assert disk_needed([(big, 0), (small, 0)], keep_archives=True) == 100 + 110 + 10 + 150
    assert disk_needed([(big, 100), (small, 0)], keep_archives=False) == 0 + 110 - 100 + 10 + 150
    assert disk_needed([], keep_archives=False) == 0
