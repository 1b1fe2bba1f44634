"""Many pictures through a detector: read in threads, found in batches, handed on in threads, in order.

However many there are, three batches of whole pictures are in memory, or three times as many as threads where
that is more.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image

from ssd.image import PictureError, read_picture, squash
from ssd.prediction.find import PictureFile
from ssd.prediction.predictor import Found, Predictor

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ReadPicture:
    """A picture as a person sees it, and as the network does but for the number format."""

    file: PictureFile
    picture: Image.Image
    squashed: Image.Image


@dataclass(frozen=True)
class UnreadPicture:
    """A picture that couldn't be read. reason: names it."""

    file: PictureFile
    reason: str


Work = Callable[[PictureFile, Image.Image, Found], Result]


def predict(
    files: Sequence[PictureFile], predictor: Predictor, batch_size: int, threads: int, work: Work[Result]
) -> Iterator[Result | UnreadPicture]:
    """Find the objects of every picture, and yield what `work` makes of them, in the files' order.

    work runs in threads, so it must not touch what it shares with another. A picture that can't be read comes
    out as UnreadPicture, before or among those of its batch. Raises whatever work or the predictor raise.
    """
    ahead = max(batch_size, threads)

    def finish(seen: tuple[ReadPicture, Found] | UnreadPicture) -> Result | UnreadPicture:
        if isinstance(seen, UnreadPicture):
            return seen
        read, found = seen
        return work(read.file, read.picture, found)

    with ThreadPoolExecutor(threads) as pool:
        seen = _look_at(in_order(pool, _read, files, ahead), predictor, batch_size)
        yield from in_order(pool, finish, seen, ahead)


def in_order(
    pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Do work in a pool's threads and yield the results in the items' order, at most `ahead` under way."""
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) == ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _read(file: PictureFile) -> ReadPicture | UnreadPicture:
    try:
        picture = read_picture(file.path, name=str(file))
    except PictureError as error:
        return UnreadPicture(file, str(error))
    return ReadPicture(file, picture, squash(picture))


def _look_at(
    pictures: Iterable[ReadPicture | UnreadPicture], predictor: Predictor, batch_size: int
) -> Iterator[tuple[ReadPicture, Found] | UnreadPicture]:
    batch: list[ReadPicture] = []
    for each in pictures:
        if isinstance(each, UnreadPicture):
            yield each
            continue
        batch.append(each)
        if len(batch) == batch_size:
            yield from _with_found(batch, predictor)
            batch = []
    if batch:
        yield from _with_found(batch, predictor)


def _with_found(batch: list[ReadPicture], predictor: Predictor) -> Iterator[tuple[ReadPicture, Found]]:
    found = predictor([each.squashed for each in batch], [each.picture.size for each in batch])
    return zip(batch, found, strict=True)
