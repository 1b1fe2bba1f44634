"""torch.hub's processing utilities: pictures → the network's input, and its output → what was found."""

from collections.abc import Sequence
from contextlib import closing
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..boxes import IMAGE_SIZE, default_boxes
from ..categories import COCO
from ..detect import IOU_THRESHOLD, detect
from ..errors import UserError
from ..image import PictureError, centre_crop, normalize, read_picture, squash
from ..url import BrokenError, RefusedError, open_url
from .places import Place, local_file

MAX_DETECTIONS = 20


def prepare_input(img_uri: Place, crop: bool = True) -> NDArray[np.float32]:
    """Read a picture and bring it to 300×300: float32 300×300×3 RGB; x / 2 + 0.5 is the picture in [0, 1].

    img_uri: a path, or a http:, https: or file: URL. crop: take the middle of the picture whose short side is
    made 300; False squashes the whole picture, as in training (RECIPE 6), and boxes are then relative to it.
    Grey, palette, CMYK, 16 bits a channel and transparency become RGB; EXIF orientation is followed.
    Raises ValueError where the picture can't be fetched or read.
    """
    file = local_file(img_uri)
    picture = read_picture(_fetched(str(img_uri)) if file is None else file, str(img_uri))
    picture = centre_crop(picture) if crop else squash(picture)
    return np.asarray(picture, dtype=np.float32) / 127.5 - 1


def prepare_tensor(inputs: Sequence[NDArray[np.float32]], fp16: bool = False) -> Tensor:
    """Stack what prepare_input gives into the network's input: N×3×300×300 on the CPU, ImageNet-normalised.

    float32, or float16 with fp16; the hub's networks take either. (The published function left its values in
    [-1, 1], which is not what the network was trained on, RECIPE 1 and 9.)
    Raises ValueError where inputs are not N×300×300×3.
    """
    values = np.asarray(inputs, dtype=np.float32)
    if values.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise UserError(f"prepare_tensor takes a list of arrays 300×300×3, got shape {values.shape}")
    images = normalize(values / 2 + 0.5).contiguous()
    return images.half() if fp16 else images


def decode_results(predictions: tuple[Tensor, Tensor]) -> list[list[NDArray[Any]]]:
    """Turn the network's output into detections (RECIPE 7).

    predictions: (offsets N×4×8732, logits N×C×8732), on any device, in any float format.
    Returns for each picture [boxes K×4 float32, classes K int64, confidences K float32], best first, K ≤ 20.
    Boxes are ltrb relative to what prepare_input gave, not clipped to [0, 1]. Classes count from 1.
    Confidences are above 0.05; of boxes of a class that overlap with an IoU of 0.5 or more the best is kept.
    """
    offsets, logits = predictions
    found = detect(
        offsets,
        logits,
        default_boxes().to(offsets.device),
        iou_threshold=IOU_THRESHOLD,
        max_detections=MAX_DETECTIONS,
    )
    return [[part.cpu().numpy() for part in (each.boxes, each.labels, each.scores)] for each in found]


def pick_best(detections: Sequence[NDArray[Any]], threshold: float = 0.3) -> list[NDArray[Any]]:
    """Keep of one picture's [boxes K×4, classes K, confidences K] what has a confidence above the threshold.

    The order stays, best first.
    """
    boxes_ltrb, classes, confidences = detections
    kept = confidences > threshold
    return [boxes_ltrb[kept], classes[kept], confidences[kept]]


def get_coco_object_dictionary() -> list[str]:
    """Return the names of COCO's 80 classes: of class k it is the (k-1)th.

    A network of other classes has its names in `category_names`.
    """
    return list(COCO.names)


def _fetched(url: str) -> BytesIO:
    try:
        answer = open_url(url)
        with closing(answer.body):
            body = b"".join(iter(answer.read, b""))
    except (BrokenError, RefusedError) as error:
        raise PictureError(f"{url} can't be fetched: {error}") from error
    if answer.total not in (None, len(body)):
        raise PictureError(
            f"{url}: the connection ended after {len(body)} of {answer.total} bytes; try again"
        )
    return BytesIO(body)
