"""All looks at a data set put together: annotation files, figures, pictures, what is between splits."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.coco_json import Source
from data.doctor.annotations import ReadBoxes, check_annotations, check_geometry
from data.doctor.document import read_entries
from data.doctor.entries import ListedImage, check_categories, check_images
from data.doctor.findings import Finding, Kind
from data.doctor.pictures import ImageFile, check_files, check_links, find_unlisted
from data.doctor.report import DatasetReport, SplitReport
from data.doctor.splits import compare_categories
from data.doctor.statistics import Statistics, describe
from data.doctor.training_view import check_truth, open_as_training_does
from data.doctor.truth import explain_loss
from data.index import cache_folder
from ssd.config import CheckDatasetConfig, Split

Watch = Callable[[str, int, int], None]
"""Told how far it is: what is being done, how much of it is done, and how much there is."""


_STAGES = ("reading the annotation file", "opening it as training does", "scoring the ground truth")


@dataclass(frozen=True)
class _Content:
    """What an annotation file holds, without the entries themselves, which take gigabytes of a large one.

    losses: why some of the ground truth can't be found again, if it turns out that it can't.
    """

    findings: list[Finding]
    category_names: dict[object, str]
    images: list[ListedImage]
    boxes: ReadBoxes
    statistics: Statistics
    losses: list[Finding]


@dataclass(frozen=True)
class _Reading:
    """A split whose annotation file was read: the report so far, and the files still to be looked at."""

    report: SplitReport
    category_names: dict[object, str]
    files: list[ImageFile]


def examine(config: CheckDatasetConfig, watch: Watch) -> DatasetReport:
    """Look at everything once. What is wrong with the data goes into the report, nothing of it is raised.

    Raises UserError for paths that are not given, UserError for an unusable cache.
    """
    readings = [_read(split, config, watch) for split in config.splits]
    listed = {os.path.normpath(file.path) for reading in readings for file in reading.files}
    listed |= {os.path.abspath(reading.report.annotation_file) for reading in readings}
    for reading in readings:
        reading.report.findings.extend(_look_at_pictures(reading, listed, config.data.workers, watch))
    names = {reading.report.split: reading.category_names for reading in readings}
    between = [*compare_categories(names[Split.train], names[Split.val])] if len(names) == len(Split) else []
    return DatasetReport([reading.report for reading in readings], between)


def _read(split: Split, config: CheckDatasetConfig, watch: Watch) -> _Reading:
    data = config.data.as_in_training()
    # Absolute, so that a file has one path even if the two splits name its folder differently.
    folder = Path(os.path.abspath(data.locate(f"{split.value}_images")))
    source = Source(data.locate(f"{split.value}_annotations"), folder, split.value)

    def begin(stage: int) -> None:
        watch(f"{split.value}: {_STAGES[stage]}", stage, len(_STAGES))

    begin(0)
    content = _read_content(source.annotation_file, data.min_box_px)
    begin(1)
    index = open_as_training_does(source, data.min_box_px, cache_folder(data.cache), content.findings)
    truth = None
    if index is not None:
        begin(2)
        truth = check_truth(index, content.boxes, content.losses, content.findings)
    files = [
        ImageFile(image, os.path.join(folder, image.file_name))
        for image in content.images
        if image.file_name is not None
    ]
    report = SplitReport(split, source.annotation_file, folder, content.statistics, truth, content.findings)
    return _Reading(report, content.category_names, files)


def _read_content(annotation_file: Path, min_box_px: float) -> _Content:
    entries = read_entries(annotation_file)
    findings = entries.findings
    names = check_categories(entries.categories, findings)
    images = check_images(entries.images, findings)
    boxes = check_annotations(entries.annotations, images, [*names], findings)
    used = boxes.where(check_geometry(boxes, entries.annotations, min_box_px, findings))
    statistics = describe(used, [*names.values()], len(images))
    for name, count in statistics.boxes_of_class.items():
        if count == 0:
            findings.append(Finding(Kind.category_without_boxes, f"category {name!r}", "no box is used"))
    losses = [*explain_loss(boxes, entries.annotations)]
    return _Content(findings, names, images, boxes, statistics, losses)


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
