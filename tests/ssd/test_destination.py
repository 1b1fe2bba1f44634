"""Whether results can be written is said before the work, with the key."""

from pathlib import Path

import pytest

from ssd.cli import check_file, check_folder, writing
from ssd.errors import UserError

pytestmark = pytest.mark.unit


def test_a_place_that_takes_files_is_made_and_left_empty(tmp_path: Path):
    check_file(str(tmp_path / "new" / "deep" / "report.json"), "out")
    check_folder(tmp_path / "pictures", "out")
    assert not list((tmp_path / "new" / "deep").iterdir())
    assert not list((tmp_path / "pictures").iterdir())


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path):
    (tmp_path / "report.json").write_text("before")
    check_file(str(tmp_path / "report.json"), "out")
    assert (tmp_path / "report.json").read_text() == "before"


@pytest.mark.parametrize("given", ["", ".", "file/report.json"])
def test_a_place_that_takes_no_file_is_refused_by_its_key(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UserError, match=r"benchmark\.out="):
        check_file(given, "benchmark.out")


def test_a_folder_without_leave_to_write_is_refused_by_its_key():
    """/proc takes no files, not even root's."""
    with pytest.raises(UserError, match=r"/proc can't be written \(.*\); give another out=…"):
        check_file("/proc/report.json", "out")


def test_a_disk_that_fills_up_meanwhile_is_named(tmp_path: Path):
    named = r"x can't be written \(No space left on device\).*out="
    with pytest.raises(UserError, match=named), writing(tmp_path / "x", "out"):
        raise OSError(28, "No space left on device")
