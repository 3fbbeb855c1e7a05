"""The set loss of mask classification, with masks compared at points (Cheng et al., "Masked-attention Mask Transformer
for Universal Image Segmentation", CVPR 2022, section 3.3).

Full masks exist of matched queries only. All queries are matched at a few points, where their logits are products with
the mask features of these points: sampling is linear, as the product is. Letters as in ``types.py``, and P points,
G groups, M matched pairs. Points are (x, y) in 0..1 of the padded image.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dqdet.config import MaskLossConfig
from dqdet.losses.matching import Matches, assign, class_costs
from dqdet.losses.set_loss import Losses, count_objects, cross_entropy_loss, weighted_sum
from dqdet.types import Predictions, Target

STRIDE = 4  # of the mask features
PAIRS_AT_ONCE = 64  # pairs whose points are chosen together: bounds the memory of their candidates


class RandomPoints:
    """Where masks are compared: anywhere, with the same probability."""

    def of_images(self, layer: int, group: str, images: int, count: int, device: torch.device) -> Tensor:
        """Points of the matching of one layer and group: ``[B, count, 2]``."""
        return torch.rand(images, count, 2, device=device)

    def of_pairs(self, pairs: Matches, count: int) -> Tensor:
        """Points of the loss of matched pairs: ``[M, count, 2]``."""
        return torch.rand(len(pairs.query), count, 2, device=pairs.query.device)


class ObjectMasks:
    """The masks of all objects of a batch, read at points.

    Images differ in size, so the masks lie one after the other in a flat table, unpadded and one byte a pixel.

    Args:
        targets: with masks.
        height, width: of the padded images.
    """

    def __init__(self, targets: list[Target], height: int, width: int):
        masks = [target.masks for target in targets if target.masks is not None]
        assert len(masks) == len(targets), "targets without masks"
        self.pixels = torch.cat([mask.flatten() for mask in masks])
        device = self.pixels.device
        sizes = torch.tensor([mask.shape[1:] for mask in masks for _ in mask], dtype=torch.long, device=device)
        self.height, self.width = sizes.view(-1, 2).unbind(1)  # [objects], [objects]
        areas = self.height * self.width
        self.first = areas.cumsum(0) - areas  # [objects], into pixels
        self.padded = torch.tensor([width, height], device=device)

    def at(self, rows: Tensor, points: Tensor) -> Tensor:
        """Bilinear samples; what lies outside an image is 0.

        Args:
            rows: ``[...]``, numbers of objects.
            points: ``[..., P, 2]``.

        Returns:
            ``[..., P]`` in 0..1.
        """
        first, height, width = (x[rows][..., None] for x in (self.first, self.height, self.width))  # [..., 1]
        location = points * self.padded - 0.5  # [..., P, 2], in pixels from the centre of the first
        corner = location.floor()
        fraction = location - corner
        left, top = corner.long().unbind(-1)  # [..., P]
        sampled = torch.zeros((), device=points.device)
        for dx, dy in product((0, 1), (0, 1)):
            x, y = left + dx, top + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            pixel = self.pixels[(first + y * width + x).where(inside, 0)] & inside
            share_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
            share_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
            sampled = sampled + share_x * share_y * pixel
        return sampled


class MaskSetLoss(nn.Module):
    """Matches predictions with objects and sums cross-entropy, mask and dice losses of all layers and groups.

    ``L = L(first group) + beta * L(every other group)``, each group with its own matching, each layer with the
    same weights. The mask losses are divided by the number of objects, averaged over all processes.

    Args:
        config: weights and numbers of points.
        points: source of the points; tests pass recorded ones.
    """

    def __init__(self, config: MaskLossConfig, points: RandomPoints | None = None):
        super().__init__()
        self.config = config
        self.points = points or RandomPoints()

    def forward(self, predictions: Predictions, targets: list[Target]) -> Losses:
        """The losses of ``predictions`` (logits ``[L, B, Q, C]`` and masks) for B targets with masks."""
        config = self.config
        embeddings, features = _embeddings_and_features(predictions)
        masks = ObjectMasks(targets, STRIDE * features.shape[2], STRIDE * features.shape[3])
        matches = self.match(predictions, targets, masks)
        rows = matches.row(targets)  # [M]
        labels = torch.cat([target.labels for target in targets])[rows]
        class_loss = cross_entropy_loss(predictions, matches, labels, config.no_object_weight)  # [L, G]
        cell = matches.layer * class_loss.shape[1] + matches.group(predictions.groups)  # [M]: layer and group
        sums = class_loss.new_zeros(2, class_loss.numel())  # [2, L*G]
        matched = embeddings[matches.layer, matches.image, matches.query]  # [M, c]
        for image, of_image in enumerate(features.unbind()):
            for pairs in (matches.image == image).nonzero()[:, 0].split(PAIRS_AT_ONCE):
                predicted = torch.einsum("mc,chw->mhw", matched[pairs], of_image)  # [pairs, h, w]
                losses = self.pair_losses(predicted, matches[pairs], masks, rows[pairs])  # [2, pairs]
                sums = sums.index_add(1, cell[pairs], losses)
        mask_loss, dice_loss = (sums / count_objects(targets, sums.device)).view(2, *class_loss.shape)
        weighted = {
            "class": (config.class_weight, class_loss),
            "mask": (config.mask_weight, mask_loss),
            "dice": (config.dice_weight, dice_loss),
        }
        return Losses(*weighted_sum(weighted, list(predictions.groups), config.beta))

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: list[Target], masks: ObjectMasks) -> Matches:
        """Assign to each object one query of every group, in every layer, at the least total cost."""
        embeddings, features = _embeddings_and_features(predictions)
        # A point reads all channels of a cell: side by side they are much faster to read.
        features = features.contiguous(memory_format=torch.channels_last)
        counts = [len(target.labels) for target in targets]
        rows = torch.arange(sum(counts), device=features.device).split(counts)
        padded_rows = pad_sequence(list(rows), batch_first=True)  # [B, N]
        groups = predictions.groups
        with torch.autocast(features.device.type, enabled=False):  # sums over points need more digits
            of_masks = [
                self.mask_costs(name, of_group.float(), features, masks, padded_rows)
                for name, of_group in zip(groups, embeddings.split(list(groups.values()), 2), strict=True)
            ]
        of_classes = class_costs(predictions.logits, targets, "cross_entropy")  # [L, B, Q, N]
        return assign(self.config.class_weight * of_classes + torch.cat(of_masks, 2), targets, groups)

    def mask_costs(self, group: str, embeddings: Tensor, features: Tensor, masks: ObjectMasks, rows: Tensor) -> Tensor:
        """What the masks of one group cost, layer after layer: ``[L, B, Q, N]``.

        Args:
            group: its name.
            embeddings: ``[L, B, Q, c]``, of this group only; features: ``[B, c, h, w]``.
            masks: of all objects.
            rows: ``[B, N]``, the objects of each image.
        """
        costs = []
        for layer, of_layer in enumerate(embeddings):
            points = self.points.of_images(layer, group, len(features), self.config.points, features.device)
            logits = of_layer @ sample(features, points)  # [B, Q, P]
            wanted = masks.at(rows, points[:, None])  # [B, N, P]
            costs.append(
                self.config.mask_weight * cross_entropy_costs(logits, wanted)
                + self.config.dice_weight * dice_costs(logits, wanted)
            )
        return torch.stack(costs)

    def pair_losses(self, predicted: Tensor, pairs: Matches, masks: ObjectMasks, rows: Tensor) -> Tensor:
        """Mask and dice loss of M predicted masks ``[M, h, w]`` and the objects ``rows [M]``: ``[2, M]``."""
        points = self.loss_points(predicted, pairs)  # [M, P, 2]
        logits = sample(predicted[:, None], points)[:, 0]  # [M, P]
        wanted = masks.at(rows, points)  # [M, P]
        mask = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(1)
        probability = logits.sigmoid()
        dice = 1 - dice_overlap((probability * wanted).sum(1), probability.sum(1), wanted.sum(1))
        return torch.stack([mask, dice])

    @torch.no_grad()
    def loss_points(self, predicted: Tensor, pairs: Matches) -> Tensor:
        """Points ``[M, P, 2]``, mostly where the predicted masks ``[M, h, w]`` are least certain.

        As in Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020.
        """
        count = self.config.points
        important = int(self.config.important * count)
        candidates = self.points.of_pairs(pairs, int(self.config.oversample * count))  # [M, candidates, 2]
        certainty = sample(predicted[:, None], candidates)[:, 0].abs()  # [M, candidates]
        chosen = certainty.topk(important, largest=False).indices[..., None].expand(-1, -1, 2)
        return torch.cat([candidates.gather(1, chosen), self.points.of_pairs(pairs, count - important)], 1)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of ``maps [B, C, h, w]`` at ``points [B, P, 2]``: ``[B, C, P]``; 0 outside."""
    # Half precision has too few digits for points, so maps become float instead.
    return F.grid_sample(maps.to(points.dtype), 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def cross_entropy_costs(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy, averaged over points, of every query and object: ``[B, Q, P], [B, N, P] -> [B, Q, N]``."""
    return (F.softplus(logits).sum(2, keepdim=True) - logits @ wanted.mT) / logits.shape[2]


def dice_costs(logits: Tensor, wanted: Tensor) -> Tensor:
    """Dice loss (Milletari et al., 2016) of every query and object: ``[B, Q, P], [B, N, P] -> [B, Q, N]``."""
    probability = logits.sigmoid()
    return 1 - dice_overlap(probability @ wanted.mT, probability.sum(2)[..., None], wanted.sum(2)[:, None])


def dice_overlap(both: Tensor, predicted: Tensor, wanted: Tensor) -> Tensor:
    """Dice coefficient from the sums over what is both, predicted and wanted; 1 is added as published."""
    return (2 * both + 1) / (predicted + wanted + 1)


def _embeddings_and_features(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """``[L, B, Q, c]`` and ``[B, c, h, w]``."""
    assert predictions.mask_embeddings is not None
    assert predictions.mask_features is not None
    return predictions.mask_embeddings, predictions.mask_features
