"""Build loaders and evaluator from the config's `data` section, with the same data on all ranks.

This is the only place where data and training meet.
"""

import os
import socket
from datetime import timedelta

import numpy as np

from data.graph import GraphOptions
from data.index import CocoIndex, Selection, cache_folder, read_index
from data.loader import DaliEvaluationLoader, DaliTrainLoader
from data.pictures import CRASHES, bad_images_error, exclude, find_bad_images
from data.sampling import BatchPlan
from ssd.categories import Categories
from ssd.config import Check, DataConfig, Decoder, OnBadImage, TrainConfig, default_threads
from ssd.console import RunConsole
from ssd.distributed import Ranks
from ssd.evaluation.evaluator import Evaluator
from ssd.runtime import Runtime
from ssd.training.session import Session
from ssd.training.state import SavedRun, images_per_rank
from ssd.training.trainer import Task

_FIX = "Fix or remove them; python scripts/check_dataset.py data.path=… lists every defect"


def open_training(
    config: TrainConfig, saved: SavedRun | None, session: Session
) -> tuple[Task, dict[str, str]]:
    """Read both annotation files and build this rank's input; return it with rows for the start-up table.

    saved: the checkpoint to resume from; it says which images are excluded.
    Raises UserError if the data can't be used, or if the two files have different classes.
    """
    data, ranks = config.data, session.ranks
    batch_size = images_per_rank(config, saved, ranks)
    train, excluded, crashing = _read_training(data, saved, session)
    loader = DaliTrainLoader(
        BatchPlan(train, batch_size * ranks.world_size, config.seed, data.augment),
        _graph_options(batch_size, data, session.runtime, ranks),
        ranks.rank,
        known_bad=crashing if data.on_bad_image is OnBadImage.quarantine else None,
    )
    timeout = timedelta(minutes=config.evaluation.timeout_minutes)
    evaluator, val = open_evaluation(data, train.categories, timeout, session.runtime, ranks, session.console)
    examples = pick_examples(val, config.evaluation.pictures)
    task = Task(loader, batch_size, evaluator, examples, train.categories, train.fingerprint(), excluded)
    return task, {"training images": describe(train), "validation images": describe(val)}


def _read_training(
    data: DataConfig, saved: SavedRun | None, session: Session
) -> tuple[CocoIndex, list[int], dict[int, str]]:
    """Return the remaining training images, the ids of the excluded ones, and the images never to be opened.

    A run excludes the images that are bad when it begins. After a resume it excludes the same ones, so that
    its steps stay the same. Images that went bad since are replaced in the steps that can't read them, as
    they would have been without the interruption; only files that would crash the process are replaced
    unread.
    """
    index = _read(data, Selection("train", data.limit, data.crowd, data.min_box_px), session.ranks)
    bad = _find_bad(index, data, session.ranks, session.console)
    excluded: list[int] = saved.excluded_images if saved else []
    remaining = exclude(index, excluded)
    # With other annotations (resume.override) the run continues as if it had begun with them.
    begins = saved is None or remaining.fingerprint() != saved.fingerprint
    if not begins:
        bad = {image_id: line for image_id, line in bad.items() if image_id not in excluded}
    if data.on_bad_image is OnBadImage.fail:
        _refuse(bad, index, f"{_FIX}, or exclude them with data.on_bad_image=quarantine")
    if begins:
        for line in bad.values():
            session.console.say(f"bad image, excluded: {line}")
        return exclude(index, bad), sorted(bad), {}
    for line in bad.values():
        session.console.say(
            f"bad image since the run began, replaced in each step that can't read it: {line}"
        )
    return remaining, excluded, {image_id: line for image_id, line in bad.items() if CRASHES in line}


