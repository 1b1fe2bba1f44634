"""The golden arrays, and the weights and inputs made by the rules in tests/golden/README.md."""

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
SEED = 20260101


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as arrays:
        return dict(arrays)


def golden_json(name: str):
    return json.loads((GOLDEN / name).read_text())


def published_weights(backbone: str) -> dict[str, Tensor]:
    """Make weights in the published layout of resnet18 or resnet50, by the rules."""
    shapes = golden_json(f"state_dict_{backbone}.json")
    return {key: torch.from_numpy(_rule_made(key, shape)) for key, shape in shapes.items()}


def _rule_made(key: str, shape: list[int]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, dtype=np.int64)
    random = np.random.RandomState((crc32(key.encode()) + SEED) % 2**32)
    values = random.standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        values = 0.2 * np.abs(values) + 0.8
    elif key.endswith("running_mean"):
        values = 0.1 * values
    elif len(shape) == 1:
        values = 1 + 0.1 * values if key.endswith("weight") else 0.05 * values
    else:
        values = values * np.sqrt(2 / np.prod(shape[1:]))
    return values.astype(np.float32)


def forward_images() -> Tensor:
    return _normal_images(SEED + 1)


def trajectory_images() -> Tensor:
    return _normal_images(SEED + 5)


def _normal_images(seed: int) -> Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((2, 3, 300, 300)).astype(np.float32))


def ground_truth(index: int) -> tuple[Tensor, Tensor]:
    """Return set 0…4 of encode.npz: boxes G×4 ltrb and labels G."""
    arrays = golden_arrays("encode.npz")
    return torch.from_numpy(arrays[f"gt_boxes_{index}"]), torch.from_numpy(arrays[f"gt_labels_{index}"])


def loss_predictions() -> tuple[Tensor, Tensor]:
    """Return offsets 5×4×8732 and logits 5×81×8732."""
    random = np.random.RandomState(SEED + 3)
    offsets = random.standard_normal((5, 4, 8732)).astype(np.float32)
    logits = (random.standard_normal((5, 81, 8732)) * 2).astype(np.float32)
    return torch.from_numpy(offsets), torch.from_numpy(logits)


def decode_inputs() -> tuple[Tensor, Tensor]:
    """Return offsets 3×4×8732 and logits 3×81×8732 with clusters of confident boxes, exact in float16."""
    random = np.random.RandomState(SEED + 4)
    offsets = (random.standard_normal((3, 4, 8732)) * 0.5).astype(np.float32)
    logits = random.standard_normal((3, 81, 8732)).astype(np.float32)
    logits[:, 0] += 6
    for image in range(3):
        for _ in range(25 * (image + 1)):
            box, label = random.randint(0, 8732), random.randint(1, 81)
            logits[image, label, max(box - 2, 0) : box + 3] += random.uniform(4, 9)
    exact = [torch.from_numpy(each.astype(np.float16).astype(np.float32)) for each in (offsets, logits)]
    return exact[0], exact[1]
