"""Hungarian matching of predictions and objects (Carion et al., 2020, Eq. 1), all layers and groups at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dqdet.config import LossConfig
from dqdet.losses.boxes import generalized_iou
from dqdet.types import Predictions, Target

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al., 2017)


@dataclass
class Matches:
    """M matched pairs, of all layers, groups and images. Each field is ``[M]`` int64."""

    layer: Tensor
    image: Tensor
    query: Tensor
    object: Tensor  # index into the image's objects


@torch.no_grad()
def match(predictions: Predictions, targets: list[Target], config: LossConfig) -> Matches:
    """Assign to each object one query of every group, in every layer, at the least total cost.

    The costs of all layers, groups and images are one tensor expression and go to the CPU in one transfer.

    Args:
        predictions: logits ``[L, B, Q, C]`` and boxes ``[L, B, Q, 4]``.
        targets: B of them.
        config: kind of classification and the weights of the costs.
    """
    counts = [len(target.labels) for target in targets]
    if max(counts) == 0:
        nothing = predictions.logits.new_zeros(0, dtype=torch.long)
        return Matches(nothing, nothing, nothing, nothing)
    costs = matching_costs(predictions, targets, config).cpu().numpy()  # [L, B, Q, N]
    pairs = []  # of [4, pairs of one layer, image and group]
    for layer in range(costs.shape[0]):
        for image, count in enumerate(counts):
            start = 0
            for size in predictions.groups.values():
                query, object_ = linear_sum_assignment(costs[layer, image, start : start + size, :count])
                pairs.append(np.stack([np.full_like(query, layer), np.full_like(query, image), query + start, object_]))
                start += size
    device = predictions.logits.device
    return Matches(*torch.from_numpy(np.concatenate(pairs, 1)).to(device, non_blocking=True))


def matching_costs(predictions: Predictions, targets: list[Target], config: LossConfig) -> Tensor:
    """Costs ``[L, B, Q, N]``, N the most objects of an image; what lies beyond an image's own is arbitrary."""
    labels = pad_sequence([t.labels for t in targets], batch_first=True)  # [B, N]
    boxes = pad_sequence([t.boxes for t in targets], batch_first=True)  # [B, N, 4]
    assert predictions.boxes is not None
    logits, predicted = predictions.logits.float(), predictions.boxes.float()
    layers, _, queries, _ = logits.shape
    index = labels[None, :, None].expand(layers, -1, queries, -1)  # [L, B, Q, N]
    of_label = logits.gather(-1, index)  # [L, B, Q, N]
    if config.classification == "focal":
        probability = of_label.sigmoid()
        # 1e-8 inside the logarithm, as published: it bounds the cost of a hopeless query.
        positive = ALPHA * (1 - probability) ** GAMMA * -(probability + 1e-8).log()
        negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + 1e-8).log()
        class_cost = positive - negative
    else:
        class_cost = -(of_label - logits.logsumexp(-1, keepdim=True)).exp()
    box_cost = torch.cdist(predicted, boxes.to(predicted)[None], p=1)  # [L, B, Q, N]
    giou = generalized_iou(predicted[..., :, None, :], boxes[None, :, None], config.box_epsilon)
    costs = config.class_cost * class_cost + config.box_cost * box_cost - config.giou_cost * giou
    # A diverged model must reach the loss, which reports it, instead of failing in the assignment.
    return costs.nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6)
