"""Augmentation: a slow literal reference for every number, and DALI's own crop for the statistics."""

import numpy as np
import pytest
from nvidia.dali import fn
from nvidia.dali.pipeline import Pipeline

from data import augment
from data.augment import Augmentation, augment_boxes
from data.sampling import raw_draws, uniform_draws

pytestmark = pytest.mark.unit


def draw_augmentation(boxes: np.ndarray, seed: int, epoch: int, image: int) -> Augmentation:
    return augment.draw_augmentation(boxes, uniform_draws(seed, epoch, image + 1))


def coco_like_boxes(images: int) -> list[np.ndarray]:
    """Draw boxes in number and size about as COCO has them: many small ones, few large."""
    rng = np.random.default_rng(11)
    boxes = []
    for _ in range(images):
        sides = np.exp(rng.normal(-1.9, 1.0, (1 + rng.poisson(3), 2))).clip(0.01, 0.95)
        left_top = rng.uniform(0, 1, sides.shape) * (1 - sides)
        boxes.append(np.concatenate((left_top, left_top + sides), axis=1).astype(np.float32))
    return boxes


def literal_window(boxes: list[list[float]], uniforms: list[float]) -> tuple[float, float, float, float]:
    """RECIPE 6, box by box and number by number."""
    draw = iter(uniforms)
    while True:
        option, u_width, u_height, u_left, u_top = (next(draw) for _ in range(5))
        min_iou = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, None][int(option * 7)]
        if min_iou is None:
            return 0.0, 0.0, 1.0, 1.0
        width, height = 0.3 + 0.7 * u_width, 0.3 + 0.7 * u_height
        if width / height < 0.5 or width / height > 2:
            continue
        left, top = u_left * (1 - width), u_top * (1 - height)
        right, bottom = left + width, top + height
        ious, centres = [], 0
        for x1, y1, x2, y2 in boxes:
            overlap = max(min(x2, right) - max(x1, left), 0) * max(min(y2, bottom) - max(y1, top), 0)
            ious.append(overlap / ((x2 - x1) * (y2 - y1) + width * height - overlap))
            centres += left < (x1 + x2) / 2 < right and top < (y1 + y2) / 2 < bottom
        if min(ious) >= min_iou and centres > 0:
            return left, top, width, height


def test_window_equals_a_literal_reference() -> None:
    boxes_of = coco_like_boxes(300)
    kinds = set()
    for image, boxes in enumerate(boxes_of):
        uniforms = ((raw_draws(4, 2, image + 1, 505) >> np.uint64(11)) / 2**53).tolist()
        expected = literal_window(boxes.astype(float).tolist(), uniforms[5:])
        assert draw_augmentation(boxes, 4, 2, image).window_ltwh == pytest.approx(expected, rel=1e-12)
        kinds.add(expected == (0, 0, 1, 1))
    assert kinds == {True, False}


