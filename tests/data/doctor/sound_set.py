"""A data set in COCO's layout with nothing wrong."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.coco_folder import CocoFolder, noise


def sound_set(root: Path) -> Path:
    """Write small JPEG files with boxes, 45 to train on and 8 to evaluate. Return the folder."""
    rng = np.random.default_rng(3)
    for split, images in (("train", 45), ("val", 8)):
        data = CocoFolder(root / split)
        for number in range(images):
            width, height = (int(side) for side in rng.integers(60, 120, 2))
            boxes = [(5, 5, width / 2, 20), (2, 2, 9, 9), (3, 9, 30, 9)]
            data.add(1 + number, noise(rng, width, height), boxes)
            picture = data.image_folder / data.images[-1]["file_name"]
            data.images[-1]["file_name"] = picture.with_suffix(".jpg").name
            with Image.open(picture) as opened:
                opened.save(picture.with_suffix(".jpg"), quality=95)
            picture.unlink()
        data.write()
        (root / "annotations").mkdir(exist_ok=True)
        data.annotation_file.rename(root / f"annotations/instances_{split}2017.json")
        data.image_folder.rename(root / f"{split}2017")
        data.folder.rmdir()
    return root
