"""What does predict.py do with a user's pictures? Finds the files, reads them, detects, draws and writes."""

import glob
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from ssd.categories import Categories
from ssd.cli import writing
from ssd.config import PredictConfig, default_threads
from ssd.console import RunConsole
from ssd.detector import Detector, Prediction
from ssd.errors import UserError
from ssd.image import PictureError, read_picture

# Of what Pillow reads the kinds that are pictures: not its documents (.eps), films (.mpg) and data (.h5).
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".pnm", ".ppm", ".pgm", ".pbm", ".tga", ".qoi"}
)

# Suffixes that a drawn picture keeps, with its kind; a picture of another kind becomes a JPEG.
_DRAWN_KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG"}


@dataclass(frozen=True)
class PictureFile:
    """A picture to look at.

    image_id: its number among all found, from 1. path: where it lies. name: its path from the folder that was
    searched, or from the deepest one that holds all that were, with /: no two pictures have the same.
    drawn: where it goes with boxes drawn.
    """

    image_id: int
    path: Path
    name: str
    drawn: Path


def find_pictures(sources: Sequence[str], out: Path) -> list[PictureFile]:
    """Find the pictures of files, folders and globs, sorted by name, but not what was drawn in `out` before.

    A file that is named is taken whatever its suffix. Folders and globs give files with one of SUFFIXES, no
    pipes and devices, not hidden ones; folders are searched recursively, links to folders not followed.
    Raises UserError where a source gives nothing, where `out` is a folder that is searched, or where a drawn
    picture would replace one of the pictures.
    """
    drawn = _real(out)
    searched = []
    found: set[Path] = set()
    for source in sources:
        folder, files = _look(source)
        if _real(folder) == drawn:
            raise UserError(
                f"out={out} is where images={source} lie; give another folder, so that none is lost"
            )
        # `out` may also hold the source as a whole (out=. beside photos/); then nothing in it was drawn.
        if not _real(folder).is_relative_to(drawn):
            files = [file for file in files if not _real(file).is_relative_to(drawn)]
        if not files:
            raise UserError(
                f"images={source}: no picture in {_absolute(source)}; folders and globs give files that end "
                f"in {' '.join(sorted(SUFFIXES))}, and DIR/**/*.jpg searches all folders below DIR"
            )
        searched.append(folder)
        found.update(files)
    top = Path(os.path.commonpath(searched))
    paths = {file.relative_to(top).as_posix(): file for file in found}
    originals = {_real(file) for file in found}
    pictures = []
    for number, name in enumerate(sorted(paths), start=1):
        picture = PictureFile(number, paths[name], name, out / drawn_name(name, paths))
        if _real(picture.drawn) in originals:
            raise UserError(f"out={out}: {picture.drawn} is one of the pictures; give another folder")
        pictures.append(picture)
    return pictures


def drawn_name(name: str, names: Collection[str]) -> str:
    """Return what a picture is drawn as: JPEG and PNG keep their names, others get .jpg added.

    As the suffix is added, never replaced, a.webp and a.tif and a.jpg stay apart. names: of all pictures.
    """
    if PurePosixPath(name).suffix.lower() not in _DRAWN_KINDS:
        name += ".jpg"
        while name in names:  # someone's a.webp.jpg
            name += ".jpg"
    return name


def _look(source: str) -> tuple[Path, list[Path]]:
    """Return the folder that a source stands for and the files that it names, as absolute paths."""
    path = _absolute(source)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, list(_pictures_below(path))
    if not glob.has_magic(source):
        raise UserError(
            f"images={source}: {path} is neither a file nor a folder; a name with special characters needs "
            "quotes: 'images=\"…\"'"
        )
    fixed = Path(source)  # the folder down to where the glob begins to vary
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matches = map(_absolute, glob.glob(source, recursive=True))
    files = [each for each in matches if each.suffix.lower() in SUFFIXES and each.is_file()]
    return _absolute(str(fixed)), files


def _absolute(source: str) -> Path:
    return Path(os.path.abspath(source))  # Path.absolute() leaves .. in; resolve() would follow links


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # resolve() raises RuntimeError where links go in circles


def _pictures_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be searched ({error.strerror}); make it readable")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(parent, name)
            # Pipes and devices may never end. A broken link is named when it is read.
            special = os.path.exists(path) and not os.path.isfile(path)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES and not special:
                yield path


def _read(file: PictureFile) -> Image.Image | PictureError:
    try:
        return read_picture(file.path)
    except PictureError as error:
        return error