def test_flip_and_colour_are_uniform_in_the_ranges_of_the_recipe() -> None:
    (boxes,) = coco_like_boxes(1)
    drawn = [draw_augmentation(boxes, 0, epoch, image) for epoch in range(5) for image in range(1000)]
    assert np.mean([each.flip for each in drawn]) == pytest.approx(0.5, abs=0.03)
    ranges = {
        "hue": (-0.5, 0.5),
        "saturation": (0.5, 1.5),
        "brightness": (0.875, 1.125),
        "contrast": (0.5, 1.5),
    }
    for name, (low, high) in ranges.items():
        unit = (np.array([getattr(each, name) for each in drawn]) - low) / (high - low)
        assert 0 <= unit.min() < 0.01
        assert 0.99 < unit.max() <= 1
        assert np.quantile(unit, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
    columns = np.array([[e.flip, e.hue, e.saturation, e.brightness, e.contrast] for e in drawn], dtype=float)
    assert np.abs(np.corrcoef(columns.T) - np.eye(5)).max() < 0.06  # one draw each, not one for two


def test_augmentation_of_a_seed_epoch_and_image_never_changes() -> None:
    boxes = np.array([[0.2, 0.3, 0.6, 0.7]], dtype=np.float32)
    drawn = draw_augmentation(boxes, seed=0, epoch=0, image=2)
    # Written down once: a resumed run relies on the augmentations of the version that began it.
    assert drawn == Augmentation(
        window_ltwh=(0.04930455795373851, 0.2845164780761077, 0.8026465672304983, 0.6445247785025338),
        flip=True,
        hue=-0.36737416413404445,
        saturation=1.125339831232993,
        brightness=0.9220060757619646,
        contrast=1.1894354128641895,
    )
    others = [(1, 0, 2), (0, 1, 2), (0, 0, 3)]
    assert all(draw_augmentation(boxes, *key) != drawn for key in others)


def dali_crops(boxes_of: list[np.ndarray], repeats: int) -> tuple[np.ndarray, list[int]]:
    pipeline = Pipeline(batch_size=len(boxes_of), num_threads=1, device_id=None, seed=7)
    with pipeline:
        boxes = fn.external_source(source=lambda: boxes_of)
        start, size, kept, _ = fn.random_bbox_crop(
            boxes,
            fn.external_source(source=lambda: [np.zeros(len(each), np.int32) for each in boxes_of]),
            aspect_ratio=[0.5, 2.0],
            thresholds=[0.0, 0.1, 0.3, 0.5, 0.7, 0.9],
            scaling=[0.3, 1.0],
            bbox_layout="xyXY",
            allow_no_crop=True,
            num_attempts=1,
        )
        pipeline.set_outputs(start, size, kept)
    windows, counts = [], []
    for _ in range(repeats):
        start, size, kept = pipeline.run()
        windows.append(np.concatenate((start.as_array(), size.as_array()), axis=1))
        counts += [len(np.array(each)) for each in kept]
    return np.concatenate(windows), counts


def test_crop_statistics_equal_those_of_dalis_random_bbox_crop() -> None:
    boxes_of, repeats = coco_like_boxes(250), 24
    theirs, their_counts = dali_crops(boxes_of, repeats)
    drawn = [
        draw_augmentation(boxes, 1, epoch, image)
        for epoch in range(repeats)
        for image, boxes in enumerate(boxes_of)
    ]
    ours = np.array([each.window_ltwh for each in drawn])
    labels_of = [np.zeros(len(boxes), np.int32) for boxes in boxes_of]
    kept, _ = augment_boxes(drawn, boxes_of * repeats, labels_of * repeats)
    our_counts = [len(each) for each in kept]

    def statistics(windows: np.ndarray, counts: list[int]) -> list[float]:
        area = windows[:, 2] * windows[:, 3]
        cropped = windows[area < 1]
        return [
            (area == 1).mean(),
            area.mean(),
            *np.quantile(area, [0.1, 0.25, 0.4]),
            *cropped.mean(axis=0),
            np.log(cropped[:, 2] / cropped[:, 3]).std(),
            np.mean(counts) / np.mean([len(each) for each in boxes_of]),
        ]

    # 6,000 draws each: the standard error of a difference is at most 0.009, that of the first.
    assert statistics(ours, our_counts) == pytest.approx(statistics(theirs, their_counts), abs=0.025)


def test_image_that_fails_every_attempt_is_taken_whole() -> None:
    always_too_wide = [0.0, 0.99, 0.0, 0.0, 0.0]
    draws = iter([0.0] * 5 + always_too_wide * augment.MAX_ATTEMPTS)
    boxes = np.array([[0.2, 0.3, 0.6, 0.7]], dtype=np.float32)
    assert augment.draw_augmentation(boxes, draws).window_ltwh == (0, 0, 1, 1)


def test_boxes_of_a_batch_equal_a_literal_reference() -> None:
    boxes_of = coco_like_boxes(200)
    drawn = [draw_augmentation(boxes, 8, 0, image) for image, boxes in enumerate(boxes_of)]
    for image in (0, 1, 57, 199):  # batches hold images without boxes too
        boxes_of[image] = np.zeros((0, 4), np.float32)
    labels_of = [np.arange(1, len(boxes) + 1, dtype=np.int32) for boxes in boxes_of]
    got_of = zip(*augment_boxes(drawn, boxes_of, labels_of), strict=True)
    counts = []
    for each, boxes, labels, (got, got_labels) in zip(drawn, boxes_of, labels_of, got_of, strict=True):
        left, top, width, height = each.window_ltwh
        expected, expected_labels = [], []
        for (x1, y1, x2, y2), label in zip(boxes.astype(float).tolist(), labels, strict=True):
            if not (left < (x1 + x2) / 2 < left + width and top < (y1 + y2) / 2 < top + height):
                continue
            x1, x2 = ((max(min(x, left + width), left) - left) / width for x in (x1, x2))
            y1, y2 = ((max(min(y, top + height), top) - top) / height for y in (y1, y2))
            expected.append([1 - x2, y1, 1 - x1, y2] if each.flip else [x1, y1, x2, y2])
            expected_labels.append(label)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, np.array(expected).reshape(-1, 4), rtol=0, atol=1e-7)
        assert got_labels.tolist() == expected_labels
        assert ((got >= 0) & (got <= 1)).all()
        counts.append((len(boxes), len(got_labels)))
    assert all(kept >= 1 for boxes, kept in counts if boxes)
    assert {kept == boxes for boxes, kept in counts if boxes} == {True, False}


def test_no_augmentation_leaves_boxes_to_the_bit() -> None:
    boxes = coco_like_boxes(1)
    labels = [np.arange(len(boxes[0]), dtype=np.int32)]
    (got,), (got_labels,) = augment_boxes([Augmentation()], boxes, labels)
    assert np.array_equal(got, boxes[0])
    assert np.array_equal(got_labels, labels[0])
