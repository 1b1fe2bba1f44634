"""What predict.py does with a user's pictures: find files, read them, detect, draw, and write results."""

import glob
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ssd.categories import Categories
from ssd.cli import writing
from ssd.config import PredictConfig, default_threads
from ssd.console import RunConsole
from ssd.detector import Detector, Prediction
from ssd.errors import UserError, require
from ssd.image import PictureError, read_picture

# The picture formats that Pillow reads, without its documents (.eps), videos (.mpg) and data (.h5).
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".pnm", ".ppm", ".pgm", ".pbm", ".tga", ".qoi"}
)

# A picture with one of these suffixes keeps its name and format when drawn; any other gets .jpg appended.
_DRAWN_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png")


@dataclass(frozen=True)
class PictureFile:
    """A picture file to run the detector on.

    image_id: its number among all pictures found, from 1. path: the file. name: its path relative to the
    searched folder, or to the deepest folder that holds all searched ones, with /; unique among the pictures.
    drawn: where to write the picture with its boxes.
    """

    image_id: int
    path: Path
    name: str
    drawn: Path


def find_pictures(sources: Sequence[str], out: Path) -> list[PictureFile]:
    """Find the pictures of files, folders and globs, sorted by name, except those drawn earlier in `out`.

    A file given by name may have any suffix. Folders and globs give files with one of SUFFIXES, except hidden
    ones. Folders are searched recursively, without following links to folders.
    Raises UserError if a source has no pictures, `out` is a searched folder, or a drawn picture would
    overwrite a source picture or another drawn one.
    """
    drawn_in = out.resolve()
    searched = []
    found: set[Path] = set()
    for source in sources:
        folder, files = _look(source)
        fix = f"images={source} lie there; give another folder, so that none is lost"
        require(folder.resolve() != drawn_in, "out", out, fix)
        if drawn_in.is_relative_to(folder.resolve()):
            files = [file for file in files if not file.parent.resolve().is_relative_to(drawn_in)]
        fix = f"no picture found; folders and globs give files that end in {' '.join(sorted(SUFFIXES))}"
        require(bool(files), "images", source, fix)
        searched.append(folder)
        found.update(files)
    top = os.path.commonpath(searched)
    paths = {file.relative_to(top).as_posix(): file for file in found}
    taken = {os.path.realpath(file) for file in found}
    pictures = []
    for number, name in enumerate(sorted(paths), start=1):
        keeps_name = paths[name].suffix.lower() in _DRAWN_SUFFIXES
        drawn = out / (name if keeps_name else f"{name}.jpg")  # appended: keeps a.webp and a.tif apart
        fix = f"{drawn} is already another picture's; rename one or give another folder"
        require(os.path.realpath(drawn) not in taken, "out", out, fix)
        taken.add(os.path.realpath(drawn))
        pictures.append(PictureFile(number, paths[name], name, drawn))
    return pictures


def _look(source: str) -> tuple[Path, list[Path]]:
    """Return the folder that a source searches and the files that it gives, as absolute paths."""
    path = Path(os.path.abspath(source))  # Path.absolute() keeps ..; resolve() would follow links
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, list(_pictures_below(path))
    fix = "it is neither a file nor a folder; quote a name with special characters: 'images=\"…\"'"
    require(glob.has_magic(source), "images", source, fix)
    fixed = Path(source)  # ends as the deepest folder without a wildcard
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matches = [Path(os.path.abspath(each)) for each in glob.glob(source, recursive=True)]
    files = [each for each in matches if each.suffix.lower() in SUFFIXES and each.is_file()]
    return Path(os.path.abspath(fixed)), files


def _pictures_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be searched ({error.strerror}); make it readable")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                yield path  # even a broken link: reading it reports its name


def predict_pictures(
    files: Sequence[PictureFile], detector: Detector, config: PredictConfig, console: RunConsole
) -> None:
    """Find the objects in all pictures, draw and write them, and print a summary.

    Writes the drawn pictures and detections.json: COCO's result format plus file names, one detection a line.
    Raises UserError if an output can't be written. Unreadable pictures are reported after their batch and,
    once all others are done, in a UserError.
    """
    began = time.perf_counter()
    results: list[dict[str, Any]] = []
    unread: list[str] = []
    title = f"looking at {_counted(len(files), 'picture')}"
    threads = config.threads or default_threads()
    with ThreadPoolExecutor(threads) as pool, console.counting(len(files), title) as count:
        for start in range(0, len(files), config.batch_size):
            batch = files[start : start + config.batch_size]
            found, errors = _predict_batch(batch, detector, config, pool)
            console.say(*errors)
            results += found
            unread += errors
            count(len(batch))
    out = Path(config.out)
    lines = ",\n".join(json.dumps(result, allow_nan=False) for result in results)
    with writing(out / "detections.json", "out"):
        (out / "detections.json").write_text(f"[\n{lines}\n]\n" if results else "[]\n", encoding="utf-8")
    seconds = time.perf_counter() - began
    if results:
        console.table("found", _count_classes(results, detector.categories))
    done = len(files) - len(unread)
    what = f"{_counted(len(results), 'detection')} on {_counted(done, 'picture')} → {out}"
    console.say(f"{what}, {seconds:.1f} s, {done / seconds:.1f} pictures/s")
    if unread:
        failed = f"{len(unread)} of {_counted(len(files), 'picture')} could not be read:"
        raise UserError("\n  ".join([failed, *unread]))


def _predict_batch(
    files: Sequence[PictureFile], detector: Detector, config: PredictConfig, pool: ThreadPoolExecutor
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a batch of pictures, find the objects, and draw and write them; threads do all but the detection.

    Returns COCO's results and the errors of unreadable pictures. Only one batch is in memory at a time.
    """
    pictures: dict[PictureFile, Image.Image] = {}
    unread: list[str] = []
    for file, reading in [(file, pool.submit(read_picture, file.path)) for file in files]:
        try:
            pictures[file] = reading.result()
        except PictureError as error:
            unread.append(str(error))
    options = (config.threshold, config.classes, config.max_detections, config.batch_size)
    predictions = detector.predict([*pictures.values()], *options)
    list(pool.map(_draw, pictures, predictions))
    results = [
        {
            "image_id": file.image_id,
            "file_name": file.name,
            "category_id": detector.categories.id_of(label),
            "bbox": [left, top, right - left, bottom - top],
            "score": score,
        }
        for file, found in zip(pictures, predictions, strict=True)
        for (left, top, right, bottom), score, label in zip(
            found.boxes_ltrb_px.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        )
    ]
    return results, unread


def _draw(file: PictureFile, found: Prediction) -> None:
    with writing(file.drawn, "out"):
        file.drawn.parent.mkdir(parents=True, exist_ok=True)
        # No chroma subsampling: at half the colour resolution, thin coloured lines bleed.
        found.draw().save(file.drawn, quality=90, subsampling=0, icc_profile=None)


def _count_classes(results: Sequence[dict[str, Any]], categories: Categories) -> dict[str, str]:
    """Count each class's detections and the pictures that have any, the most frequent class first."""
    names = dict(zip(categories.ids, categories.names, strict=True))
    found = [(names[result["category_id"]], result["image_id"]) for result in results]
    pictures = Counter(name for name, _ in set(found))
    objects = Counter(name for name, _ in found)
    return {
        name: f"{count:>5} on {_counted(pictures[name], 'picture')}" for name, count in objects.most_common()
    }


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
