"""Each stage of the graph against a slow literal reference, boxes against pixels, targets against match."""

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline
from PIL import Image

from data.augment import Augmentation, augment_boxes
from data.graph import (
    GraphOptions,
    TrainingInputs,
    encode_path,
    evaluation_graph,
    training_graph,
    window_of_pixels,
)
from ssd.boxes import default_boxes, encode_offsets, match
from tests.data.coco_folder import noise

pytestmark = pytest.mark.unit

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
Save = Callable[[np.ndarray], Path]
NO_BOXES = np.zeros((0, 4), np.float32)


def options(dtype: torch.dtype = torch.float32) -> GraphOptions:
    return GraphOptions(batch_size=8, dtype=dtype, threads=1, device_id=None)


def fed(
    path: Path | list[str],
    augmentations: list[Augmentation],
    boxes_ltrb: np.ndarray = NO_BOXES,
    labels: np.ndarray | None = None,
) -> TrainingInputs:
    """One picture under several augmentations as one batch, or as many pictures."""
    labels = np.zeros(len(boxes_ltrb), np.int32) if labels is None else labels
    count = len(augmentations)
    seen_ltrb, seen_labels = augment_boxes(augmentations, [boxes_ltrb] * count, [labels] * count)
    return TrainingInputs(
        paths=[encode_path(each) for each in (path if isinstance(path, list) else [str(path)] * count)],
        window_start=np.array([each.window_ltwh[:2] for each in augmentations], np.float32),
        window_size=np.array([each.window_ltwh[2:] for each in augmentations], np.float32),
        flip=np.array([each.flip for each in augmentations], np.int32),
        hue=np.array([each.hue for each in augmentations], np.float32),
        saturation=np.array([each.saturation for each in augmentations], np.float32),
        brightness=np.array([each.brightness for each in augmentations], np.float32),
        contrast=np.array([each.contrast for each in augmentations], np.float32),
        boxes_ltrb=seen_ltrb,
        labels=seen_labels,
    )


def run(inputs: TrainingInputs, graph_options: GraphOptions | None = None) -> list[torch.Tensor]:
    outputs = training_graph([inputs], graph_options or options()).run()
    return [torch.from_dlpack(each.as_tensor()) for each in outputs]


def pixels_of(path: Path, augmentation: Augmentation) -> np.ndarray:
    """Return the picture 300×300×3 that the network would see, as values 0 … 255."""
    (image,) = run(fed(path, [augmentation]))[0].double().numpy()
    return (image * STD + MEAN) * 255


def evaluate(path: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    (images,) = evaluation_graph([([encode_path(str(path))],)], options(dtype)).run()
    return torch.from_dlpack(images.as_tensor())


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def save(pixels: np.ndarray) -> Path:
        path = tmp_path / f"{len([*tmp_path.iterdir()])}.png"
        Image.fromarray(pixels).save(path)
        return path

    return save


@pytest.fixture
def picture() -> np.ndarray:
    return noise(np.random.default_rng(1), 300, 300)


def test_whole_picture_of_the_input_size_is_only_normalised(save: Save, picture: np.ndarray) -> None:
    images = evaluate(save(picture))
    assert images.shape == (1, 300, 300, 3)
    np.testing.assert_allclose(images[0].numpy(), (picture / 255 - MEAN) / STD, rtol=0, atol=1e-6)


def test_chroma_of_a_jpeg_is_interpolated_as_by_libjpeg(tmp_path: Path, picture: np.ndarray) -> None:
    """Chroma at half the resolution, as cameras and COCO have it; repeating its samples differs by far."""
    path = tmp_path / "subsampled.jpg"
    Image.fromarray(picture).save(path, subsampling="4:2:0")
    got = (evaluate(path)[0].double().numpy() * STD + MEAN) * 255
    np.testing.assert_allclose(got, np.asarray(Image.open(path)), rtol=0, atol=1e-3)


def test_no_augmentation_leaves_every_colour_as_it_is(save: Save, picture: np.ndarray) -> None:
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)  # 140,608
    picture = np.zeros((375, 375, 3), np.uint8)
    picture.reshape(-1, 3)[: len(colours)] = colours
    for part in (picture[:300, :300], picture[-300:, :300], picture[:300, -300:], picture[-300:, -300:]):
        path = save(np.ascontiguousarray(part))
        assert torch.equal(run(fed(path, [Augmentation()]))[0], evaluate(path))


