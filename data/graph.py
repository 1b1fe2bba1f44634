"""The DALI graph: encoded files and augmentations in, network input and targets out. The same on CPU and GPU.

It has no random operators and no state: random draws are made outside (data.augment) and fed in. With a GPU,
pictures move there after decoding (data.decoder=cpu) or before it; the later stages run where their input is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import fn
from nvidia.dali.data_node import DataNode
from nvidia.dali.fn.io import file as fn_file
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType, DALIInterpType

from ssd.batches import IMAGENET_MEAN, IMAGENET_STD
from ssd.boxes import CENTRE_SCALE, IMAGE_SIZE, SIZE_SCALE, cxcywh_to_ltrb, default_boxes

# Scaled to pixel values.
MEAN = [255 * value for value in IMAGENET_MEAN]
STD = [255 * value for value in IMAGENET_STD]
CONTRAST_CENTER = 128.0  # RECIPE 6; for this stage's float input DALI's default would be 0.5
MATCH_IOU = 0.5  # RECIPE 3
DALI_TYPES = {torch.float32: DALIDataType.FLOAT, torch.float16: DALIDataType.FLOAT16}


@dataclass(frozen=True)
class GraphOptions:
    """The settings of a graph.

    batch_size: images a batch at most. dtype: of the images, torch.float32 or torch.float16.
    threads: CPU threads of the graph. device_id: the GPU, None for a graph on the CPU. decodes_on_gpu: or
    else the CPU decodes, whatever comes after.
    """

    batch_size: int
    dtype: torch.dtype
    threads: int
    device_id: int | None
    decodes_on_gpu: bool = False


class TrainingInputs(NamedTuple):
    """One batch of the training graph's inputs: what to read and how to augment it.

    paths: N times encode_path(). window_start and window_size: N×2 (x, y), relative to the image.
    flip: N int32. hue (degrees), saturation, brightness, contrast: N float32.
    boxes_ltrb: N times G×4, relative to the window, flipped with it. labels: N times G int32.
    """

    paths: list[NDArray[np.uint8]]
    window_start: NDArray[np.float32]
    window_size: NDArray[np.float32]
    flip: NDArray[np.int32]
    hue: NDArray[np.float32]
    saturation: NDArray[np.float32]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    boxes_ltrb: list[NDArray[np.float32]]
    labels: list[NDArray[np.int32]]


def encode_path(path: str) -> NDArray[np.uint8]:
    """Return a file path in the form that the graphs take: its UTF-8 bytes."""
    return np.frombuffer(path.encode(), dtype=np.uint8)


def window_of_pixels(
    window_ltwh: tuple[float, float, float, float], size_px: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Return the window, enlarged to one pixel if it is smaller.

    DALI rounds a window's edges to whole pixels and fails if nothing is left. That can happen in pictures up
    to 3 pixels wide or high (RECIPE 6). Such a window becomes the pixel that contains its centre.
    window_ltwh: relative. size_px: (width, height).
    """
    start, size = list(window_ltwh[:2]), list(window_ltwh[2:])
    for axis, pixels in enumerate(size_px):
        if size[axis] * pixels < 1:
            start[axis] = int((start[axis] + size[axis] / 2) * pixels) / pixels
            size[axis] = 1 / pixels
    return (start[0], start[1], size[0], size[1])


def training_graph(batches: Iterable[TrainingInputs], options: GraphOptions) -> Pipeline:
    """Build the graph that returns images N×300×300×3, target offsets N×A×4 float32 and labels N×A int64."""
    pipeline = _pipeline(options)
    with pipeline:
        paths, start, size, flip, hue, saturation, brightness, contrast, boxes_ltrb, labels = (
            fn.external_source(source=batches, num_outputs=len(TrainingInputs._fields))
        )
        images = _read(paths, start, size, options)
        # As published (RECIPE 6), colour is changed after resizing and rounding: hue and saturation
        # unclipped, then brightness and contrast, back to uint8.
        images = fn.hsv(images, hue=hue, saturation=saturation, dtype=DALIDataType.FLOAT)
        images = fn.brightness_contrast(
            images,
            brightness=brightness,
            contrast=contrast,
            contrast_center=CONTRAST_CENTER,
            dtype=DALIDataType.UINT8,
        )
        offsets, labels = _match(boxes_ltrb, labels, options)
        pipeline.set_outputs(_normalise(images, flip, options), offsets, labels)
    return pipeline


def evaluation_graph(batches: Iterable[tuple[list[NDArray[np.uint8]]]], options: GraphOptions) -> Pipeline:
    """Build the graph that returns whole pictures as images N×300×300×3; a batch is fed as (paths,)."""
    pipeline = _pipeline(options)
    with pipeline:
        (paths,) = fn.external_source(source=batches, num_outputs=1)
        images = _read(paths, [0.0, 0.0], [1.0, 1.0], options)
        pipeline.set_outputs(_normalise(images, 0, options))
    return pipeline


def _pipeline(options: GraphOptions) -> Pipeline:
    return Pipeline(batch_size=options.batch_size, num_threads=options.threads, device_id=options.device_id)


def _read(
    paths: DataNode, start: DataNode | list[float], size: DataNode | list[float], options: GraphOptions
) -> DataNode:
    """Decode just the window and resize it: N×300×300×3 RGB, uint8."""
    on_gpu = options.device_id is not None
    images = fn.decoders.image_slice(
        fn_file.read(paths),
        device="mixed" if on_gpu and options.decodes_on_gpu else "cpu",
        rel_start=start,
        rel_shape=size,
        adjust_orientation=False,  # DALI would rotate the picture by its EXIF tag, but not the boxes
        # By default the GPU's decoder upsamples chroma differently from the CPU's, with which the recipe's
        # accuracies were reached (RECIPE 9). The CPU's ignores this option.
        jpeg_fancy_upsampling=True,
        hw_decoder_load=0.0,  # the GPU's own JPEG unit was seen to damage pictures in silence
    )
    if on_gpu and not options.decodes_on_gpu:
        images = images.gpu()
    resized = fn.resize(
        images, size=[IMAGE_SIZE, IMAGE_SIZE], interp_type=DALIInterpType.INTERP_LINEAR, antialias=True
    )
    return cast(DataNode, resized)  # its stub allows a second output, which save_attrs would add


def _match(boxes_ltrb: DataNode, labels: DataNode, options: GraphOptions) -> tuple[DataNode, DataNode]:
    """Match on the CPU (RECIPE 6), then go to the images' device: offsets N×A×4 float32, labels N×A int64."""
    offsets, labels = fn.box_encoder(
        boxes_ltrb,
        labels,
        anchors=cxcywh_to_ltrb(default_boxes()).flatten().tolist(),
        criteria=MATCH_IOU,
        offset=True,
        stds=[CENTRE_SCALE, CENTRE_SCALE, SIZE_SCALE, SIZE_SCALE],
    )
    if options.device_id is not None:
        offsets, labels = offsets.gpu(), labels.gpu()
    return offsets, fn.cast(labels, dtype=DALIDataType.INT64)


def _normalise(images: DataNode, mirror: DataNode | int, options: GraphOptions) -> DataNode:
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        mean=MEAN,
        std=STD,
        dtype=DALI_TYPES[options.dtype],
        output_layout="HWC",  # the network runs channels_last
    )