def open_evaluation(
    data: DataConfig,
    trained: Categories | None,
    timeout: timedelta,
    runtime: Runtime,
    ranks: Ranks,
    console: RunConsole,
) -> tuple[Evaluator, CocoIndex]:
    """Read all validation images and build this rank's part of their evaluation.

    trained: the meaning of the network's labels; None takes the annotation file's categories in their order.
    timeout: how long the other ranks wait for rank 0's numbers.
    Raises UserError if the data can't be used or has other classes. A bad image is an error too: without it,
    this would be a different evaluation.
    """
    file = data.locate("val_annotations")
    # The file is scored as it is; this only selects the images.
    selection = Selection("val", data.limit, min_box_px=0.0, images_without_boxes=True)
    index = _read(data, selection, ranks)
    _refuse(_find_bad(index, data, ranks, console), index, _FIX)
    if trained is not None:
        trained.check_scored_by(index.categories, file)
    options = _graph_options(min(data.batch_size, len(index)), data, runtime, ranks)
    evaluator = Evaluator(
        loader=DaliEvaluationLoader(index, options, ranks.rank, ranks.world_size),
        annotation_file=file,
        image_ids=None if data.limit is None else index.image_ids.tolist(),
        images=len(index),
        images_without_truth=int((np.diff(index.box_starts) == 0).sum()),
        categories=trained or index.categories,
        timeout=timeout,
    )
    return evaluator, index


def describe(index: CocoIndex) -> str:
    """Say which images and boxes of an annotation file are used, and why others aren't."""
    dropped = [f"{count} {reason}" for reason, count in index.dropped.items() if count]
    used = f"{len(index)} with {len(index.labels)} boxes of {len(index.categories.ids)} classes"
    return used + (f"; not used: {', '.join(dropped)}" if dropped else "")


def pick_examples(index: CocoIndex, count: int) -> dict[int, str]:
    """Choose up to `count` images with boxes, spread evenly over the file, to draw at each evaluation.

    Returns their paths by image id.
    """
    with_boxes = np.flatnonzero(np.diff(index.box_starts))
    count = min(count, len(with_boxes))
    chosen = np.linspace(0, len(with_boxes) - 1, count).round().astype(np.int64)
    return {int(index.image_ids[image]): index.path(image) for image in with_boxes[chosen].tolist()}


def _read(data: DataConfig, selection: Selection, ranks: Ranks) -> CocoIndex:
    """Read the selection's split. Raises UserError on every rank unless all ranks have read the same data."""
    files = data.locate(f"{selection.split}_annotations"), data.locate(f"{selection.split}_images")
    index = ranks.on_all(lambda: read_index(*files, selection, cache_folder(data.cache)))
    if ranks.world_size > 1:  # each host has its own disk, whose copy may be stale
        read = ranks.gather((index.fingerprint(), socket.gethostname()))
        if len({fingerprint for fingerprint, _ in read}) > 1:
            named = "; ".join(f"{fingerprint[:8]} on {host}" for fingerprint, host in dict.fromkeys(read))
            raise index.source.error(
                f"the ranks have read different images, boxes or categories, fingerprint {named}. Give all "
                "hosts the same file, and all ranks the same data.limit, data.crowd and data.min_box_px"
            )
    return index


def _find_bad(index: CocoIndex, data: DataConfig, ranks: Ranks, console: RunConsole) -> dict[int, str]:
    """Return the images that are bad on any host. One rank per host checks that host's files."""

    def check() -> dict[int, str]:
        if data.check is Check.off or ranks.local_rank != 0:
            return {}
        threads = data.threads or len(os.sched_getaffinity(0))
        decode = data.check is Check.full
        return find_bad_images(index, decode, threads, cache_folder(data.cache), console)

    bad: dict[int, str] = {}
    for of_rank in ranks.gather(ranks.on_all(check)):
        bad |= of_rank
    return bad


def _refuse(bad: dict[int, str], index: CocoIndex, fix: str) -> None:
    """Raise UserError with the first few bad images, if there are any."""
    if bad:
        given = f"data.{index.source.split}_images={index.source.image_folder}"
        count = f"{len(bad)} of {len(index)} image files can't be used, such as"
        raise bad_images_error(f"{given}: {count}", bad.values(), fix)


def _graph_options(batch_size: int, data: DataConfig, runtime: Runtime, ranks: Ranks) -> GraphOptions:
    threads = data.threads or default_threads(ranks.local_world_size)
    device_id = None if ranks.device.type == "cpu" else ranks.device.index
    return GraphOptions(batch_size, runtime.image_dtype, threads, device_id, data.decoder is Decoder.gpu)
