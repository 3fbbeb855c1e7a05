"""The set loss of mask classification, with masks compared at points (Cheng et al., "Masked-attention Mask Transformer
for Universal Image Segmentation", CVPR 2022, section 3.3).

Full masks exist of matched queries only. All queries are matched at a few points, where their logits are products with
the mask features of these points: sampling is linear, as the product is. Letters as in ``types.py``, and P points,
G groups, M matched pairs. Points are (x, y) in 0..1 of the padded image.

An image is a clip of one frame. Of clips (Cheng et al., "Mask2Former for Video Instance Segmentation", 2021) the
matching sees the same points in every frame, while the mask losses are sums over the frames, each with its own points.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from dqdet.config import MaskLossConfig
from dqdet.losses.matching import Matches, assign, class_costs
from dqdet.losses.set_loss import Losses, cross_entropy_loss, weighted_sum
from dqdet.losses.whole_step import WholeStep
from dqdet.nn.product_masks import ProductMasks
from dqdet.types import Predictions, Target

MASKS_AT_ONCE = 64  # masks of pairs whose points are chosen together: bounds the memory of their candidates


class RandomPoints:
    """Where masks are compared: anywhere, with the same probability."""

    def of_images(self, layer: int, group: str, images: int, count: int, device: torch.device) -> Tensor:
        """Points of the matching of one layer and group, the same in every frame: ``[B, count, 2]``."""
        return torch.rand(images, count, 2, device=device)

    def of_pairs(self, pairs: Matches, frames: int, count: int) -> Tensor:
        """Points of the loss of matched pairs: ``[M, T, count, 2]``."""
        return torch.rand(len(pairs.query), frames, count, 2, device=pairs.query.device)


class ObjectMasks:
    """The masks of all objects of a batch in all their frames, read at points.

    Images differ in size, so the masks lie one after the other in a flat table, unpadded and one byte a pixel.

    Args:
        targets: with masks.
        frames: T, 1 of images.
        height, width: of the padded images.
    """

    def __init__(self, targets: list[Target], frames: int, height: int, width: int):
        masks = [target.masks.flatten(0, -3) for target in targets if target.masks is not None]  # of [N*T, H, W]
        assert len(masks) == len(targets), "targets without masks"
        self.pixels = torch.cat([mask.flatten() for mask in masks])
        device = self.pixels.device
        sizes = torch.tensor([mask.shape[1:] for mask in masks for _ in mask], dtype=torch.long)
        sizes = sizes.to(device, non_blocking=True)  # the only constants that come from the CPU
        self.height, self.width = sizes.view(-1, frames, 2).unbind(2)  # [objects, T] each
        areas = (self.height * self.width).flatten()
        self.first = (areas.cumsum(0) - areas).view(-1, frames)  # [objects, T], into pixels
        self.padded = width, height

    def at(self, rows: Tensor, points: Tensor, nearest: bool = False) -> Tensor:
        """Bilinear samples, or the nearest pixel; what lies outside an image is 0.

        Args:
            rows: ``[...]``, numbers of objects.
            points: ``[..., T, P, 2]``, or the same for all frames, ``[..., 1, P, 2]``.

        Returns:
            ``[..., T, P]`` in 0..1.
        """
        first, height, width = (x[rows][..., None] for x in (self.first, self.height, self.width))  # [..., T, 1]
        # In pixels from the centre of the first, [..., T, P]
        x, y = points[..., 0] * self.padded[0] - 0.5, points[..., 1] * self.padded[1] - 0.5
        left, share_right = _cell(x.round() if nearest else x)
        top, share_below = _cell(y.round() if nearest else y)
        sampled = torch.zeros((), device=points.device)
        for dx, dy in product((0, 1), (0, 1)):
            x, y = left + dx, top + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            pixel = self.pixels[(first + y * width + x).where(inside, 0)] & inside
            share_x = share_right if dx else 1 - share_right
            share_y = share_below if dy else 1 - share_below
            sampled = sampled + share_x * share_y * pixel
        return sampled


def _cell(coordinate: Tensor) -> tuple[Tensor, Tensor]:
    """The whole number below, and how far beyond it: the share of the next pixel."""
    below = coordinate.floor()
    return below.long(), coordinate - below


class MaskSetLoss(nn.Module):
    """Matches predictions with objects and sums cross-entropy, mask and dice losses of all layers and groups.

    ``L = L(first group) + beta * L(the others, on average)``, each group with its own matching, each layer with the
    same weights. The mask losses are divided by the number of objects of the whole step (``whole_step.py``).

    Args:
        config: weights and numbers of points.
        points: source of the points; tests pass recorded ones.
    """

    def __init__(self, config: MaskLossConfig, points: RandomPoints | None = None):
        super().__init__()
        self.config = config
        self.points = points or RandomPoints()

    def forward(self, predictions: Predictions, targets: list[Target], counts: Sequence[int] = ()) -> Losses:
        """The losses of ``predictions`` (logits ``[L, B, Q, C]`` and masks) for B targets with masks.

        ``counts`` as in ``SetLoss``.
        """
        config = self.config
        step = WholeStep(targets, counts, predictions.logits.device)
        embeddings, features = _embeddings_and_features(predictions)
        frames, _, height, width = features.shape[1:]
        stride = ProductMasks.stride
        masks = ObjectMasks(targets, frames, stride * height, stride * width)
        matches = self.match(predictions, targets, masks)
        labels = torch.cat([target.labels for target in targets])[matches.row]  # [M]
        class_loss = cross_entropy_loss(predictions, matches, labels, config.no_object_weight, step)  # [L, G]
        cell = matches.layer * class_loss.shape[1] + matches.group  # [M]: layer and group
        sums = class_loss.new_zeros(2, class_loss.numel())  # [2, L*G]
        matched = embeddings[matches.layer, matches.image, matches.query]  # [M, c]
        for image, some, pairs in matches.parts(max(1, MASKS_AT_ONCE // frames)):
            predicted = torch.einsum("mc,tchw->mthw", matched[some], features[image])  # [pairs, T, h, w]
            sums = sums.index_add(1, cell[some], self.pair_losses(predicted, pairs, masks))
        mask_loss, dice_loss = (sums / step.objects).view(2, *class_loss.shape)
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
        channels_last = features.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = channels_last.unflatten(0, features.shape[:2])
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
            embeddings: ``[L, B, Q, c]``, of this group only; features: ``[B, T, c, h, w]``.
            masks: of all objects.
            rows: ``[B, N]``, the objects of each image.
        """
        costs = []
        for layer, of_layer in enumerate(embeddings):
            points = self.points.of_images(layer, group, len(features), self.config.points, features.device)
            frames = points.repeat_interleave(features.shape[1], 0)  # [B*T, P, 2]
            sampled = sample(features.flatten(0, 1), frames).unflatten(0, features.shape[:2])  # [B, T, c, P]
            logits = of_layer @ sampled.transpose(1, 2).flatten(2)  # [B, Q, T*P]
            wanted = masks.at(rows, points[:, None, None]).flatten(2)  # [B, N, T*P]
            costs.append(
                self.config.mask_weight * cross_entropy_costs(logits, wanted)
                + self.config.dice_weight * dice_costs(logits, wanted)
            )
        return torch.stack(costs)

    def pair_losses(self, predicted: Tensor, pairs: Matches, masks: ObjectMasks) -> Tensor:
        """Mask and dice loss of the predicted masks ``[M, T, h, w]`` of M pairs and of their objects: ``[2, M]``."""
        config = self.config
        points = uncertain_points(  # [M, T, P, 2]
            self.points, predicted, pairs, config.points, config.oversample, config.important
        )
        logits = sample_each(predicted, points)  # [M, T, P]
        wanted = masks.at(pairs.row, points)  # [M, T, P]
        mask = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(2)
        probability = logits.sigmoid()
        dice = 1 - dice_overlap((probability * wanted).sum(2), probability.sum(2), wanted.sum(2))
        return torch.stack([mask, dice]).sum(2)