def test_flip_mirrors_left_to_right(save: Save, picture: np.ndarray) -> None:
    got = pixels_of(save(picture), Augmentation(flip=True))
    np.testing.assert_allclose(got, picture[:, ::-1], rtol=0, atol=1e-3)


def test_window_is_the_part_of_the_picture_that_it_names(save: Save) -> None:
    picture = noise(np.random.default_rng(2), 640, 480)
    window = (100 / 640, 50 / 480, 300 / 640, 300 / 480)  # 300×300 pixels: not resized
    got = pixels_of(save(picture), Augmentation(window_ltwh=window))
    np.testing.assert_allclose(got, picture[50:350, 100:400], rtol=0, atol=1e-3)


def test_every_window_of_a_tiny_picture_shows_a_part_of_it(save: Save) -> None:
    for pixels in range(1, 7):
        path = save(noise(np.random.default_rng(9), pixels, pixels))
        for side in (0.3, 0.34, 0.5, 0.7, 1):
            starts = [start * (1 - side) for start in (0, 0.3, 0.5, 0.9, 1)]
            windows = [window_of_pixels((start, start, side, side), (pixels, pixels)) for start in starts]
            images = run(fed(path, [Augmentation(window_ltwh=window) for window in windows]))[0]
            assert torch.isfinite(images).all()


def test_a_window_narrower_than_a_pixel_is_the_pixel_at_its_centre() -> None:
    assert window_of_pixels((0.55, 0.1, 0.3, 0.5), (3, 100)) == pytest.approx((2 / 3, 0.1, 1 / 3, 0.5))
    assert window_of_pixels((0.7, 0.65, 0.3, 0.35), (1, 2)) == pytest.approx((0, 0.5, 1, 0.5))
    assert window_of_pixels((0.123, 0.2, 0.3, 0.7), (4, 2)) == (0.123, 0.2, 0.3, 0.7)


def triangle_weights(source: int, target: int) -> np.ndarray:
    """Linear interpolation with its triangle widened by the scale when shrinking: target×source.

    Beyond the edges the picture goes on with its last pixel.
    """
    scale = source / target
    weights = np.zeros((target, source))
    for row in range(target):
        centre = (row + 0.5) * scale - 0.5
        for place in range(int(centre - scale) - 2, int(centre + scale) + 3):
            weight = max(1 - abs(place - centre) / max(scale, 1), 0)
            weights[row, min(max(place, 0), source - 1)] += weight
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("width", "height"), [(640, 480), (150, 310), (301, 299)])
def test_resize_is_linear_and_antialiased(save: Save, width: int, height: int) -> None:
    picture = noise(np.random.default_rng(4), width, height)
    rows = np.tensordot(triangle_weights(height, 300), picture.astype(float), axes=1)  # 300×width×3
    expected = (triangle_weights(width, 300) @ rows.reshape(300, width, 3)).reshape(300, 300, 3)
    got = pixels_of(save(picture), Augmentation())
    assert np.abs(got - expected).max() < 0.52  # rounded to uint8 once, at the end


def coloured(pixels: np.ndarray, augmentation: Augmentation) -> np.ndarray:
    """RECIPE 6's colour: a rotation and scaling of the chroma in the YIQ plane, then brightness and contrast.

    Not rounded, since a half may round either way in float32.
    """
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    angle, saturation = np.deg2rad(augmentation.hue), augmentation.saturation
    chroma = np.array(
        [
            [1, 0, 0],
            [0, saturation * np.cos(angle), saturation * np.sin(angle)],
            [0, -saturation * np.sin(angle), saturation * np.cos(angle)],
        ]
    )
    rgb = pixels @ (np.linalg.inv(to_yiq) @ chroma @ to_yiq).T  # not clipped
    rgb = augmentation.brightness * (128 + augmentation.contrast * (rgb - 128))
    return np.clip(rgb, 0, 255)


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(hue=0.5),
        Augmentation(hue=40.0),
        Augmentation(saturation=0.5),
        Augmentation(saturation=1.5),
        Augmentation(brightness=0.875),
        Augmentation(brightness=1.125),
        Augmentation(contrast=0.5),
        Augmentation(contrast=1.5),
        Augmentation(hue=-0.3, saturation=1.4, brightness=1.1, contrast=0.6),
    ],
    ids=str,
)
def test_colour_equals_a_literal_reference(
    save: Save, picture: np.ndarray, augmentation: Augmentation
) -> None:
    got = pixels_of(save(picture), augmentation)
    np.testing.assert_allclose(got, np.rint(got), rtol=0, atol=1e-3)
    np.testing.assert_allclose(got, coloured(picture, augmentation), rtol=0, atol=0.501)


