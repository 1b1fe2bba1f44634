"""What does predict.py do with a user's pictures? Finds the files, reads them, detects, draws and writes."""

import glob
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from ssd.boxes import default_boxes
from ssd.categories import Categories
from ssd.cli import writing
from ssd.config import PredictConfig, default_threads
from ssd.console import RunConsole
from ssd.detect import detect
from ssd.errors import UserError
from ssd.image import PictureError, draw_boxes, normalize, read_picture, squash
from ssd.runtime import Runtime

# Of what Pillow reads the kinds that are pictures: not its documents (.eps), films (.mpg) and data (.h5).
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib"}
    | {".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".pnm", ".ppm", ".pgm", ".pbm", ".tga", ".qoi"}
)

# Suffixes that a drawn picture keeps, with its kind; a picture of another kind becomes a JPEG.
_DRAWN_KINDS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG"}


class PictureFile(NamedTuple):
    """A picture to look at.

    image_id: its number among all found, from 1. name: its path from the folder that was searched, or from
    the deepest one that holds all that were, with /: no two pictures have the same. drawn: where it is drawn.
    """

    image_id: int
    path: Path
    name: str
    drawn: Path


def find_pictures(sources: Sequence[str], out: Path) -> list[PictureFile]:
    """Find the pictures of files, folders and globs, sorted by name, but not what was drawn in `out` before.

    A file that is named is taken whatever its suffix. Folders and globs give files with one of SUFFIXES, not
    hidden ones; folders are searched recursively, links to folders not followed.
    Raises UserError where a source gives nothing, or where a drawn picture could replace one of the pictures.
    """
    searched = []
    found: set[Path] = set()
    for source in sources:
        folder, files = _look(source)
        if folder.resolve() == out.resolve():
            raise UserError(f"out={out} is where images={source} lie; give another folder, so none is lost")
        # `out` may also hold the source as a whole (out=. beside photos/); then nothing in it was drawn.
        if not folder.resolve().is_relative_to(out.resolve()):
            files = [file for file in files if not file.resolve().is_relative_to(out.resolve())]
        if not files:
            fix = f"DIR and DIR/**/* give files that end in {' '.join(sorted(SUFFIXES))}"
            raise UserError(f"images={source}: no picture in {_absolute(source)}; {fix}")
        searched.append(folder)
        found.update(files)
    top = Path(os.path.commonpath(searched))
    paths = {path.relative_to(top).as_posix(): path for path in found}
    originals = {path.resolve() for path in found}
    pictures = []
    for number, name in enumerate(sorted(paths), start=1):
        drawn = out / _drawn_name(name, paths)
        if drawn.resolve() in originals:
            raise UserError(f"out={out}: {drawn} is one of the pictures; give another folder")
        pictures.append(PictureFile(number, paths[name], name, drawn))
    return pictures


def _look(source: str) -> tuple[Path, list[Path]]:
    """Return the folder that a source stands for and the files that it names, as absolute paths."""
    path = _absolute(source)
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        return path, list(_pictures_below(path))
    if not glob.has_magic(source):
        fix = "a name with special characters needs quotes: 'images=\"…\"'"
        raise UserError(f"images={source}: {path} is neither a file nor a folder; {fix}")
    fixed = Path(source)  # the folder down to where the glob begins to vary
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matches = map(_absolute, glob.glob(source, recursive=True))
    files = [each for each in matches if each.suffix.lower() in SUFFIXES and each.is_file()]
    return _absolute(str(fixed)), files


def _absolute(source: str) -> Path:
    return Path(os.path.abspath(source))  # Path.absolute() leaves .. in; resolve() would follow links


def _pictures_below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} can't be searched ({error.strerror}); make it readable")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent, name)


def _drawn_name(name: str, names: Collection[str]) -> str:
    """JPEG and PNG keep their names; others get .jpg added until it is no other picture's name."""
    if PurePosixPath(name).suffix.lower() in _DRAWN_KINDS:
        return name
    name += ".jpg"
    while name in names:
        name += ".jpg"
    return name


class Found(NamedTuple):
    """What was found on one picture, best first.

    boxes_ltrb_px: K×4 in pixels of the picture, not clipped (RECIPE 7). scores: K. labels: K, from 1.
    """

    boxes_ltrb_px: list[list[float]]
    scores: list[float]
    labels: list[int]


@dataclass(frozen=True)
class Predictor:
    """Runs a network, in evaluation mode and where the runtime has it, over pictures.

    Of what it finds with a score above the threshold, the `max_detections` best with these labels are kept.
    """

    network: nn.Module
    runtime: Runtime
    labels: frozenset[int]
    threshold: float
    max_detections: int

    @torch.inference_mode()
    def __call__(self, squashed: Sequence[Image.Image], sizes_px: Sequence[tuple[int, int]]) -> list[Found]:
        """Find the objects of N pictures, given as the network takes them, 300×300, and their own sizes.

        Raises UserError where the network's outputs are not finite.
        """
        device = self.runtime.device
        values = np.stack([np.asarray(picture) for picture in squashed]).astype(np.float32) / 255
        images = normalize(values).to(device, self.runtime.image_dtype)
        with self.runtime.autocast():
            offsets, logits = self.network(self.runtime.arrange(images))
        if not (offsets.isfinite().all() and logits.isfinite().all()):
            fix = "give runtime.precision=fp32, or another checkpoint where that is so in fp32 too"
            raise UserError(f"the network's outputs are not finite in {self.runtime.precision.value}; {fix}")
        # Classes don't suppress each other: an image's detections are counted without the unwanted ones.
        most = logits.shape[1] * logits.shape[2]
        detected = detect(offsets, logits, default_boxes().to(device), self.threshold, max_detections=most)
        wanted = torch.tensor(sorted(self.labels), device=device)
        found = []
        for (boxes_ltrb, scores, labels), size_px in zip(detected, sizes_px, strict=True):
            best = torch.isin(labels, wanted).nonzero()[: self.max_detections, 0]
            boxes_ltrb_px = boxes_ltrb[best].cpu().double() * torch.tensor(size_px).repeat(2)
            found.append(Found(boxes_ltrb_px.tolist(), scores[best].tolist(), labels[best].tolist()))
        return found