@torch.no_grad()
def uncertain_points(
    source: RandomPoints, predicted: Tensor, pairs: Matches, count: int, oversample: float, important: float
) -> Tensor:
    """Points ``[M, T, count, 2]``, mostly where the predicted masks ``[M, T, h, w]`` of M pairs are least certain.

    As in Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020.

    Args:
        oversample: candidates a point.
        important: share of the points that are the candidates of least certainty; the others are random.
    """
    best, frames = int(important * count), predicted.shape[1]
    candidates = source.of_pairs(pairs, frames, int(oversample * count))  # [M, T, candidates, 2]
    certainty = sample_each(predicted, candidates).abs()  # [M, T, candidates]
    chosen = certainty.topk(best, largest=False).indices[..., None].expand(-1, -1, -1, 2)
    return torch.cat([candidates.gather(2, chosen), source.of_pairs(pairs, frames, count - best)], 2)


def sample(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of ``maps [B, C, h, w]`` at ``points [B, P, 2]``: ``[B, C, P]``; 0 outside."""
    # Half precision has too few digits for points, so maps become float instead.
    return F.grid_sample(maps.to(points.dtype), 2 * points[:, None] - 1, align_corners=False)[:, :, 0]


def sample_each(masks: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of every mask at points of its own: ``[M, T, h, w], [M, T, P, 2] -> [M, T, P]``."""
    return sample(masks.flatten(0, 1)[:, None], points.flatten(0, 1))[:, 0].unflatten(0, masks.shape[:2])


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
    """``[L, B, Q, c]`` and ``[B, T, c, h, w]``."""
    masks = predictions.masks
    assert isinstance(masks, ProductMasks), "points are compared by products"
    features = masks.features if masks.features.dim() == 5 else masks.features[:, None]
    return masks.embeddings, features
