"""The MultiBox loss with hard-negative mining (RECIPE 4; Liu et al., SSD, section 2.2)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

NEGATIVES_PER_POSITIVE = 3


class MultiBoxLoss(nn.Module):
    """Localization and confidence loss of a batch.

    Its shapes are static, and it never waits for the device. It computes in float32 for any input dtype.
    """

    def forward(self, offsets: Tensor, logits: Tensor, target_offsets: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar: the sum of the two losses of `parts`."""
        localization, confidence = self.parts(offsets, logits, target_offsets, labels)
        return localization + confidence

    def parts(
        self, offsets: Tensor, logits: Tensor, target_offsets: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the localization loss and the confidence loss, both scalars.

        Each is summed over an image's default boxes, divided by the image's number of positives (an image
        without positives contributes 0), and averaged over the batch.

        offsets: N×4×A and logits: N×C×A, the network's outputs.
        target_offsets: N×A×4, `encode_offsets` of the matched boxes. labels: N×A int64, 0 is background.
        Raises ValueError if these shapes don't agree.
        """
        _check_shapes(offsets, logits, target_offsets, labels)
        positive = labels > 0
        num_positives = positive.sum(dim=1)  # N
        coordinate_losses = smooth_l1_loss(
            offsets.float(), target_offsets.float().transpose(1, 2), reduction="none"
        )  # N×4×A
        class_losses = cross_entropy(logits.float(), labels, reduction="none")  # N×A
        chosen = positive | _hard_negatives(
            class_losses.detach(), positive, NEGATIVES_PER_POSITIVE * num_positives
        )
        # Multiplied, not selected: a NaN anywhere must reach the loss, where the trainer checks for it.
        localization = (coordinate_losses.sum(dim=1) * positive).sum(dim=1)
        confidence = (class_losses * chosen).sum(dim=1)
        divisor = num_positives.clamp(min=1)  # without positives, both sums are already 0
        return (localization / divisor).mean(), (confidence / divisor).mean()


def _hard_negatives(class_losses: Tensor, positive: Tensor, counts: Tensor) -> Tensor:
    """Mark the `counts` negatives with the largest loss in each row, or all if fewer: N×A, N×A, N → N×A bool.

    Selects by rank: top-k needs the same count for all rows, and a threshold selects too many if losses tie.
    """
    order = class_losses.masked_fill(positive, -1).argsort(dim=1, descending=True, stable=True)
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    ranks = torch.empty_like(order).scatter_(1, order, positions)
    return (ranks < counts[:, None]) & ~positive


def _check_shapes(offsets: Tensor, logits: Tensor, target_offsets: Tensor, labels: Tensor) -> None:
    images, boxes = labels.shape
    expected = ((images, 4, boxes), (images, logits.shape[1], boxes), (images, boxes, 4))
    given = tuple(tuple(tensor.shape) for tensor in (offsets, logits, target_offsets))
    if given != expected:
        raise ValueError(
            "MultiBoxLoss: offsets N×4×A, logits N×C×A, target_offsets N×A×4 and labels N×A must agree, "
            f"got {', '.join(map(str, given))} and {tuple(labels.shape)}"
        )
