"""From the config's `data` section to what the trainer and the evaluator take."""

import os
from datetime import timedelta

import numpy as np

from data.agreement import require_same_data
from data.annotation_cache import cache_folder
from data.coco import CocoIndex, Selection, read_index
from data.file_verdicts import find_bad_files
from data.image_files import Level
from data.loader import DaliEvaluationLoader, DaliTrainLoader, Placement
from data.quarantine import leave_out, refuse
from ssd.categories import Categories
from ssd.config import Check, DataConfig, OnBadImage, TrainConfig, default_threads
from ssd.console import RunConsole
from ssd.distributed import Ranks
from ssd.evaluation.evaluator import Evaluator, Example
from ssd.runtime import Runtime
from ssd.training.session import Session
from ssd.training.state import SavedRun, images_per_rank
from ssd.training.trainer import Task

_DOCTOR = "Mend or remove them; python scripts/check_dataset.py data.path=… lists every defect"


def open_training(
    config: TrainConfig, saved: SavedRun | None, session: Session
) -> tuple[Task, dict[str, str]]:
    """Read both annotation files and build this rank's input; return it with rows for the start-up table.

    saved: the checkpoint that the run goes on from; it says which images are left out.
    Raises UserError for data that can't be used, UserError where the two files have other classes.
    """
    data, ranks = config.data, session.ranks
    batch_size = images_per_rank(config, saved, ranks)
    train, excluded, replaced = _trainable(data, saved, session)
    loader = DaliTrainLoader(
        train,
        _placement(data, session.runtime, ranks),
        batch_size,
        config.seed,
        augment=data.augment,
        quarantined=replaced if data.on_bad_image is OnBadImage.quarantine else None,
    )
    timeout = timedelta(minutes=config.evaluation.timeout_minutes)
    evaluator, val = open_evaluation(data, train.categories, timeout, session.runtime, ranks, session.console)
    examples = pick_examples(val, config.evaluation.pictures)
    task = Task(loader, batch_size, evaluator, examples, train.categories, train.fingerprint(), excluded)
    return task, {"training images": describe(train), "validation images": describe(val)}


def _trainable(
    data: DataConfig, saved: SavedRun | None, session: Session
) -> tuple[CocoIndex, list[int], dict[int, str]]:
    """Read the training annotations without the images whose files are bad.

    Returns besides these images' ids, and why by id of those to be replaced in their batches: a run that goes
    on leaves out what it did from the start, so that its steps stay, and replaces what turned bad since.
    """
    selection = Selection("train", data.limit, data.crowd, data.min_box_px)
    index = _read(data, selection, session.ranks)
    excluded: list[int] = saved.excluded_images if saved else []
    # On other annotations (resume.override) the run goes on as if it began with them.
    begins = saved is None or leave_out(index, excluded).fingerprint() != saved.fingerprint
    bad = _find_bad(index, data, session.ranks, session.console)
    new = {image_id: why for image_id, why in bad.items() if begins or image_id not in excluded}
    if data.on_bad_image is OnBadImage.fail:
        refuse(new, index, f"{_DOCTOR}, or leave them out with data.on_bad_image=quarantine")
    if begins:
        session.console.say(*(f"left out: {why}" for why in new.values()))
        excluded, new = sorted(new), {}
    session.console.say(*(f"bad since the run began, replaced when met: {why}" for why in new.values()))
    return leave_out(index, excluded), excluded, new


def _read(data: DataConfig, selection: Selection, ranks: Ranks) -> CocoIndex:
    """Read the selection's split, on all ranks the same."""
    files = data.locate(f"{selection.split}_annotations"), data.locate(f"{selection.split}_images")
    index = ranks.on_all(lambda: read_index(*files, selection, cache_folder(data.cache)))
    require_same_data(index, ranks)
    return index


def _find_bad(index: CocoIndex, data: DataConfig, ranks: Ranks, console: RunConsole) -> dict[int, str]:
    """Return what is bad on any host: each may have a copy of the files, which one of its ranks looks at."""

    def look() -> dict[int, str]:
        if data.check is Check.off or ranks.local_rank != 0:
            return {}
        threads = len(os.sched_getaffinity(0)) if data.threads is None else data.threads
        return find_bad_files(index, Level(data.check.value), threads, cache_folder(data.cache), console)

    bad: dict[int, str] = {}
    for of_rank in ranks.gather(ranks.on_all(look)):
        bad |= of_rank
    return bad


def open_evaluation(
    data: DataConfig,
    trained: Categories | None,
    timeout: timedelta,
    runtime: Runtime,
    ranks: Ranks,
    console: RunConsole,
) -> tuple[Evaluator, CocoIndex]:
    """Read the validation annotations, every image of them, and build this rank's part of their evaluation.

    trained: what the network's labels mean; None takes the annotation file's categories in their order.
    timeout: how long other ranks wait for rank 0's numbers.
    Raises UserError for data that can't be used (a bad image is never left out: that would be another
    evaluation), UserError where it has other classes.
    """
    file = data.locate("val_annotations")
    # Scored is the file as it stands; this cleaning is for the pictures that are shown.
    selection = Selection("val", data.limit, min_box_px=0.0, images_without_boxes=True)
    index = _read(data, selection, ranks)
    refuse(_find_bad(index, data, ranks, console), index, _DOCTOR)
    if trained is not None:
        trained.check_scored_by(index.categories, file)
    evaluator = Evaluator(
        loader=DaliEvaluationLoader(index, _placement(data, runtime, ranks), data.batch_size),
        annotation_file=file,
        image_ids=None if data.limit is None else index.image_ids.tolist(),
        images=len(index),
        images_without_truth=int((np.diff(index.box_starts) == 0).sum()),
        categories=trained or index.categories,
        timeout=timeout,
    )
    return evaluator, index


def describe(index: CocoIndex) -> str:
    """Say what of an annotation file is used, what isn't, and why."""
    dropped = [f"{count} {reason}" for reason, count in index.dropped.items() if count]
    used = f"{len(index)} with {len(index.labels)} boxes of {len(index.categories.ids)} classes"
    return used + (f"; not used: {', '.join(dropped)}" if dropped else "")


def pick_examples(index: CocoIndex, count: int) -> list[Example]:
    """Choose up to `count` images with boxes, evenly over the file, to be shown at each evaluation."""
    with_boxes = np.flatnonzero(np.diff(index.box_starts))
    count = min(count, len(with_boxes))
    places = np.linspace(0, len(with_boxes) - 1, count).round().astype(np.int64)
    return [_example(index, image) for image in with_boxes[places].tolist()]


def _example(index: CocoIndex, image: int) -> Example:
    boxes_ltrb, labels = index.boxes_of(image)
    boxes_ltrb_px = boxes_ltrb.astype(np.float64) * np.tile(index.sizes_px[image], 2)
    return Example(int(index.image_ids[image]), index.path(image), boxes_ltrb_px, labels.astype(np.int64))


def _placement(data: DataConfig, runtime: Runtime, ranks: Ranks) -> Placement:
    threads = data.threads or default_threads(ranks.local_world_size)
    return Placement(ranks.rank, ranks.world_size, ranks.device, threads, runtime.image_dtype)
