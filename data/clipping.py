"""What of a box lies inside its image."""

import numpy as np
from numpy.typing import NDArray


def inside_px(
    ltwh_px: NDArray[np.float64], image_sizes_px: NDArray[np.int64] | NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return width and height of what of each box lies inside its image, 0 or less where nothing does.

    ltwh_px: B×4. image_sizes_px: B×2 (width, height). Returns B×2.
    What hangs over is taken off the size: a box inside keeps the exact size that the file gives.
    """
    left_top, size = ltwh_px[:, :2], ltwh_px[:, 2:]
    # Only sides like 1e308 overflow. The infinity lies outside the image.
    with np.errstate(over="ignore"):
        over = np.maximum(-left_top, 0) + np.maximum(left_top + size - image_sizes_px, 0)
        inside: NDArray[np.float64] = size - over
    return inside
