"""Archives: what a good one becomes, and that an evil one writes nothing where it should not."""

import errno
import hashlib
import random
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from data import archive as module
from data.archive import ArchiveError, Limits, unpack

pytestmark = pytest.mark.unit

LIMITS = Limits(members=10, file_bytes=10_000, total_bytes=20_000)
PICTURE = random.Random(0).randbytes(3_000)
TEXT = b"text " * 1_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "unpacking"
    folder.mkdir(parents=True)
    return folder


def archive_of(tmp_path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members:
            archive.writestr(name, body)
    return path


def unpacked(archive: Path, folder: Path, limits: Limits = LIMITS) -> dict[str, str]:
    return unpack(archive, "set", folder, limits, lambda _written, _total: None)


def refused(archive: Path, folder: Path, reason: str, limits: Limits = LIMITS) -> None:
    """Prove that the archive is refused for that reason and left nothing, in the folder or beside it."""
    with pytest.raises(ArchiveError, match=reason) as caught:
        unpacked(archive, folder, limits)
    assert str(archive) in str(caught.value)
    assert [path for path in folder.parent.rglob("*") if path != folder] == []


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    return info


def patched(archive: Path, signature: bytes, offset: int, form: str, value: int) -> Path:
    """Overwrite one number of the first header that begins with that signature."""
    content = bytearray(archive.read_bytes())
    struct.pack_into(form, content, content.index(signature) + offset, value)
    archive.write_bytes(content)
    return archive


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def test_files_arrive_byte_for_byte_with_their_checksums(tmp_path: Path, folder: Path) -> None:
    stored = zipfile.ZipInfo("set/b.jpg")
    archive = archive_of(tmp_path, ("set/", b""), ("set/a.json", TEXT), (stored, PICTURE), ("set/empty", b""))
    seen: list[tuple[int, int]] = []
    sums = unpack(archive, "set", folder, LIMITS, lambda *figures: seen.append(figures))
    contents = {"a.json": TEXT, "b.jpg": PICTURE, "empty": b""}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    assert sums == {name: hashlib.sha256(body).hexdigest() for name, body in contents.items()}
    assert seen == [(5_000, 8_000), (8_000, 8_000), (8_000, 8_000)]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "set/../evil",
        "set/..",
        "set/.",
        "/set/evil",
        "/evil",
        "//set/evil",
        "other/evil",
        "evil",
        "set",
        "set/deeper/evil",
        "set//evil",
        "set/a\\..\\evil",
        "set\\evil",
        "C:/evil",
        "set/new\nline",
        "SET/evil",
    ],
)
def test_name_outside_the_folder_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    refused(archive_of(tmp_path, ("set/good", b""), (name, b"evil")), folder, "not a file right under set/")


@pytest.mark.parametrize("name", ["../", "other/", "/", "set/deeper/", "set/../"])
def test_folder_outside_the_folder_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    refused(archive_of(tmp_path, ("set/good", b""), (name, b"")), folder, "not a file right under set/")


@pytest.mark.parametrize("name", ["set/good!/../evil", "!"])
def test_name_that_a_zero_byte_cuts_short_is_refused(tmp_path: Path, folder: Path, name: str) -> None:
    archive = archive_of(tmp_path, (name, b""))
    archive.write_bytes(archive.read_bytes().replace(b"!", b"\0"))
    refused(archive, folder, "not a file right under set/")


@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_link_or_device_is_refused(tmp_path: Path, folder: Path, mode: int) -> None:
    archive = archive_of(tmp_path, ("set/good", b""), (special("set/evil", mode), b"/etc/hostname"))
    refused(archive, folder, "'set/evil' is a link or a device")


def test_link_named_as_a_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    refused(archive_of(tmp_path, (special("set/", stat.S_IFLNK), b"/etc")), folder, "a link or a device")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("twin", ["set/a", "set/A"])
def test_name_given_twice_is_refused(tmp_path: Path, folder: Path, twin: str) -> None:
    refused(archive_of(tmp_path, ("set/a", b"1"), (twin, b"2")), folder, "two members are named 'set/a'")


def test_too_many_members_are_refused(tmp_path: Path, folder: Path) -> None:
    names = [(f"set/{number}", b"") for number in range(11)]
    refused(archive_of(tmp_path, *names), folder, "11 members, at most 10 are allowed")
    assert len(unpacked(archive_of(tmp_path, *names[:10]), folder)) == 10


def test_file_that_unpacks_to_too_much_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = archive_of(tmp_path, ("set/bomb", bytes(10_001)))
    assert archive.stat().st_size < 200
    refused(archive, folder, "'set/bomb' unpacks to 10001 bytes, at most 10000 are allowed")


def test_files_that_together_unpack_to_too_much_are_refused(tmp_path: Path, folder: Path) -> None:
    members = [(f"set/{number}", bytes(9_000)) for number in range(3)]
    refused(archive_of(tmp_path, *members), folder, "it unpacks to 27000 bytes, at most 20000 are allowed")


def test_header_that_claims_less_than_comes_out_does_not_get_round_the_limit(
    tmp_path: Path, folder: Path
) -> None:
    archive = archive_of(tmp_path, ("set/bomb", bytes(1_000_000)))
    patched(archive, CENTRAL, 24, "<I", 100)
    with pytest.raises(ArchiveError, match="CRC"):
        unpacked(archive, folder)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 100


