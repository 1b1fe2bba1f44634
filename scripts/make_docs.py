"""Make docs/*.jpg from a finished run on the embedded set: python scripts/make_docs.py runs/docs docs."""

import sys
from collections import Counter
from pathlib import Path

from PIL import Image

from ssd.image import grid


def main(run: Path, out: Path) -> None:
    """Save the first training batch, and four of the last validation pictures of the most common size."""
    folders = sorted((run / "pictures").glob("step_*"))
    drawn = [Image.open(file) for file in sorted(folders[-1].glob("*.jpg"))]
    commonest, _ = Counter(picture.size for picture in drawn).most_common(1)[0]
    pictures = {
        "detections": grid([picture for picture in drawn if picture.size == commonest][:4], columns=2),
        "training_batch": Image.open(folders[0] / "first_training_batch.jpg"),
    }
    for name, picture in pictures.items():
        # Subsampling stores colour at half the resolution, which makes thin coloured lines bleed.
        picture.save(out / f"{name}.jpg", quality=72, subsampling=0, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
