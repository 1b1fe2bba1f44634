"""The text of a JSON file, mapped and not copied: the processes of one machine share its pages."""

import codecs
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mapped_text(path: Path) -> Iterator[memoryview]:
    """Give a file's bytes without the byte-order mark that tools on Windows begin UTF-8 with.

    They are there within the block alone. Raises OSError.
    """
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:  # nothing that could be mapped
            yield memoryview(b"")
            return
        with (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
            memoryview(content) as all_bytes,
            all_bytes[len(codecs.BOM_UTF8) if content[:3] == codecs.BOM_UTF8 else 0 :] as text,
        ):
            yield text
