"""Read picture files with DALI as training does, in a process that may be lost: a damaged file can crash it.

OpenJPEG does, inside DALI: a segmentation fault on a broken JPEG 2000 header. data.trial_process starts this
module, `python -m data.trial_decoding FILE_DESCRIPTOR`, and outlives it. It imports no more than it needs,
since it is started anew after each crash.
"""

import os
import re
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from typing import BinaryIO

import numpy as np
from nvidia.dali import fn
from nvidia.dali.fn.io import file as fn_file
from nvidia.dali.pipeline import Pipeline

from data.dali_error import reason_of
from data.trial_process import READY, Result

_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_SOURCE = re.compile(
    r"^(\[[^\]]*\]\s*)+(global \S+ \S+ )?(.* error: \([^)]*\) )?"
)  # [library], OpenCV's line
_MESSAGE_CHARACTERS = 120


def main() -> None:
    """Answer requests (groups of paths, decode, threads), each with a message a group, until killed."""
    connection = Connection(int(sys.argv[1]))
    connection.send(READY)
    with tempfile.TemporaryFile() as messages:
        for standard_stream in (1, 2):  # where libraries in C print what is wrong, without the file's name
            os.dup2(messages.fileno(), standard_stream)
        try:
            while True:
                groups, decode, threads = connection.recv()
                for results in _Reader(decode, threads, messages).read(groups):
                    connection.send(results)
        except EOFError:
            return  # the process that asked is gone
        except Exception:
            connection.send(traceback.format_exc())
            raise


class _Reader:
    """Reads files whole (decode) or their headers alone."""

    def __init__(self, decode: bool, threads: int, messages: BinaryIO) -> None:
        self._decode = decode
        self._threads = threads
        self._messages = messages

    def read(self, groups: Sequence[Sequence[str]]) -> Iterable[list[Result]]:
        """Yield the results of each group; where DALI fails on one, its files are read one by one."""
        graph = self._graph(groups)
        for group in groups:
            self._messages.seek(0)
            self._messages.truncate()
            try:
                (shapes,) = graph.run()
            except RuntimeError as error:
                if len(group) > 1:
                    yield [result for (result,) in self.read([[path] for path in group])]
                else:
                    yield [self._reason(error)]
            else:
                heights_widths = np.asarray(shapes.as_cpu().as_array())[:, :2].tolist()
                yield [(width, height) for height, width in heights_widths]

    def _graph(self, groups: Sequence[Sequence[str]]) -> Pipeline:
        """Build the graph that puts out the shapes (height, width, channels) of a group's pictures."""
        batches = ([[np.frombuffer(path.encode(), np.uint8) for path in group]] for group in groups)
        pipeline = Pipeline(
            batch_size=max(map(len, groups)),
            num_threads=self._threads,
            device_id=None,
            prefetch_queue_depth=1,  # nothing is read ahead: messages, and a crash, are the current group's
        )
        with pipeline:
            (paths,) = fn.external_source(source=batches, num_outputs=1)
            files = fn_file.read(paths)
            if self._decode:  # as in data.graph; what follows there, resizing, fails on no picture
                pictures = fn.decoders.image_slice(
                    files, device="cpu", rel_start=[0.0, 0.0], rel_shape=[1.0, 1.0], adjust_orientation=False
                )
                pipeline.set_outputs(pictures.shape())
            else:
                pipeline.set_outputs(fn.peek_image_shape(files, adjust_orientation=False))
        return pipeline

    def _reason(self, error: RuntimeError) -> str:
        """Return the first line printed, without colours and its source; else DALI's own words."""
        self._messages.seek(0)
        printed = _COLOURS.sub("", self._messages.read().decode(errors="replace")).strip()
        line = (printed or reason_of(error)).partition("\n")[0]
        return _SOURCE.sub("", line, count=1)[:_MESSAGE_CHARACTERS]


if __name__ == "__main__":
    main()
