"""Which label stands for which category."""

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Self

import torchvision

from .errors import UserError


@dataclass(frozen=True)
class Categories:
    """The classes of a data set in the order of its annotation file: label k+1 is (ids[k], names[k]).

    Label 0 is background and is in neither list.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes of the network, background included."""
        return len(self.ids) + 1

    def as_plain(self) -> dict[str, Any]:
        """Return ids and names as a checkpoint stores them."""
        return {"ids": list(self.ids), "names": list(self.names)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """Build categories from the result of `as_plain`."""
        return cls(tuple(plain["ids"]), tuple(plain["names"]))

    def id_of(self, label: int) -> int:
        """Return a label's category id in the annotation file; label ≥ 1."""
        return self.ids[label - 1]

    def name_of(self, label: int) -> str:
        """Return a label's category name; label ≥ 1."""
        return self.names[label - 1]

    def labels_named(self, names: Collection[str] | None) -> frozenset[int]:
        """Return the labels of all categories with one of these names, or all labels if names is None.

        Raises UserError for an unknown name, listing the names spelled like it, or all if there are none.
        """
        known = dict.fromkeys(self.names)
        for name in names or ():
            if name not in known:
                near = get_close_matches(name, known) or known
                raise UserError(f"classes: the checkpoint knows no {name!r}; give {' or '.join(near)}")
        labelled = enumerate(self.names, start=1)
        return frozenset(label for label, name in labelled if names is None or name in names)

    def check_count(self, num_classes: int, annotation_file: object) -> None:
        """Raise UserError unless these categories fit a detector with num_classes, background included."""
        if num_classes != self.num_classes:
            raise UserError(
                f"the checkpoint tells {num_classes - 1} classes apart and {annotation_file} has "
                f"{len(self.ids)}; give an annotation file with the categories it was trained on"
            )

    def check_scored_by(self, truth: "Categories", annotation_file: object) -> None:
        """Raise UserError unless ground truth with the categories `truth` can score a detector with these.

        Both need the same ids, in any order, and each id must have the same name in both.
        """
        ours = dict(zip(self.ids, self.names, strict=True))
        theirs = dict(zip(truth.ids, truth.names, strict=True))
        differing = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
        if differing:
            first = differing[0]
            raise UserError(
                f"{annotation_file}: {len(differing)} categories differ from those trained on; id {first} "
                f"was {ours.get(first)!r} and is {theirs.get(first)!r} there; give the categories trained on"
            )


def _coco() -> Categories:
    """COCO's categories from torchvision's list: a name's index is its id, and unused ids are "N/A"."""
    names = torchvision.models.detection.SSD300_VGG16_Weights.COCO_V1.meta["categories"]
    used = [(key, name) for key, name in enumerate(names) if key > 0 and name != "N/A"]
    ids, names = zip(*used, strict=True)
    return Categories(ids, names)


COCO = _coco()
"""COCO 2017's 80 classes in the order of its annotation files, the label order of published checkpoints."""
