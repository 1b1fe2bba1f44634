import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ssd.boxes import default_boxes, encode_offsets, match
from ssd.loss import MultiBoxLoss
from tests.golden_inputs import golden_arrays, ground_truth, loss_predictions

pytestmark = pytest.mark.unit


def golden_targets() -> tuple[Tensor, Tensor]:
    """Return the targets of sets 0…3 of encode.npz, then of an image without a positive."""
    matched = [match(*ground_truth(index), default_boxes()) for index in range(4)]
    matched.append((default_boxes(), torch.zeros(8732, dtype=torch.int64)))
    offsets = [encode_offsets(boxes_cxcywh, default_boxes()) for boxes_cxcywh, _ in matched]
    return torch.stack(offsets), torch.stack([labels for _, labels in matched])


def random_batch(seed: int, levels: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Make images of 60 default boxes with 0, 1, 5, 15 and 40 positives; a few levels of logits make ties."""
    generator = torch.Generator().manual_seed(seed)
    offsets = 2 * torch.randn(5, 4, 60, generator=generator)
    logits = 2 * torch.randn(5, 7, 60, generator=generator)
    if levels is not None:
        logits = torch.randint(levels, (5, 7, 60), generator=generator).float()
    target_offsets = 2 * torch.randn(5, 60, 4, generator=generator)
    labels = torch.zeros(5, 60, dtype=torch.int64)
    for image, positives in enumerate((0, 1, 5, 15, 40)):
        where = torch.randperm(60, generator=generator)[:positives]
        labels[image, where] = torch.randint(1, 7, (positives,), generator=generator)
    return offsets, logits, target_offsets, labels


def parts_one_by_one(
    offsets: Tensor, logits: Tensor, target_offsets: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """RECIPE 4 read literally. The sum doesn't depend on which of the tied negatives is chosen."""
    localization, confidence = torch.zeros(()), torch.zeros(())
    for image in range(len(labels)):
        positives = [box for box in range(labels.shape[1]) if labels[image, box] > 0]
        losses = [
            functional.cross_entropy(logits[image, :, box], labels[image, box])
            for box in range(labels.shape[1])
        ]
        negatives = sorted(
            (losses[box] for box in range(labels.shape[1]) if labels[image, box] == 0),
            key=lambda loss: -loss.item(),
        )
        for box in positives:
            errors = (offsets[image, :, box] - target_offsets[image, box]).abs()
            smooth = torch.where(errors < 1, 0.5 * errors**2, errors - 0.5).sum()
            localization = localization + smooth / len(positives) / len(labels)
            confidence = confidence + losses[box] / len(positives) / len(labels)
        for loss in negatives[: 3 * len(positives)]:
            confidence = confidence + loss / len(positives) / len(labels)
    return localization, confidence


def test_loss_equals_the_published_one_together_and_of_each_image_alone():
    golden = golden_arrays("loss.npz")
    inputs = (*loss_predictions(), *golden_targets())
    loss = MultiBoxLoss()(*inputs)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)
    losses = [MultiBoxLoss()(*(tensor[i : i + 1] for tensor in inputs)).item() for i in range(5)]
    assert losses == pytest.approx(golden["per_image"].tolist(), rel=1e-5)
    assert losses[4] == 0


def test_gradients_and_chosen_negatives_equal_the_published_ones():
    golden = golden_arrays("loss.npz")
    offsets, logits = (tensor.requires_grad_() for tensor in loss_predictions())
    MultiBoxLoss()(offsets, logits, *golden_targets()).backward()
    for gradient, name in ((offsets.grad, "loc"), (logits.grad, "conf")):
        expected = golden[f"grad_{name}"]
        np.testing.assert_allclose(gradient[:, :, ::61], expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        assert gradient.abs().sum().item() == pytest.approx(float(golden[f"grad_{name}_abssum"]), rel=1e-6)
    selected = (logits.grad != 0).any(dim=1).sum(dim=1)
    assert selected.tolist() == golden["n_selected"].tolist()


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_parts_equal_the_literal_rule(seed: int, levels: int | None):
    batch = random_batch(seed, levels)
    parts = MultiBoxLoss().parts(*batch)
    torch.testing.assert_close(parts, parts_one_by_one(*batch), rtol=1e-5, atol=0)
    assert torch.equal(MultiBoxLoss()(*batch), parts[0] + parts[1])


def test_where_losses_tie_exactly_three_negatives_a_positive_are_chosen():
    offsets, logits, target_offsets, labels = random_batch(0)
    logits = torch.zeros_like(logits, requires_grad=True)
    MultiBoxLoss()(offsets, logits, target_offsets, labels).backward()
    chosen = (logits.grad != 0).any(dim=1)
    assert chosen.sum(dim=1).tolist() == [0, 4, 20, 60, 60]
    assert chosen[labels > 0].all()


def test_a_positive_is_never_counted_as_a_negative_too():
    # 40 positives ask for 120 negatives, but there are 20. The published code adds positives to fill up.
    offsets, logits, target_offsets, labels = (tensor[4:] for tensor in random_batch(1))
    confidence = MultiBoxLoss().parts(offsets, logits, target_offsets, labels)[1]
    all_once = functional.cross_entropy(logits, labels, reduction="sum") / 40
    torch.testing.assert_close(confidence, all_once)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_predictions_are_computed_in_float32_under_autocast(dtype: torch.dtype):
    offsets, logits, target_offsets, labels = random_batch(4)
    offsets, logits = offsets.to(dtype), logits.to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        parts = MultiBoxLoss().parts(offsets, logits, target_offsets, labels)
    assert all(part.dtype == torch.float32 for part in parts)
    assert parts == MultiBoxLoss().parts(offsets.float(), logits.float(), target_offsets, labels)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("image", [0, 4])
def test_a_nan_prediction_reaches_the_loss_even_where_no_box_is_chosen(which: int, image: int):
    batch = random_batch(5)
    box = (batch[3][image] == 0).nonzero()[0, 0]
    batch[which][image, 0, box] = float("nan")
    assert MultiBoxLoss()(*batch).isnan()


@pytest.mark.parametrize("position", range(3))
def test_transposed_input_is_refused_by_shape(position: int):
    batch = list(random_batch(9))
    batch[position] = batch[position].transpose(1, 2)
    with pytest.raises(ValueError, match=r"must agree, got .*60"):
        MultiBoxLoss()(*batch)
