"""Which images of a data set are left out because their files can't be trained on."""

from dataclasses import replace

import numpy as np

from data.coco import CocoIndex
from ssd.errors import UserError

NAMED_FILES = 5
"""Bad files that a message lists."""


def refuse(bad: dict[int, str], index: CocoIndex, mend: str) -> None:
    """Raise UserError naming the first few bad files, if there are any."""
    if bad:
        named = "; ".join(f"{why} (image id {image_id})" for image_id, why in [*bad.items()][:NAMED_FILES])
        raise UserError(
            f"{index.source.images_key}={index.source.image_folder}: {len(bad)} of {len(index)} image files "
            f"can't be used, such as {named}. {mend}"
        )


def leave_out(index: CocoIndex, image_ids: list[int]) -> CocoIndex:
    """Return the index that an annotation file without these images and their boxes would give."""
    if not image_ids:
        return index
    kept = ~np.isin(index.image_ids, image_ids)
    if not kept.any():
        raise UserError(f"{index.source.annotations_key}: no image is left, all of their files are bad")
    boxes = np.diff(index.box_starts)
    kept_boxes = np.repeat(kept, boxes)
    return replace(
        index,
        file_names=index.file_names.where(kept),
        image_ids=index.image_ids[kept],
        sizes_px=index.sizes_px[kept],
        box_starts=np.concatenate(([0], np.cumsum(boxes[kept]))),
        boxes_ltrb=index.boxes_ltrb[kept_boxes],
        labels=index.labels[kept_boxes],
        dropped=index.dropped | {"images with bad files (data.on_bad_image)": int((~kept).sum())},
    )
