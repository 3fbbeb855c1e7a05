"""The set loss of families that predict boxes with masks for each query: that of boxes, and masks compared at points.

As RF-DETR trains: matching and loss see a share of the cells of a mask, the loss mostly where it is least certain
(``losses/masks.py``). Points are (x, y) in 0..1 of the padded image; an object's mask is read at the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dqdet.config import InstanceLossConfig
from dqdet.losses.masks import (
    MASKS_AT_ONCE,
    ObjectMasks,
    RandomPoints,
    cross_entropy_costs,
    dice_costs,
    dice_overlap,
    sample,
    sample_each,
    uncertain_points,
)
from dqdet.losses.matching import Matches
from dqdet.losses.set_loss import SetLoss
from dqdet.losses.whole_step import WholeStep
from dqdet.nn.product_masks import LayerMasks
from dqdet.types import Predictions, Target

OVERSAMPLE, IMPORTANT = 3, 0.75  # candidates a point, and the share of points of least certainty


class MaskedStep(WholeStep):
    """With the masks of the objects of the batch, once for all that is compared with them."""

    def __init__(self, predictions: Predictions, targets: list[Target], counts: Sequence[int]):
        super().__init__(targets, counts, predictions.logits.device)
        height, width = (LayerMasks.stride * side for side in layer_masks(predictions).features.shape[-2:])
        self.masks = ObjectMasks(targets, 1, height, width)


def layer_masks(predictions: Predictions) -> LayerMasks:
    """The masks that are predicted."""
    assert isinstance(predictions.masks, LayerMasks)
    return predictions.masks


class InstanceSetLoss(SetLoss):
    """Matches predictions with objects and sums class, box, mask and dice losses of all layers and groups.

    Args:
        config: weights.
        points: source of the points; tests pass recorded ones.
    """

    config: InstanceLossConfig

    def __init__(self, config: InstanceLossConfig, points: RandomPoints | None = None):
        super().__init__(config)
        self.points = points or RandomPoints()

    def whole_step(self, predictions: Predictions, targets: list[Target], counts: Sequence[int]) -> MaskedStep:
        return MaskedStep(predictions, targets, counts)

    @torch.no_grad()
    def costs(self, predictions: Predictions, targets: list[Target], step: WholeStep) -> Tensor:
        assert isinstance(step, MaskedStep)
        masks, predicted = step.masks, layer_masks(predictions)
        rows = torch.arange(len(masks.height), device=predictions.logits.device)
        of_images = pad_sequence(list(rows.split([len(target.labels) for target in targets])), batch_first=True)
        with torch.autocast(predictions.logits.device.type, enabled=False):
            layers = zip(predicted.embeddings.float(), predicted.features.float(), strict=True)
            of_masks = [
                self.mask_costs(layer, embeddings, features, predicted.bias, masks, of_images)
                for layer, (embeddings, features) in enumerate(layers)
            ]
        return super().costs(predictions, targets, step) + torch.stack(of_masks)  # [L, B, Q, N]

    def mask_costs(
        self, layer: int, embeddings: Tensor, features: Tensor, bias: Tensor, masks: ObjectMasks, rows: Tensor
    ) -> Tensor:
        """What the masks of one layer cost, ``[B, Q, N]``, from ``embeddings [B, Q, c]``, ``features [B, c, h, w]``."""
        count = max(1, features.shape[2] * features.shape[3] // self.config.cells_a_point)
        points = self.points.of_images(layer, "all", len(features), count, features.device)  # [B, P, 2]
        logits = embeddings @ sample(features, points) + bias  # [B, Q, P]
        wanted = masks.at(rows, points[:, None, None], nearest=True).flatten(2)  # [B, N, P]
        return self.config.mask_weight * cross_entropy_costs(logits, wanted) + self.config.dice_weight * dice_costs(
            logits, wanted
        )

    def weighted(
        self, predictions: Predictions, matches: Matches, targets: list[Target], step: WholeStep, copies: int = 1
    ) -> dict[str, tuple[float, Tensor]]:
        terms = super().weighted(predictions, matches, targets, step, copies)
        class_loss = terms["class"][1]  # [L, G]
        assert isinstance(step, MaskedStep)
        predicted = layer_masks(predictions)
        cell = matches.layer * class_loss.shape[1] + matches.group  # [M]: layer and group
        sums = class_loss.new_zeros(2, class_loss.numel())
        for image, some, pairs in matches.parts(MASKS_AT_ONCE):
            logits = predicted.of(pairs.layer, image, pairs.query).float()  # [pairs, h, w]
            sums = sums.index_add(1, cell[some], self.pair_losses(logits, pairs, step.masks))
        mask_loss, dice_loss = (sums / (step.objects * copies)).view(2, *class_loss.shape)
        of_masks = {"mask": (self.config.mask_weight, mask_loss), "dice": (self.config.dice_weight, dice_loss)}
        return terms | of_masks

    def pair_losses(self, predicted: Tensor, pairs: Matches, masks: ObjectMasks) -> Tensor:
        """Mask and dice loss of the predicted masks ``[M, h, w]`` of M pairs and of their objects: ``[2, M]``."""
        height, width = predicted.shape[1:]
        count = max(height, height * width // self.config.cells_a_point)
        points = uncertain_points(self.points, predicted[:, None], pairs, count, OVERSAMPLE, IMPORTANT)  # [M, 1, P, 2]
        logits = sample_each(predicted[:, None], points)[:, 0]  # [M, P]
        wanted = masks.at(pairs.row, points, nearest=True)[:, 0]  # [M, P]
        mask = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        probability = logits.sigmoid()
        dice = 1 - dice_overlap((probability * wanted).sum(1), probability.sum(1), wanted.sum(1))
        return torch.stack([mask, dice])
