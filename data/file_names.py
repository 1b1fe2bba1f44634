"""A million file names in the memory of their letters: Python strings would take four times as much."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FileNames:
    """File names one after the other.

    utf8: uint8, the bytes of all of them. starts: N + 1 int64; name i is utf8[starts[i] : starts[i + 1]].
    """

    utf8: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @staticmethod
    def of(names: Iterable[str]) -> "FileNames":
        """Pack names. Raises UnicodeEncodeError for a name that UTF-8 cannot hold."""
        encoded = [name.encode() for name in names]
        starts = np.zeros(len(encoded) + 1, dtype=np.int64)
        np.cumsum([len(name) for name in encoded], out=starts[1:])
        return FileNames(np.frombuffer(b"".join(encoded), dtype=np.uint8), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, place: int) -> str:
        start, end = self.starts[place : place + 2]  # not two values for a place that is none
        return self.utf8[start:end].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        text, starts = self.utf8.tobytes(), self.starts.tolist()
        for place in range(len(self)):
            yield text[starts[place] : starts[place + 1]].decode()

    def where(self, kept: NDArray[np.bool_]) -> "FileNames":
        """Return the names that are kept, in a memory of their own."""
        lengths = np.diff(self.starts)
        starts = np.concatenate(([0], np.cumsum(lengths[kept])))
        return FileNames(self.utf8[np.repeat(kept, lengths)], starts)
