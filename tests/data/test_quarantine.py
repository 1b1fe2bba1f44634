"""Bad files are found before training, once; the rest of the data set stays what it was."""

from pathlib import Path

import numpy as np
import pytest

import data.quarantine
from data.coco import CocoIndex, read_index
from data.errors import DatasetError
from data.image_files import Level
from data.quarantine import find_bad_files, leave_out, refuse
from ssd.console import RunConsole
from ssd.errors import UserError
from tests.data.coco_folder import noise_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    folder = noise_folder(tmp_path / "noise", 6)
    return read_index(folder.annotation_file, folder.image_folder)


def find(index: CocoIndex, cache: Path, level: Level = Level.header) -> dict[int, str]:
    return find_bad_files(index, level, threads=1, cache=cache, console=RunConsole(is_main=True))


def cut(index: CocoIndex, image: int, size: int) -> int:
    """Shorten an image file; return the image's id."""
    path = Path(index.path(image))
    path.write_bytes(path.read_bytes()[:size])
    return int(index.image_ids[image])


def test_bad_files_are_named_by_image(index: CocoIndex, tmp_path: Path):
    empty, missing = cut(index, 1, 0), int(index.image_ids[4])
    Path(index.path(4)).unlink()
    bad = find(index, tmp_path / "cache")
    assert bad.keys() == {empty, missing}
    assert bad[empty].startswith(index.path(1))


def test_what_is_bad_when_decoded_is_found_by_full_alone(index: CocoIndex, tmp_path: Path):
    path = Path(index.path(2))
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(500) + content[middle + 500 :])
    assert find(index, tmp_path / "cache") == {}
    assert find(index, tmp_path / "cache", Level.full).keys() == {int(index.image_ids[2])}


def test_files_are_looked_at_again_only_if_one_changed(
    index: CocoIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    looks = []
    inspect_all = data.quarantine.inspect_all
    monkeypatch.setattr(
        data.quarantine, "inspect_all", lambda *given: (looks.append(1), inspect_all(*given))[1]
    )
    bad = cut(index, 1, 0)
    for _ in range(3):
        assert find(index, tmp_path / "cache").keys() == {bad}
    assert len(looks) == 1
    worse = cut(index, 3, 0)
    assert find(index, tmp_path / "cache").keys() == {bad, worse}
    (kept,) = (tmp_path / "cache").glob("files-*.json")
    kept.write_text("{")
    assert find(index, tmp_path / "cache").keys() == {bad, worse}
    assert len(looks) == 3


def test_a_cache_that_cannot_be_written_names_the_key(index: CocoIndex, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=.*file.*give data\.cache=DIR"):
        find(index, tmp_path / "file")


def test_leaving_out_keeps_every_other_image_as_it_was(index: CocoIndex):
    left = leave_out(index, [int(index.image_ids[0]), int(index.image_ids[3])])
    assert len(left) == 4
    for new, old in enumerate((1, 2, 4, 5)):
        assert left.path(new) == index.path(old)
        assert left.image_ids[new] == index.image_ids[old]
        for mine, theirs in zip(left.boxes_of(new), index.boxes_of(old), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert left.dropped["images with bad files (data.on_bad_image)"] == 2


def test_nothing_left_is_an_error(index: CocoIndex):
    with pytest.raises(DatasetError, match="no image is left"):
        leave_out(index, index.image_ids.tolist())


def test_a_refusal_counts_names_and_mends(index: CocoIndex):
    refuse({}, index, "mend")
    with pytest.raises(DatasetError, match=r"8 of 6 .* such as f0 \(image id 0\); .*f4 .*\. mend$") as caught:
        refuse({number: f"f{number}" for number in range(8)}, index, "mend")
    assert "f5" not in str(caught.value)
