"""All looks at a data set put together: annotation files, figures, pictures, what is between splits."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.annotation_cache import cache_folder
from data.coco_json import Source
from data.doctor.annotations import check_annotations, check_geometry
from data.doctor.config import CheckDatasetConfig, Split
from data.doctor.document import read_entries
from data.doctor.entries import check_categories, check_images
from data.doctor.findings import Finding, Kind
from data.doctor.pictures import ImageFile, check_files, check_links, find_unlisted
from data.doctor.report import DatasetReport, SplitReport
from data.doctor.splits import compare_categories
from data.doctor.statistics import describe
from data.doctor.training_view import check_as_training_does

Watch = Callable[[str, int, int], None]
"""Told how far it is: what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class _Reading:
    """A split whose annotation file was read: the report so far, and the files still to be looked at."""

    report: SplitReport
    category_names: dict[object, str]
    files: list[ImageFile]


def examine(config: CheckDatasetConfig, watch: Watch) -> DatasetReport:
    """Look at everything once. What is wrong with the data goes into the report, nothing of it is raised.

    Raises ConfigError for paths that are not given, UserError for an unusable cache.
    """
    readings = []
    for split in config.splits:
        watch(f"{split.value}: reading annotations, scoring the ground truth", 0, 1)
        readings.append(_read(split, config))
    listed = {os.path.normpath(file.path) for reading in readings for file in reading.files}
    for reading in readings:
        reading.report.findings.extend(_look_at_pictures(reading, listed, config.data.workers, watch))
    names = {reading.report.split: reading.category_names for reading in readings}
    between = [*compare_categories(names[Split.train], names[Split.val])] if len(names) == len(Split) else []
    return DatasetReport([reading.report for reading in readings], between)


def _read(split: Split, config: CheckDatasetConfig) -> _Reading:
    data = config.data.as_in_training()
    # Absolute, so that a file has one path even if the two splits name its folder differently.
    folder = Path(os.path.abspath(data.locate(f"{split.value}_images")))
    source = Source(data.locate(f"{split.value}_annotations"), folder, split.value)
    entries = read_entries(source.annotation_file)
    findings = entries.findings
    names = check_categories(entries.categories, findings)
    images = check_images(entries.images, findings)
    boxes = check_annotations(entries.annotations, images, [*names], findings)
    used = boxes.where(check_geometry(boxes, entries.annotations, data.min_box_px, findings))
    statistics = describe(used, [*names.values()], len(images))
    for name, count in statistics.boxes_of_class.items():
        if count == 0:
            findings.append(Finding(Kind.category_without_boxes, f"category {name!r}", "no box is used"))
    cache = cache_folder(data.cache)
    truth_ap = check_as_training_does(source, entries, boxes, data.min_box_px, cache)
    files = [
        ImageFile(image, os.path.join(folder, image.file_name))
        for image in images
        if image.file_name is not None
    ]
    report = SplitReport(split, source.annotation_file, folder, statistics, truth_ap, findings)
    return _Reading(report, names, files)


def _look_at_pictures(reading: _Reading, listed: set[str], threads: int, watch: Watch) -> Iterator[Finding]:
    report, folder = reading.report, reading.report.image_folder
    if not folder.is_dir():
        yield Finding(Kind.folder_missing, str(folder), "there is no such folder")
        return
    # What has no size in the annotation file is an error already, and there is nothing to compare it with.
    files = [file for file in reading.files if file.image.size_px is not None]
    done = 0

    def progress(more: int) -> None:
        nonlocal done
        done += more
        watch(f"{report.split.value}: decoding {len(files)} pictures", done, len(files))

    progress(0)
    yield from check_links(reading.files, folder)
    yield from check_files(files, threads, progress)
    yield from find_unlisted(folder, listed)