def test_bytes_really_written_are_what_is_limited(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a zipfile that gave more than the header claims would be stopped."""
    archive = archive_of(tmp_path, ("set/a", b"1"))

    class Endless:
        def __enter__(self) -> "Endless":
            return self

        def __exit__(self, *_arguments: object) -> None: ...

        def read(self, size: int) -> bytes:
            return bytes(min(size, 4_000))

    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_arguments: Endless())
    with pytest.raises(ArchiveError, match="does not have the 1 bytes that its header says"):
        unpacked(archive, folder)
    assert (folder / "a").stat().st_size <= 1


def test_members_that_share_bytes_are_refused(tmp_path: Path, folder: Path) -> None:
    archive = archive_of(tmp_path, ("set/a", PICTURE), ("set/b", TEXT))
    second = archive.read_bytes().rindex(CENTRAL)
    patched(archive, archive.read_bytes()[second : second + 20], 42, "<I", 0)
    refused(archive, folder, "overlaps what follows it")


def test_encrypted_member_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = patched(archive_of(tmp_path, ("set/a", PICTURE)), CENTRAL, 8, "<H", 1)
    refused(archive, folder, "'set/a' is encrypted")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_unusual_compression_is_refused(tmp_path: Path, folder: Path, method: int) -> None:
    archive = patched(archive_of(tmp_path, ("set/a", PICTURE)), CENTRAL, 10, "<H", method)
    refused(archive, folder, f"compressed in an unusual way .{method}.")


def test_local_header_of_another_name_is_refused(tmp_path: Path, folder: Path) -> None:
    archive = patched(archive_of(tmp_path, ("set/a", PICTURE)), LOCAL, 30, "<B", ord("x"))
    with pytest.raises(ArchiveError, match="not a whole zip archive"):
        unpacked(archive, folder)


def test_damaged_byte_is_noticed(tmp_path: Path, folder: Path) -> None:
    stored = zipfile.ZipInfo("set/a")
    archive = archive_of(tmp_path, (stored, PICTURE))
    archive.write_bytes(archive.read_bytes().replace(PICTURE[100:110], bytes(10)))
    with pytest.raises(ArchiveError, match=r"Bad CRC-32.*; delete it and get it again"):
        unpacked(archive, folder)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", PICTURE])
def test_what_is_no_archive_is_refused(tmp_path: Path, folder: Path, content: bytes) -> None:
    archive = tmp_path / "archive.zip"
    archive.write_bytes(content)
    refused(archive, folder, "not a whole zip archive")


def test_archive_without_files_is_refused(tmp_path: Path, folder: Path) -> None:
    refused(archive_of(tmp_path), folder, "holds no files")
    refused(archive_of(tmp_path, ("set/", b"")), folder, "holds no files")


def test_archive_cut_short_anywhere_is_refused(tmp_path: Path, folder: Path) -> None:
    whole = archive_of(tmp_path, ("set/a", PICTURE), ("set/b", TEXT)).read_bytes()
    for end in range(0, len(whole), 97):
        (tmp_path / "cut.zip").write_bytes(whole[:end])
        refused(tmp_path / "cut.zip", folder, "not a whole zip archive")


def test_any_damage_gives_the_same_files_or_an_error_of_ours(tmp_path: Path) -> None:
    whole = archive_of(tmp_path, ("set/a", TEXT), ("set/é", "é".encode()), ("set/c", b"c" * 30))
    with zipfile.ZipFile(whole, "a") as archive, archive.open("set/zip64", "w", force_zip64=True) as member:
        member.write(b"d" * 40)
    good = {hashlib.sha256(body).hexdigest() for body in (TEXT, b"\xc3\xa9", b"c" * 30, b"d" * 40)}
    draw = random.Random(1)
    refusals = blamed_on_disk = 0
    for trial in range(300):
        damaged = bytearray(whole.read_bytes())
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.choice((0, 1, 0x7F, 0xFF, draw.randrange(256)))
        (tmp_path / "damaged.zip").write_bytes(damaged)
        folder = tmp_path / f"out{trial}"
        folder.mkdir()
        try:
            assert set(unpacked(tmp_path / "damaged.zip", folder).values()) <= good
        except ArchiveError as error:
            refusals += 1
            blamed_on_disk += isinstance(error.__cause__, OSError)
        assert all(path.is_file() and not path.is_symlink() for path in folder.rglob("*"))
    assert 150 < refusals < 300
    assert blamed_on_disk == 0
    assert len(list(tmp_path.iterdir())) == 300 + 2


def test_full_disk_is_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_of(tmp_path, ("set/a", PICTURE))

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(ArchiveError, match=r"\(No space left on device\); free some space and run again"):
        unpacked(archive, folder)


def test_existing_file_is_not_written_over(tmp_path: Path, folder: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (folder / "a").symlink_to(victim)
    with pytest.raises(ArchiveError, match=r"cannot unpack .* \(File exists\)"):
        unpacked(archive_of(tmp_path, ("set/a", b"evil")), folder)
    assert victim.read_text() == "mine"
