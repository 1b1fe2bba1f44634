"""What lies inside an image, against a slow literal reference."""

import numpy as np
import pytest

from data.clipping import inside_px

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("box_ltwh_px", "expected"),
    [
        ((3, 4, 10.1, 20.3), (10.1, 20.3)),  # to the last bit
        ((-5, 4, 10, 20), (5, 20)),
        ((95, 40, 10, 20), (5, 10)),
        ((-10, -10, 200, 100), (100, 50)),
        ((120, 4, 10, 20), (-20, 20)),
        ((-40, 4, 10, 20), (-30, 20)),
        ((4, 4, -3, 0), (-3, 0)),
    ],
)
def test_what_hangs_over_is_taken_off_the_size(
    box_ltwh_px: tuple[float, ...], expected: tuple[float, float]
) -> None:
    assert inside_px(np.array([box_ltwh_px]), np.array([[100, 50]])).tolist() == [[*expected]]


def test_sides_beyond_floating_point_end_outside() -> None:
    boxes_ltwh_px = np.array([[1e308, 0, 1e308, 10]])
    assert inside_px(boxes_ltwh_px, np.array([[100, 50]]))[0, 0] == -np.inf
