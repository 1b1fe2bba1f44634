"""Without the images whose files are bad, the rest of the data set stays what it was."""

from pathlib import Path

import numpy as np
import pytest

from data.coco import CocoIndex, read_index
from data.quarantine import leave_out, refuse
from ssd.errors import UserError
from tests.data.coco_folder import noise_folder

pytestmark = pytest.mark.unit


@pytest.fixture
def index(tmp_path: Path) -> CocoIndex:
    folder = noise_folder(tmp_path / "noise", 6)
    return read_index(folder.annotation_file, folder.image_folder)


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
    with pytest.raises(UserError, match="no image is left"):
        leave_out(index, index.image_ids.tolist())


def test_a_refusal_counts_names_and_mends(index: CocoIndex):
    refuse({}, index, "mend")
    with pytest.raises(UserError, match=r"8 of 6 .* such as f0 \(image id 0\); .*f4 .*\. mend$") as caught:
        refuse({number: f"f{number}" for number in range(8)}, index, "mend")
    assert "f5" not in str(caught.value)
