"""Which images of a data set are left out because their files can't be trained on, found before training.

The verdict on a data set is kept in the cache folder, under a key of all that it depends on: the annotations,
the image folder, and each file's name, size and time of change.
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from filelock import FileLock

from data.coco import CocoIndex
from data.errors import DatasetError
from data.image_files import Level, inspect_all
from ssd.console import RunConsole
from ssd.errors import UserError

NAMED_FILES = 5
"""Bad files that a message lists."""


def find_bad_files(
    index: CocoIndex, level: Level, threads: int, cache: Path, console: RunConsole
) -> dict[int, str]:
    """Look at every image file, or take the verdict of an earlier look; return why, by the bad images' ids.

    The processes of one machine take turns: the first looks, the others find its verdict.
    Raises UserError where the cache folder can't be written.
    """
    place = f"{index.source.annotation_file.resolve()} {index.source.image_folder.resolve()} {level.value}"
    path = cache / f"files-{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"
    key = _key(index, level)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            known = _read(path, key)
            if known is None:
                known = _inspect(index, level, threads, console)
                temporary = path.with_suffix(".tmp")
                temporary.write_text(json.dumps({"key": key, "bad": known}), encoding="utf-8")
                temporary.replace(path)
            return known
    except OSError as error:
        raise UserError(
            f"data.cache={cache}: can't be written ({error.strerror or error}); give data.cache=DIR"
        ) from error


def refuse(bad: dict[int, str], index: CocoIndex, mend: str) -> None:
    """Raise DatasetError naming the first few bad files, if there are any."""
    if bad:
        named = "; ".join(f"{why} (image id {image_id})" for image_id, why in [*bad.items()][:NAMED_FILES])
        raise DatasetError(
            f"{index.source.images_key}={index.source.image_folder}: {len(bad)} of {len(index)} image files "
            f"can't be used, such as {named}. {mend}"
        )


def leave_out(index: CocoIndex, image_ids: list[int]) -> CocoIndex:
    """Return the index that an annotation file without these images and their boxes would give."""
    kept = ~np.isin(index.image_ids, image_ids)
    if not kept.any():
        raise DatasetError(f"{index.source.annotations_key}: no image is left, all of their files are bad")
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


def _read(path: Path, key: str) -> dict[int, str] | None:
    """Return the verdict that was kept under the key; None where there is none or a damaged one."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return {int(image_id): why for image_id, why in kept["bad"].items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        pass  # it is made anew
    return None


def _inspect(index: CocoIndex, level: Level, threads: int, console: RunConsole) -> dict[int, str]:
    paths = [index.path(image) for image in range(len(index))]
    title = f"checking {len(index)} image files of {index.source.image_folder} (data.check={level.value})"
    with console.counting(len(index), title) as report:
        found = inspect_all(paths, index.sizes_px, level, threads, report)
    return {
        int(index.image_ids[place]): f"{paths[place]}: {defect.detail}" for place, defect in found.items()
    }


def _key(index: CocoIndex, level: Level) -> str:
    digest = hashlib.sha256(
        f"{level.value} {index.fingerprint()} {index.source.image_folder.resolve()}".encode()
    )
    for image in range(len(index)):
        digest.update(_size_and_time(index.path(image)).encode())
    return digest.hexdigest()[:32]


def _size_and_time(path: str) -> str:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"{error};"
    return f"{status.st_size} {status.st_mtime_ns};"
