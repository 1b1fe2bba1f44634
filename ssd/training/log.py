"""What a run leaves behind to look at: metrics.jsonl, TensorBoard events, pictures, config.yaml."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ssd.training.metrics import MetricsFile


class RunLog:
    """The records of one run in its folder; rank 0 alone has one.

    It goes on after `first_step` steps; cut_evaluation: with that step's evaluation, which is done once more.
    """

    def __init__(self, folder: Path, first_step: int, config_yaml: str, cut_evaluation: bool) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
        self._metrics = MetricsFile(folder / "metrics.jsonl", first_step, cut_evaluation)
        self._board = SummaryWriter(str(folder), purge_step=first_step + 1 if first_step else None)

    def record(self, group: str, record: dict[str, Any]) -> None:
        """Write a record with its `step`; in TensorBoard each other value is a scalar named group/key."""
        self._metrics.write(record)
        for key, value in record.items():
            if key != "step":
                self._board.add_scalar(f"{group}/{key}", value, record["step"])

    def picture(self, group: str, name: str, picture: Image.Image, step: int) -> None:
        """Save a picture as pictures/step_NNNNNNNN/name.jpg and show it in TensorBoard as group/name."""
        path = self._folder / "pictures" / f"step_{step:08d}" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
        self._board.add_image(f"{group}/{name}", np.asarray(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Flush and close everything."""
        self._metrics.close()
        self._board.close()
