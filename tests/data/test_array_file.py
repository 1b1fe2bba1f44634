"""What is written is mapped back to the bit, and damage anywhere is noticed."""

from pathlib import Path

import numpy as np
import pytest

from data.array_file import Arrays, map_arrays, write_arrays

pytestmark = pytest.mark.unit

ABOUT = {"names": ["é", "b"], "count": 2**62}


def some_arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "floats": rng.random((5, 4), dtype=np.float32),
        "marks": rng.random(3) > 0.5,
        "none": np.zeros((0, 4), np.float64),
        "big_endian": np.arange(3, dtype=">i8"),
        "every_other": np.arange(10, dtype=np.int64)[::2],
    }


def test_arrays_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", ABOUT, some_arrays())
    content = map_arrays(tmp_path / "a")
    assert content is not None
    about, arrays = content
    assert about == ABOUT
    assert list(arrays) == list(some_arrays())
    for name, expected in some_arrays().items():
        assert arrays[name].dtype == expected.dtype.newbyteorder("<")
        assert np.array_equal(arrays[name], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_mapped_arrays_are_aligned_and_read_only(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a", ABOUT, some_arrays())
    content = map_arrays(tmp_path / "a")
    assert content is not None
    for array in content[1].values():
        assert array.ctypes.data % 64 == 0 or array.size == 0
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_damage_to_any_byte_and_a_cut_anywhere_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_arrays(path, ABOUT, {"labels": np.arange(5)})
    sound = path.read_bytes()
    for place in range(len(sound)):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x40]) + sound[place + 1 :])
        assert map_arrays(path) is None, place
        path.write_bytes(sound[:place])
        assert map_arrays(path) is None, place
    path.write_bytes(sound + b"\0")
    assert map_arrays(path) is None
    path.write_bytes(sound)
    assert map_arrays(path) is not None


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert map_arrays(tmp_path / "a") is None


def test_what_cannot_be_written_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_arrays(path, ABOUT, {"labels": np.arange(5)})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_arrays(path, ABOUT, {"labels": np.arange(6)})
    content = map_arrays(path)
    assert content is not None
    assert content[1]["labels"].tolist() == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == [path]
