"""Which files of a batch DALI cannot read: its own error names the operator, not always the file."""

from collections.abc import Iterable

import torch

from data.coco import CocoIndex
from data.errors import DatasetError
from data.graph import GraphOptions, encode_path, evaluation_graph


def find_bad_images(index: CocoIndex, images: Iterable[int], when: str) -> DatasetError | None:
    """Read the images of a failed batch one by one; return the error that names those that fail, if any.

    Read on the CPU and whole: a graph that failed on a GPU cannot be trusted to judge the next file there.
    when: what was running, for the message.
    """
    failures = [
        f"{index.path(image)} (image id {index.image_ids[image]}): {reason}"
        for image in images
        if (reason := _reason_unreadable(index, image)) is not None
    ]
    if not failures:
        return None
    return DatasetError(
        f"{when}: DALI cannot read {'; '.join(failures)}. Replace the file, or remove its entry and its boxes"
        " from the annotation file"
    )


def _reason_unreadable(index: CocoIndex, image: int) -> str | None:
    graph = evaluation_graph(
        [([encode_path(index.path(image))],)],
        GraphOptions(batch_size=1, dtype=torch.float32, threads=1, device_id=None),
    )
    try:
        graph.run()
    except RuntimeError as error:
        # DALI wraps its reason in where the operator stands in our code.
        reason = str(error).rpartition("encountered:")[2].partition("Current pipeline object")[0]
        return reason.partition("C++ context")[0].strip()
    return None
