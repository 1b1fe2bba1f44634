"""Which files of a batch DALI cannot read: its own error names the operator, not always the file."""

from collections.abc import Collection, Iterable

import torch

from data.coco import CocoIndex
from data.errors import DatasetError
from data.graph import GraphOptions, encode_path, evaluation_graph


def find_bad_images(index: CocoIndex, images: Iterable[int]) -> dict[int, str]:
    """Read the images of a failed batch one by one; return a line about each that fails, by its place.

    Read on the CPU and whole: a graph that failed on a GPU cannot be trusted to judge the next file there.
    """
    return {
        image: f"{index.path(image)} (image id {index.image_ids[image]}): {reason}"
        for image in images
        if (reason := _reason_unreadable(index, image)) is not None
    }


def unreadable(lines: Iterable[str], when: str) -> DatasetError:
    """Return the error about such images. when: what was running."""
    return DatasetError(
        f"{when}: DALI cannot read {'; '.join(lines)}. Replace the file, or remove its entry and its boxes"
        " from the annotation file, or train with data.on_bad_image=quarantine"
    )


def replace_bad(images: list[int], bad: Collection[int]) -> list[int] | None:
    """Put the good image before it (or the batch's last) in each bad one's place; None if all are bad."""
    good = [image for image in images if image not in bad]
    if not good:
        return None
    replaced, last = [], good[-1]
    for image in images:
        last = last if image in bad else image
        replaced.append(last)
    return replaced


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
