"""What predict.py leaves: drawn pictures, detections.json, a table. A file is written whole or not at all."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ssd.categories import Categories
from ssd.cli import check_folder, writing
from ssd.errors import UserError
from ssd.image import draw_boxes
from ssd.prediction.find import PictureFile
from ssd.prediction.predictor import Found

JSON_NAME = "detections.json"

# Suffixes that a drawn picture keeps, with its kind; a picture of another kind becomes a JPEG.
_KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG"}


class Output:
    """The folder of drawn pictures and detections.json.

    Raises UserError where the folder can't be made or written, or where a drawn picture would replace
    one of the pictures themselves.
    """

    def __init__(self, folder: Path, files: Sequence[PictureFile], categories: Categories) -> None:
        self.folder = folder
        self._categories = categories
        self._drawn = drawn_names([file.name for file in files])
        originals = {file.path.resolve() for file in files}
        for name in self._drawn.values():
            if (folder / name).resolve() in originals:
                raise UserError(f"out={folder}: {folder / name} is one of the pictures; give another folder")
        check_folder(folder, "out")

    def write_picture(self, file: PictureFile, picture: Image.Image, found: Found) -> list[dict[str, Any]]:
        """Draw what was found into a picture, save it, and return it as COCO's results."""
        boxes_ltrb_px = found.boxes_ltrb_px.tolist()
        texts = [
            f"{self._categories.name_of(label)} {score:.2f}"
            for label, score in zip(found.labels, found.scores, strict=True)
        ]
        draw_boxes(picture, boxes_ltrb_px, found.labels, texts)
        self._save(picture, self.folder / self._drawn[file.name])
        return [
            {
                "image_id": file.image_id,
                "file_name": file.name,
                "category_id": self._categories.id_of(label),
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in zip(
                boxes_ltrb_px, found.scores, found.labels, strict=True
            )
        ]

    def write_json(self, results: Sequence[dict[str, Any]]) -> None:
        """Write COCO's results list with file names, one detection a line."""
        lines = ",\n".join(json.dumps(result, allow_nan=False) for result in results)
        path = self.folder / JSON_NAME
        with writing(path, "out"), _replacing(path) as temporary:
            temporary.write_text(f"[\n{lines}\n]\n" if results else "[]\n", encoding="utf-8")

    def _save(self, picture: Image.Image, path: Path) -> None:
        kind = _KINDS[path.suffix.lower()]
        profile = picture.info.get("icc_profile")
        # A profile of grey or CMYK values is none of the RGB values that these became.
        profile = profile if profile and profile[16:20] == b"RGB " else None
        # Thin coloured lines bleed where colour is stored at half the resolution (subsampling).
        options = {"quality": 90, "subsampling": 0} if kind == "JPEG" else {}
        with writing(path, "out"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(path) as temporary:
                picture.save(temporary, format=kind, icc_profile=profile, **options)


def drawn_names(names: Sequence[str]) -> dict[str, str]:
    """Return by each picture's name what it is drawn as: JPEG and PNG keep theirs, others get .jpg added.

    As the suffix is added, never replaced, a.webp and a.tif and a.jpg stay apart.
    """
    kept = {name: name for name in names if PurePosixPath(name).suffix.lower() in _KINDS}
    drawn = dict(kept)
    for name in names:
        if name not in kept:
            target = f"{name}.jpg"
            while target in kept:  # someone's a.webp.jpg
                target += ".jpg"
            drawn[name] = target
    return drawn


def count_rows(results: Sequence[dict[str, Any]], categories: Categories) -> dict[str, str]:
    """Say of each class that was found how often and on how many pictures, the most frequent first."""
    detections = Counter(result["category_id"] for result in results)
    pictures = Counter(key for _, key in {(result["image_id"], result["category_id"]) for result in results})
    names = dict(zip(categories.ids, categories.names, strict=True))
    return {
        names[key]: f"{count:>5} on {pictures[key]:>5} picture{'s' if pictures[key] > 1 else ''}"
        for key, count in detections.most_common()
    }


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file's path, which takes the place of `path` once it is written."""
    # No longer for a long name, which may be as long as the file system has it.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
