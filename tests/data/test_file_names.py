"""Packed file names are the names that were packed."""

import numpy as np
import pytest

from data.file_names import FileNames

pytestmark = pytest.mark.unit

NAMES = ["b.png", "", "sub/é 猫.jpg", "a.png"]


def test_names_come_back_by_place_and_in_order() -> None:
    packed = FileNames.of(NAMES)
    assert len(packed) == 4
    assert list(packed) == [packed[place] for place in range(4)] == NAMES


def test_some_names_are_kept_in_memory_of_their_own() -> None:
    packed = FileNames.of(NAMES)
    kept = packed.where(np.array([False, True, True, False]))
    assert list(kept) == NAMES[1:3]
    assert len(kept.utf8) == len("".join(NAMES[1:3]).encode())
    assert not np.shares_memory(kept.utf8, packed.utf8)


@pytest.mark.parametrize("place", [4, 5, -1, -2])
def test_a_place_that_is_none_is_refused(place: int) -> None:
    with pytest.raises(ValueError, match="unpack"):
        FileNames.of(NAMES)[place]
