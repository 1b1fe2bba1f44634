"""All pictures of a run of predict.py: what is done with each, and what is said at the end."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ssd.console import RunConsole
from ssd.errors import UserError
from ssd.prediction.find import PictureFile
from ssd.prediction.output import Output
from ssd.prediction.pipeline import UnreadPicture, predict
from ssd.prediction.predictor import Predictor

MOST_THREADS = 8


@dataclass(frozen=True)
class Summary:
    """What came of the pictures. results: COCO's, with file names. unread: why some couldn't be read."""

    pictures: int
    results: list[dict[str, Any]]
    unread: list[str]
    seconds: float

    def describe(self) -> str:
        """Say how many pictures, in which time."""
        done = self.pictures - len(self.unread)
        found = f"{counted(len(self.results), 'detection')} on {counted(done, 'picture')}"
        return f"{found}, {self.seconds:.1f} s, {done / self.seconds:.1f} pictures/s"

    def check(self) -> None:
        """Raise UserError where pictures weren't read."""
        if self.unread:
            failed = f"{len(self.unread)} of {counted(self.pictures, 'picture')} could not be read"
            raise UserError("\n  ".join([f"{failed}:", *self.unread]))


def predict_all(
    files: Sequence[PictureFile],
    predictor: Predictor,
    output: Output,
    batch_size: int,
    threads: int | None,
    console: RunConsole,
) -> Summary:
    """Find, draw and write the objects of all pictures, naming at once those that can't be read.

    threads: None for one a core, at most MOST_THREADS. Raises UserError where one can't be written.
    """
    began = time.perf_counter()
    threads = threads or min(os.cpu_count() or 1, MOST_THREADS)
    outcomes = predict(files, predictor, batch_size, threads, output.write_picture)
    results: list[dict[str, Any]] = []
    unread: list[str] = []
    for outcome in console.follow(outcomes, len(files), f"looking at {counted(len(files), 'picture')}"):
        if isinstance(outcome, UnreadPicture):
            console.say(outcome.reason)
            unread.append(outcome.reason)
        else:
            results += outcome
    output.write_json(results)
    return Summary(len(files), results, unread, time.perf_counter() - began)


def counted(number: int, noun: str) -> str:
    """Write a number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
