"""What a trainer is given to learn."""

from dataclasses import dataclass

from ssd.batches import TrainLoader
from ssd.categories import Categories
from ssd.evaluation.evaluator import Evaluator, Example


@dataclass(frozen=True)
class Task:
    """What is learned: training input, how it is scored, which validation images are shown.

    batch_size: images a rank and step. fingerprint: of the cleaned training annotations. excluded: ids of
    images left out for their bad files.
    """

    loader: TrainLoader
    batch_size: int
    evaluator: Evaluator
    examples: list[Example]
    categories: Categories
    fingerprint: str
    excluded: list[int]