@dataclass(frozen=True)
class Output:
    """The folder of drawn pictures and detections.json; a file is written whole or not at all."""

    folder: Path
    categories: Categories

    def write_picture(self, file: PictureFile, found: Prediction) -> list[dict[str, Any]]:
        """Draw what was found into a picture, save it, and return it as COCO's results."""
        picture = found.draw()
        kind = _DRAWN_KINDS[file.drawn.suffix.lower()]
        profile = picture.info.get("icc_profile")
        # A profile of grey or CMYK values is none of the RGB values that these became.
        profile = profile if profile and profile[16:20] == b"RGB " else None
        # Thin coloured lines bleed where colour is stored at half the resolution (subsampling).
        options = {"quality": 90, "subsampling": 0} if kind == "JPEG" else {}
        with _replacing(file.drawn) as temporary:
            picture.save(temporary, format=kind, icc_profile=profile, **options)
        return [
            {
                "image_id": file.image_id,
                "file_name": file.name,
                "category_id": self.categories.id_of(label),
                "bbox": [left, top, right - left, bottom - top],
                "score": score,
            }
            for (left, top, right, bottom), score, label in zip(
                found.boxes_ltrb_px.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ]

    def write_json(self, results: Sequence[dict[str, Any]]) -> None:
        """Write COCO's results list with file names, one detection a line."""
        lines = ",\n".join(json.dumps(result, allow_nan=False) for result in results)
        with _replacing(self.folder / "detections.json") as temporary:
            temporary.write_text(f"[\n{lines}\n]\n" if results else "[]\n", encoding="utf-8")


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file's path, which replaces `path` once it is written. Raises UserError."""
    # No longer for a long name, which may be as long as the file system has it.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    with writing(path, "out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def predict_pictures(
    files: Sequence[PictureFile],
    detector: Detector,
    output: Output,
    config: PredictConfig,
    console: RunConsole,
) -> None:
    """Find, draw and write the objects of all pictures, and say what was found.

    A batch's pictures are read in threads, then the network sees them, then they are drawn and written in
    threads: however many there are, one batch of whole pictures is in memory.
    Raises UserError where one can't be written, and at the end, after the others are done, where pictures
    couldn't be read; each of those is named as soon as it is met.
    """
    began = time.perf_counter()
    results: list[dict[str, Any]] = []
    unread: list[str] = []
    title = f"looking at {_counted(len(files), 'picture')}"
    threads = config.threads or default_threads()
    with ThreadPoolExecutor(threads) as pool, console.counting(len(files), title) as count:
        for start in range(0, len(files), config.batch_size):
            named = files[start : start + config.batch_size]
            batch, pictures = [], []
            for file, outcome in zip(named, pool.map(_read, named), strict=True):
                if isinstance(outcome, PictureError):
                    console.say(str(outcome))
                    unread.append(str(outcome))
                    count(1)
                else:
                    batch.append(file)
                    pictures.append(outcome)
            options = (config.threshold, config.classes, config.max_detections, config.batch_size)
            # Without a name, which would hold the pictures while the next ones are read.
            for written in pool.map(output.write_picture, batch, detector.predict(pictures, *options)):
                results += written
                count(1)
    output.write_json(results)
    seconds = time.perf_counter() - began
    if results:
        console.table(f"found → {output.folder}", count_rows(results, output.categories))
    else:
        console.say(f"nothing has a score above threshold={config.threshold} → {output.folder}")
    done = len(files) - len(unread)
    what = f"{_counted(len(results), 'detection')} on {_counted(done, 'picture')}"
    console.say(f"{what}, {seconds:.1f} s, {done / seconds:.1f} pictures/s")
    if unread:
        failed = f"{len(unread)} of {_counted(len(files), 'picture')} could not be read:"
        raise UserError("\n  ".join([failed, *unread]))


def count_rows(results: Sequence[dict[str, Any]], categories: Categories) -> dict[str, str]:
    """Say of each class that was found how often and on how many pictures, the most frequent first."""
    names = dict(zip(categories.ids, categories.names, strict=True))
    found = [(result["image_id"], names[result["category_id"]]) for result in results]
    pictures = Counter(name for _, name in set(found))
    return {
        name: f"{count:>5} on {pictures[name]:>5} picture{'s' if pictures[name] > 1 else ''}"
        for name, count in Counter(name for _, name in found).most_common()
    }


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
