"""Images that DALI cannot make a batch of: which they are, and which others stand in for them."""

from collections.abc import Callable, Iterable, Sequence

from nvidia.dali.pipeline import Pipeline

from data.coco import CocoIndex
from data.dali_error import reason_of
from ssd.errors import UserError

NAMED_IMAGES = 5
"""Bad images that an error lists."""

REPLACE = "Replace the file, or remove its entry and its boxes from the annotation file"
"""What mends a bad image wherever it is met."""


def reason_unreadable(graph: Pipeline) -> str | None:
    """Run a graph of one image; return what DALI says where it fails.

    A failed batch names the operator, not always the file, so its images are run one by one: on the CPU,
    since a graph that failed on a GPU cannot be trusted to judge the next file there.
    """
    try:
        graph.run()
    except RuntimeError as error:
        return reason_of(error)
    return None


def find_bad_images(
    index: CocoIndex, images: Iterable[int], why_bad: Callable[[int], str | None]
) -> dict[int, str]:
    """Return a line about each bad one of the images, by its place in the index."""
    return {
        image: f"{index.path(image)} (image id {index.image_ids[image]}): {why}"
        for image in images
        if (why := why_bad(image)) is not None
    }


def stand_in(batch: Sequence[int], place: int, is_good: Callable[[int], bool]) -> int:
    """Return the image at a place of a global batch or, where it is bad, the nearest good one before it.

    Before the first comes the last; where all are bad none changes. The global batch is the same however many
    ranks share it, so this is, too.
    """
    return next(filter(is_good, (batch[place - back] for back in range(len(batch)))), batch[place])


def unreadable(lines: Iterable[str], when: str, mend: str = REPLACE) -> UserError:
    """Return the error about bad images. when: what was running."""
    named = "; ".join([*lines][:NAMED_IMAGES])
    return UserError(f"{when}: DALI cannot read {named}. {mend}")
