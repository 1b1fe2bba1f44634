"""scripts/make_large_set.py: a made set is like COCO's, and nothing is begun that can't be made."""

from pathlib import Path

import pytest

from data.index import read_index
from scripts import make_large_set

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("times", ["0", "-1"])
def test_a_multiple_below_one_is_refused_with_its_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], times: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        make_large_set.main([str(tmp_path / "set"), f"--times={times}"])
    assert f"--times {times}: give 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_made_set_can_be_read_and_has_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"TRAIN_IMAGES": 30, "TRAIN_BOXES": 90, "VAL_IMAGES": 5, "VAL_BOXES": 9}.items():
        monkeypatch.setattr(make_large_set, name, value)
    make_large_set.main([str(tmp_path / "set"), "--times=2"])
    index = read_index(tmp_path / "set/annotations/instances_train2017.json", tmp_path / "set/train2017")
    assert len(index) + index.dropped["images without boxes"] == 60
    assert all(Path(index.path(image)).is_file() for image in range(len(index)))
