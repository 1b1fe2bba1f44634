"""A detector as a function of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ssd.boxes import default_boxes
from ssd.detect import Detections, detect
from ssd.errors import UserError
from ssd.image import normalize
from ssd.runtime import Runtime


@dataclass(frozen=True)
class Found:
    """What was found on one picture, best first.

    boxes_ltrb_px: K×4 float64 in pixels of the picture, not clipped (RECIPE 7). scores: K. labels: K, from 1.
    """

    boxes_ltrb_px: NDArray[np.float64]
    scores: list[float]
    labels: list[int]


class Predictor:
    """Runs a network over pictures and keeps the best detections of some classes.

    network: in evaluation mode from here on, and moved where the runtime has it. labels: those that are kept.
    """

    def __init__(
        self,
        network: nn.Module,
        runtime: Runtime,
        threshold: float,
        max_detections: int,
        labels: frozenset[int],
    ) -> None:
        self._network = runtime.place(network).eval()
        self._runtime = runtime
        self._threshold = threshold
        self._max_detections = max_detections
        self._labels = torch.tensor(sorted(labels), device=runtime.device)
        self._default_boxes = default_boxes().to(runtime.device)

    @torch.inference_mode()
    def __call__(self, squashed: Sequence[Image.Image], sizes_px: Sequence[tuple[int, int]]) -> list[Found]:
        """Find the objects of N pictures, given as the network takes them, 300×300, and their own sizes.

        Raises UserError where the network's outputs are not finite.
        """
        values = np.stack([np.asarray(picture) for picture in squashed]).astype(np.float32) / 255
        images = normalize(values).to(self._runtime.device, self._runtime.image_dtype)
        with self._runtime.autocast():
            offsets, logits = self._network(self._runtime.arrange(images))
        if not (offsets.isfinite().all() and logits.isfinite().all()):
            raise UserError(
                f"the network's outputs are not finite in {self._runtime.precision.value}; give "
                "runtime.precision=fp32, or another checkpoint where that is so in fp32 too"
            )
        # Classes don't suppress each other, so what an image's number of detections is cut down to can wait
        # until the other classes are gone.
        everything = logits.shape[1] * logits.shape[2]
        found = detect(offsets, logits, self._default_boxes, self._threshold, max_detections=everything)
        return [self._in_pixels(each, size) for each, size in zip(found, sizes_px, strict=True)]

    def _in_pixels(self, found: Detections, size_px: tuple[int, int]) -> Found:
        best = torch.isin(found.labels, self._labels).nonzero()[: self._max_detections, 0]
        scale = torch.tensor(size_px, dtype=torch.float64).repeat(2)
        boxes_ltrb_px: Tensor = found.boxes[best].cpu().double() * scale
        return Found(boxes_ltrb_px.numpy(), found.scores[best].tolist(), found.labels[best].tolist())