def predict_pictures(
    files: Sequence[PictureFile],
    predictor: Predictor,
    categories: Categories,
    config: PredictConfig,
    console: RunConsole,
) -> None:
    """Find, draw and write the objects of all pictures, and say what was found.

    Threads read, draw and write; however many pictures there are, two batches of them at most are in memory.
    Raises UserError where one can't be written and, after all others are done, for those that can't be read.
    """
    began = time.perf_counter()
    results: list[dict[str, Any]] = []
    unread: list[PictureError] = []
    title = f"looking at {_counted(len(files), 'picture')}"
    threads = config.threads or default_threads()
    with ThreadPoolExecutor(threads) as pool, console.counting(len(files), title) as count:
        for start in range(0, len(files), config.batch_size):
            outcomes = [*pool.map(_read, files[start : start + config.batch_size])]
            unread += [each for each in outcomes if isinstance(each, PictureError)]
            batch = [each for each in outcomes if not isinstance(each, PictureError)]
            if batch:
                found = predictor([each.squashed for each in batch], [each.picture.size for each in batch])
                for written in pool.map(partial(write_picture, categories), batch, found):
                    results += written
            count(len(outcomes))
    # COCO's results list with file names, one detection a line.
    lines = ",\n".join(json.dumps(result, allow_nan=False) for result in results)
    _write(Path(config.out, "detections.json"), f"[\n{lines}\n]\n".encode() if results else b"[]\n")
    seconds = time.perf_counter() - began
    if results:
        console.table(f"found → {config.out}", _count_rows(results, categories))
    else:
        console.say(f"nothing has a score above threshold={predictor.threshold} → {config.out}")
    done = len(files) - len(unread)
    what = f"{_counted(len(results), 'detection')} on {_counted(done, 'picture')}"
    console.say(f"{what}, {seconds:.1f} s, {done / seconds:.1f} pictures/s")
    if unread:
        failed = f"{len(unread)} of {_counted(len(files), 'picture')} could not be read:"
        raise UserError("\n  ".join([failed, *map(str, unread)]))


class ReadPicture(NamedTuple):
    """A picture as a person sees it and, but for the number format, as the network does: 300×300."""

    file: PictureFile
    picture: Image.Image
    squashed: Image.Image


def _read(file: PictureFile) -> ReadPicture | PictureError:
    # As any terminal can print it: file names need not be UTF-8.
    name = os.fsencode(file.path).decode("utf-8", "replace")
    try:
        picture = read_picture(file.path, name)
    except PictureError as error:
        return error
    return ReadPicture(file, picture, squash(picture))


def write_picture(categories: Categories, read: ReadPicture, found: Found) -> list[dict[str, Any]]:
    """Draw what was found into a picture, write it, and return it as COCO's results with the file's name.

    Raises UserError where it can't be written.
    """
    file, picture, _ = read
    detections = list(zip(*found, strict=True))
    texts = [f"{categories.name_of(label)} {score:.2f}" for _, score, label in detections]
    draw_boxes(picture, found.boxes_ltrb_px, found.labels, texts)
    profile = picture.info.get("icc_profile", b"")
    # A profile of grey or CMYK values is none of the RGB values that these became.
    profile = profile if profile[16:20] == b"RGB " else None
    content, kind = BytesIO(), _DRAWN_KINDS[file.drawn.suffix.lower()]
    # Thin coloured lines bleed where colour is stored at half the resolution (subsampling).
    picture.save(content, kind, icc_profile=profile, quality=90, subsampling=0)
    _write(file.drawn, content.getvalue())
    source = {"image_id": file.image_id, "file_name": file.name}
    results = []
    for (left, top, right, bottom), score, label in detections:
        ltwh_px = [left, top, right - left, bottom - top]
        results.append(source | {"category_id": categories.id_of(label), "bbox": ltwh_px, "score": score})
    return results


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    # No longer for a long name, which may be as long as the file system has it.
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}.tmp")
    with writing(path, "out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _count_rows(results: Sequence[dict[str, Any]], categories: Categories) -> dict[str, str]:
    """Say of each class that was found how often and on how many pictures, the most frequent first."""
    detections = Counter(result["category_id"] for result in results)
    pictures = Counter(key for _, key in {(result["image_id"], result["category_id"]) for result in results})
    names = dict(zip(categories.ids, categories.names, strict=True))
    return {
        names[key]: f"{count:>5} on {pictures[key]:>5} picture{'s' if pictures[key] > 1 else ''}"
        for key, count in detections.most_common()
    }


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
