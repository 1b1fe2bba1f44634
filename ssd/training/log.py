"""What a run leaves behind to look at: metrics.jsonl, TensorBoard events, pictures, config.yaml."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ssd.errors import UserError
from ssd.training.metrics import MetricsFile


class RunLog:
    """The records of one run in its folder; rank 0 alone has one. It goes on after `first_step` steps.

    cut_evaluation: that step's evaluation is done once more. complain: takes what can't be written, a line
    each; metrics are then written as soon as it goes again, pictures and TensorBoard's events are lost.
    Without it UserError is raised.
    """

    def __init__(
        self,
        folder: Path,
        first_step: int,
        cut_evaluation: bool = False,
        complain: Callable[[str], None] | None = None,
    ) -> None:
        self._folder, self._first_step, self._complain = folder, first_step, complain
        self._board: SummaryWriter | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._metrics = MetricsFile(folder / "metrics.jsonl", first_step, cut_evaluation)
        except OSError as error:
            raise UserError(f"{folder}: nothing can be written there ({error.strerror or error})") from error

    def config(self, text: str) -> None:
        """Write the config that the run goes on with."""
        self._attempt(lambda: (self._folder / "config.yaml").write_text(text, encoding="utf-8"))

    def record(self, group: str, record: dict[str, Any]) -> None:
        """Write a record with its `step`; in TensorBoard each other value is a scalar named group/key."""
        self._attempt(lambda: self._metrics.write(record))
        scalars = {f"{group}/{key}": value for key, value in record.items() if key != "step"}

        def show(board: SummaryWriter) -> None:
            for name, value in scalars.items():
                board.add_scalar(name, value, record["step"])

        self._show(show)

    def picture(self, group: str, name: str, picture: Image.Image, step: int) -> None:
        """Save a picture as pictures/step_NNNNNNNN/name.jpg and show it in TensorBoard as group/name."""
        path = self._folder / "pictures" / f"step_{step:08d}" / f"{name}.jpg"

        def save() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Thin coloured lines bleed where colour is stored at half the resolution (subsampling).
            picture.save(path, quality=90, subsampling=0)

        self._attempt(save)
        self._show(
            lambda board: board.add_image(f"{group}/{name}", np.asarray(picture), step, dataformats="HWC")
        )

    def close(self) -> None:
        """Flush and close everything."""
        self._metrics.close()
        if self._board is not None:
            self._attempt(self._board.close)

    def _show(self, work: Callable[[SummaryWriter], None]) -> None:
        """Have TensorBoard's writer do something; one that failed, maybe in its own thread, is made anew."""

        def attempt() -> None:
            board, self._board = self._board, None
            if board is None:
                purge = self._first_step + 1 if self._first_step else None
                board = SummaryWriter(str(self._folder), purge_step=purge)
            work(board)
            self._board = board

        self._attempt(attempt)

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            message = f"{self._folder}: records can't be written ({error.strerror or error})"
            if self._complain is None:
                mend = "make room, or let training go on without by checkpoint.on_error=continue"
                raise UserError(f"{message}; {mend}") from error
            self._complain(f"{message}; training goes on (checkpoint.on_error=continue)")
