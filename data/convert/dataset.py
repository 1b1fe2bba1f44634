"""What every reader gives and every writer takes: pictures with boxes, in two splits, and category names."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ssd.errors import UserError

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
Ltwh = tuple[float, float, float, float]

EXACT_DECIMALS = 6
EXACT_PX = 10**-EXACT_DECIMALS
"""How exact a box is: a difference below this is float noise."""


@dataclass(frozen=True)
class Header:
    """What a picture's first bytes say, the size in pixels as stored."""

    width: int
    height: int
    channels: int = 3


@dataclass(frozen=True)
class Box:
    """An object: its category's name, its box in pixels, and whether evaluation passes over it."""

    category: str
    ltwh_px: Ltwh
    crowd: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture: where its file lies, what it is called in the split's folder (posix), and its boxes."""

    file: Path
    name: str
    header: Header
    boxes: tuple[Box, ...]

    @property
    def stem(self) -> str:
        """The name without its suffix, folders kept: what its annotation file is called."""
        return PurePosixPath(self.name).with_suffix("").as_posix()


@dataclass(frozen=True)
class DataSet:
    """Category names in the order of their ids; pictures by split, at least one in each.

    `val` is missing where a source has no validation split.
    """

    categories: tuple[str, ...]
    splits: dict[Split, tuple[Picture, ...]]

    def __post_init__(self) -> None:
        """Raise UserError for a split with two pictures of a name."""
        for split, pictures in self.splits.items():
            for name in _twice(picture.name for picture in pictures):
                files = [str(picture.file) for picture in pictures if picture.name == name]
                raise UserError(f"{' and '.join(files)} are both {name} in {split}; rename or remove one")

    def by_stem(self, splits: Sequence[Split]) -> dict[str, Picture]:
        """Return the pictures of these splits by what their annotation files are called.

        Raises UserError where different pictures would share an annotation file.
        """
        pictures: dict[str, Picture] = {}
        for picture in (picture for split in splits for picture in self.splits[split]):
            other = pictures.setdefault(picture.stem, picture)
            if other != picture:
                raise UserError(
                    f"{other.file} and {picture.file} would share the annotation file of {picture.stem!r}; "
                    "rename one"
                )
        return pictures


def cut_to_picture(ltwh_px: Ltwh, header: Header) -> tuple[Ltwh, float]:
    """Return the part of a box inside the picture, and by how many pixels it hung over an edge.

    What hangs over is taken off the size, as data.clipping does it: a box inside keeps its exact numbers.
    Raises UserError where nothing is left.
    """
    left, top, width, height = ltwh_px
    over_left, over_right = max(-left, 0.0), max(left + width - header.width, 0.0)
    over_top, over_bottom = max(-top, 0.0), max(top + height - header.height, 0.0)
    over = max(over_left, over_right, over_top, over_bottom)
    if over > EXACT_PX:
        left, width = max(left, 0.0), width - over_left - over_right
        top, height = max(top, 0.0), height - over_top - over_bottom
    if width <= 0 or height <= 0:
        raise UserError(
            f"box (left, top, width, height) {ltwh_px} px has no area inside the picture of {header.width}×"
            f"{header.height}; correct or remove it"
        )
    return (left, top, width, height), over if over > EXACT_PX else 0.0


def _twice(keys: Iterable[Hashable]) -> list[Hashable]:
    return [key for key, times in Counter(keys).items() if times > 1]
