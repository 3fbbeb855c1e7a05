"""The set loss of SeqFormer: objects of a clip with a box and a mask in each frame (Wu et al., ECCV 2022, section 3.3).

Objects are matched by classes and boxes alone. Masks exist of matched queries only, a few pairs at a time, and are
made once more in the backward pass instead of being kept for it. Letters as in ``types.py``, and G groups, M pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from torchvision.ops import sigmoid_focal_loss

from dqdet.config import SequenceLossConfig
from dqdet.losses.boxes import generalized_iou
from dqdet.losses.masks import dice_overlap
from dqdet.losses.matching import ALPHA, GAMMA, Matches, assign, class_costs
from dqdet.losses.set_loss import Losses, focal_loss, weighted_sum
from dqdet.losses.whole_step import WholeStep
from dqdet.types import Masks, Predictions, Target

PAIRS_AT_ONCE = 16  # pairs whose masks exist at the same time: bounds their memory


class SequenceSetLoss(nn.Module):
    """Matches predictions with the objects of clips and sums the losses of all layers and groups of queries.

    Class (focal), L1, generalised IoU, mask (focal) and dice losses. Boxes are averaged over the frames, those without
    the object included: its box there is empty, and so is its mask. ``L = L(first group) + beta * L(the others, on
    average)``, each group with its own matching, each layer with the same weights. All sums are divided by the number
    of objects of the whole step (``whole_step.py``).
    """

    def __init__(self, config: SequenceLossConfig):
        super().__init__()
        self.config = config

    def forward(self, predictions: Predictions, targets: list[Target], counts: Sequence[int] = ()) -> Losses:
        """The losses of ``predictions`` (logits ``[L, B, Q, C]``, boxes ``[L, B, Q, T, 4]``, masks) for B targets.

        ``counts`` as in ``SetLoss``.
        """
        config, groups = self.config, predictions.groups
        matches = self.match(predictions, targets)
        labels = torch.cat([t.labels for t in targets])[matches.row]  # [M]
        boxes = torch.cat([t.boxes for t in targets])[matches.row]  # [M, T, 4]
        class_loss = focal_loss(predictions, matches, labels)  # [L, G]
        assert predictions.boxes is not None
        matched = predictions.boxes[matches.layer, matches.image, matches.query].float()  # [M, T, 4]
        of_pairs = [
            (matched - boxes).abs().sum(-1).mean(-1),
            1 - generalized_iou(matched, boxes, config.box_epsilon).mean(-1),
            *self.mask_losses(predictions, matches, targets),
        ]  # 4 of [M]
        cell = matches.layer * len(groups) + matches.group  # [M]: layer and group of each pair
        sums = class_loss.new_zeros(4, class_loss.numel()).index_add(1, cell, torch.stack(of_pairs))
        objects = WholeStep(targets, counts, sums.device).objects
        losses = torch.stack([class_loss, *sums.view(4, *class_loss.shape)]) / objects
        weights = {
            "class": config.class_weight,
            "box": config.box_weight,
            "giou": config.giou_weight,
            "mask": config.mask_weight,
            "dice": config.dice_weight,
        }
        weighted = {term: (weights[term], loss) for term, loss in zip(weights, losses, strict=True)}
        return Losses(*weighted_sum(weighted, list(groups), config.beta))

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: list[Target]) -> Matches:
        """Assign to each object one query of every group, in every layer, at the least total cost.

        As published, boxes cost the Euclidean distance of the whole sequences, while their loss is the L1 distance.
        """
        config = self.config
        boxes = pad_sequence([t.boxes for t in targets], batch_first=True)  # [B, N, T, 4]
        assert predictions.boxes is not None
        predicted = predictions.boxes.float()  # [L, B, Q, T, 4]
        # Without the shortcut by matrix products, whose rounding is larger than small distances.
        exactly = "donot_use_mm_for_euclid_dist"
        box_cost = torch.cdist(predicted.flatten(-2), boxes.flatten(-2)[None], compute_mode=exactly)  # [L, B, Q, N]
        giou = generalized_iou(predicted[:, :, :, None], boxes[None, :, None], config.box_epsilon).mean(-1)
        class_cost = class_costs(predictions.logits, targets, "focal")
        costs = config.class_cost * class_cost + config.box_cost * box_cost - config.giou_cost * giou
        return assign(costs, targets, predictions.groups)

    def mask_losses(self, predictions: Predictions, matches: Matches, targets: list[Target]) -> Tensor:
        """Focal loss, averaged over the cells of all frames, and dice loss of every pair: ``[2, M]``."""
        losses = [predictions.logits.new_zeros(2, 0, dtype=torch.float32)]
        for image, _, pairs in matches.parts(PAIRS_AT_ONCE):
            masks = targets[image].masks
            assert masks is not None, "targets without masks"
            cells = slice(Masks.stride // 2, None, Masks.stride)
            arguments = predictions, pairs, image, masks[..., cells, cells]  # [N, T, h, w], unpadded
            losses.append(checkpoint(_mask_losses, *arguments, use_reentrant=False, preserve_rng_state=False))
        return torch.cat(losses, 1)


def _mask_losses(predictions: Predictions, pairs: Matches, image: int, masks: Tensor) -> Tensor:
    """Focal and dice loss ``[2, M]`` of some pairs of one image with ``masks [N, T, h, w]`` of its objects."""
    assert predictions.masks is not None
    logits = predictions.masks.of(pairs.layer, image, pairs.query).float()  # [M, T, h, w], padded
    height, width = logits.shape[-2:]
    wanted = F.pad(masks[pairs.object], (0, width - masks.shape[-1], 0, height - masks.shape[-2])).to(logits)
    logits, wanted = logits.flatten(1), wanted.flatten(1)  # [M, T*h*w]
    focal = sigmoid_focal_loss(logits, wanted, ALPHA, GAMMA).mean(1)
    probability = logits.sigmoid()
    dice = 1 - dice_overlap((probability * wanted).sum(1), probability.sum(1), wanted.sum(1))
    return torch.stack([focal, dice])