@pytest.mark.parametrize("flip", [False, True])
def test_a_rectangle_fills_its_box_after_window_resize_and_flip(save: Save, flip: bool) -> None:
    width, height = 500, 400
    rng = np.random.default_rng(6)
    for _ in range(12):
        left_top = rng.integers((20, 20), (300, 200))
        right_bottom = left_top + rng.integers(60, 180, 2)
        picture = np.zeros((height, width, 3), np.uint8)
        picture[left_top[1] : right_bottom[1], left_top[0] : right_bottom[0]] = 255
        box = np.concatenate((left_top, right_bottom)) / (width, height, width, height)
        sides = rng.uniform(0.5, 1, 2)
        start = rng.uniform(0, 1, 2) * (1 - sides)
        augmentation = Augmentation(window_ltwh=(*start.tolist(), *sides.tolist()), flip=flip)
        (boxes,), _ = augment_boxes([augmentation], [box[None].astype(np.float32)], [np.ones(1, np.int32)])
        if len(boxes) == 0:
            continue
        bright = pixels_of(save(picture), augmentation)[..., 0] > 127
        rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
        got = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        # The decoder rounds the window to whole pixels, here at most 1.5 pixels of the input each.
        np.testing.assert_allclose(got, boxes[0] * 300, rtol=0, atol=2.0)
        assert bright.sum() >= (got[2] - got[0]) * (got[3] - got[1]) - 4  # but for blurred corners


def test_targets_equal_matching_and_encoding_of_ssd_boxes(save: Save, picture: np.ndarray) -> None:
    path = save(picture)
    rng = np.random.default_rng(7)
    for count in (0, 1, 3, 20):
        sides = rng.uniform(0.02, 0.6, (count, 2))
        left_top = rng.uniform(0, 1, (count, 2)) * (1 - sides)
        boxes = np.concatenate((left_top, left_top + sides), axis=1).astype(np.float32)
        labels = rng.integers(1, 81, count).astype(np.int32)
        _, offsets, got_labels = run(fed(path, [Augmentation()], boxes, labels))
        matched, expected_labels = match(torch.from_numpy(boxes), torch.from_numpy(labels), default_boxes())
        assert torch.equal(got_labels[0], expected_labels)
        torch.testing.assert_close(offsets[0], encode_offsets(matched, default_boxes()), rtol=1e-5, atol=1e-5)
        assert (expected_labels > 0).any() == (count > 0)


def test_grey_pictures_and_such_with_alpha_become_rgb(save: Save, picture: np.ndarray) -> None:
    grey = evaluate(save(picture[..., 0]))
    assert torch.equal(grey, evaluate(save(np.repeat(picture[..., :1], 3, axis=2))))
    opaque = np.concatenate((picture, np.full((300, 300, 1), 255, np.uint8)), axis=2)
    assert torch.equal(evaluate(save(opaque)), evaluate(save(picture)))


def test_exif_orientation_does_not_turn_the_picture_away_from_its_boxes(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(np.random.default_rng(9), 64, 48)).resize((320, 240))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright
    picture.save(tmp_path / "plain.jpg")
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert torch.equal(evaluate(tmp_path / "plain.jpg"), evaluate(tmp_path / "turned.jpg"))


@pytest.mark.parametrize(("decodes_on_gpu", "decoder"), [(False, "cpu"), (True, "mixed")])
@pytest.mark.parametrize("graph", [training_graph, evaluation_graph])
def test_all_that_a_graph_of_a_gpu_puts_out_is_there_wherever_it_decodes(
    graph: Callable[..., Pipeline],
    decodes_on_gpu: bool,
    decoder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Defined, not run: that takes a GPU."""
    decode = Mock(wraps=fn.decoders.image_slice)
    monkeypatch.setattr(fn.decoders, "image_slice", decode)
    pipeline = graph(iter([]), GraphOptions(2, torch.float16, 1, 0, decodes_on_gpu))
    assert {node.device for node in pipeline._graph_out} == {"gpu"}
    assert decode.call_args.kwargs["device"] == decoder
    assert decode.call_args.kwargs["hw_decoder_load"] == 0
