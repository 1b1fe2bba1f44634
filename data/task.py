"""From the config's `data` section to what the trainer and the evaluator take."""

from datetime import timedelta

import numpy as np

from data.coco import CocoIndex, Selection, read_index
from data.loader import DaliEvaluationLoader, DaliTrainLoader, Placement, default_threads
from ssd.categories import Categories
from ssd.config import DataConfig, TrainConfig
from ssd.distributed import Ranks
from ssd.evaluation.evaluator import Evaluator
from ssd.evaluation.pictures import Example
from ssd.runtime import Runtime
from ssd.training.trainer import Task


def open_training(config: TrainConfig, runtime: Runtime, ranks: Ranks) -> tuple[Task, dict[str, str]]:
    """Read both annotation files and build this rank's input; return it with rows for the start-up table.

    Raises DatasetError for data that can't be used, CategoryError where the two files have other classes.
    """
    data = config.data
    selection = Selection("train", data.limit, data.crowd, data.min_box_px)
    train = read_index(data.locate("train_annotations"), data.locate("train_images"), selection)
    loader = DaliTrainLoader(
        train,
        _placement(data, ranks),
        data.batch_size,
        config.seed,
        augment=data.augment,
        dtype=runtime.image_dtype,
    )
    timeout = timedelta(minutes=config.evaluation.timeout_minutes)
    evaluator, val = open_evaluation(data, train.categories, timeout, runtime, ranks)
    examples = pick_examples(val, config.evaluation.pictures)
    task = Task(loader, evaluator, examples, train.categories, train.fingerprint())
    return task, {"training images": describe(train), "validation images": describe(val)}


def open_evaluation(
    data: DataConfig, trained: Categories | None, timeout: timedelta, runtime: Runtime, ranks: Ranks
) -> tuple[Evaluator, CocoIndex]:
    """Read the validation annotations, every image of them, and build this rank's part of their evaluation.

    trained: what the network's labels mean; None takes the annotation file's categories in their order.
    timeout: how long other ranks wait for rank 0's numbers.
    Raises DatasetError for data that can't be used, CategoryError where it has other classes.
    """
    file = data.locate("val_annotations")
    # Scored is the file as it stands; this cleaning is for the pictures that are shown.
    selection = Selection("val", data.limit, min_box_px=0.0, images_without_boxes=True)
    index = read_index(file, data.locate("val_images"), selection)
    if trained is not None:
        trained.check_scored_by(index.categories, file)
    evaluator = Evaluator(
        loader=DaliEvaluationLoader(index, _placement(data, ranks), data.batch_size, runtime.image_dtype),
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


def _placement(data: DataConfig, ranks: Ranks) -> Placement:
    threads = data.threads or default_threads(ranks.local_world_size)
    return Placement(ranks.rank, ranks.world_size, ranks.device, threads)
