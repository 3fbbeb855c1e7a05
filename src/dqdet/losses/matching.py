"""Hungarian matching of predictions and objects (Carion et al., 2020, Eq. 1), all layers and groups at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dqdet.config import Classification, LossConfig
from dqdet.losses.boxes import generalized_iou
from dqdet.types import Denoised, Predictions, Target

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al., 2017)


@dataclass
class Matches:
    """M matched pairs, ordered by image, layer and query. Each tensor is ``[M]`` int64."""

    counts: list[int]  # pairs of each image, known without asking the device
    image: Tensor
    layer: Tensor
    query: Tensor
    object: Tensor  # index into the image's objects
    group: Tensor  # number of the query's group
    row: Tensor  # of the object among those of all images

    def parts(self, most: int) -> Iterator[tuple[int, slice, Matches]]:
        """Pairs of one image after the other, at most so many at a time: the image, and where in M they are.

        An image without pairs has an empty part, through which the gradients of all parameters exist nevertheless.
        """
        end = 0
        for image, count in enumerate(self.counts):
            start, end = end, end + count
            for first in range(start, max(end, start + 1), most):
                some = slice(first, min(first + most, end))
                tensors = (self.image, self.layer, self.query, self.object, self.group, self.row)
                counts = [some.stop - some.start if i == image else 0 for i in range(len(self.counts))]
                yield image, some, Matches(counts, *(tensor[some] for tensor in tensors))


Task = tuple[Predictions, list[Target]]  # what is matched, with what


def match(predictions: Predictions, targets: list[Target], config: LossConfig) -> Matches:
    """Assign to each object one query of every group, in every layer, at the least total cost.

    Args:
        predictions: logits ``[L, B, Q, C]`` and boxes ``[L, B, Q, 4]``.
        targets: B of them.
        config: kind of classification and the weights of the costs.
    """
    return assign(matching_costs(predictions, targets, config), targets, predictions.groups)


@torch.no_grad()
def assign(costs: Tensor, targets: list[Target], groups: dict[str, int]) -> Matches:
    """The assignments of least total cost, one for every layer, image and group.

    The costs of all layers, groups and images are one tensor expression and go to the CPU in one transfer, for which
    the device is waited for once. All that the losses index by goes back to it in one piece.

    Args:
        costs: ``[L, B, Q, N]``, N at least the most objects of an image.
        targets: B of them.
        groups: name -> size, in query order.
    """
    return assign_together([costs], targets, [groups])[0]


def assign_together(costs: list[Tensor], targets: list[Target], groups: list[dict[str, int]]) -> list[Matches]:
    """The same for several tables of costs and the groups of their queries, of the same targets."""
    # A diverged model must reach the loss, which reports it, instead of failing in the assignment.
    flat = torch.cat([table.flatten() for table in costs]).nan_to_num(nan=1e6, posinf=1e6, neginf=-1e6).cpu()
    tables = [
        part.view(table.shape).numpy()
        for part, table in zip(flat.split([c.numel() for c in costs]), costs, strict=True)
    ]
    pairs = [_assigned(table, targets, of_table) for table, of_table in zip(tables, groups, strict=True)]  # [6, M] each
    sent = torch.from_numpy(np.concatenate(pairs, 1)).to(costs[0].device, non_blocking=True)
    return [
        Matches(np.bincount(of_table[0], minlength=len(targets)).tolist(), *part)
        for of_table, part in zip(pairs, sent.split([of_table.shape[1] for of_table in pairs], 1), strict=True)
    ]


def _assigned(table: np.ndarray, targets: list[Target], groups: dict[str, int]) -> np.ndarray:
    """The fields of `Matches` from image to row, ``[6, M]``, of costs ``[L, B, Q, N]``."""
    pairs = [np.empty((6, 0), np.int64)]  # [6, pairs of one image, layer and group]
    first_row = 0
    for image, target in enumerate(targets):
        objects = len(target.labels)
        for layer in range(len(table)):
            start = 0
            for group, size in enumerate(groups.values()):
                query, object_ = linear_sum_assignment(table[layer, image, start : start + size, :objects])
                columns = np.broadcast_arrays(image, layer, query + start, object_, group, object_ + first_row)
                pairs.append(np.stack(columns))
                start += size
        first_row += objects
    return np.concatenate(pairs, 1)


def matched_by_construction(denoised: Denoised, layers: int, targets: list[Target]) -> Matches:
    """The pairs of denoising queries with the objects of B targets that they were made of, the same in all layers."""
    pairs = len(denoised.image)
    fields = torch.stack([denoised.image, denoised.query, denoised.object, denoised.row]).repeat(1, layers)  # [4, M]
    layer = torch.arange(layers, device=fields.device)[:, None].expand(-1, pairs).flatten()  # [M]
    order = fields[0].argsort(stable=True)  # by image; that of layers and queries stays
    layer, (image, query, object_, row) = layer[order], fields[:, order]
    counts = [layers * denoised.copies * len(target.labels) for target in targets]
    return Matches(counts, image, layer, query, object_, torch.zeros_like(layer), row)


def matching_costs(predictions: Predictions, targets: list[Target], config: LossConfig) -> Tensor:
    """Costs ``[L, B, Q, N]``, N the most objects of an image; what lies beyond an image's own is arbitrary."""
    boxes = pad_sequence([t.boxes for t in targets], batch_first=True)  # [B, N, 4]
    assert predictions.boxes is not None
    predicted = predictions.boxes.float()
    box_cost = torch.cdist(predicted, boxes.to(predicted)[None], p=1)  # [L, B, Q, N]
    giou = generalized_iou(predicted[..., :, None, :], boxes[None, :, None], config.box_epsilon)
    class_cost = class_costs(predictions.logits, targets, config.classification)
    return config.class_cost * class_cost + config.box_cost * box_cost - config.giou_cost * giou


def class_costs(logits: Tensor, targets: list[Target], classification: Classification) -> Tensor:
    """What classes cost: from logits ``[L, B, Q, C]``, ``[L, B, Q, N]`` as in :func:`matching_costs`."""
    logits = logits.float()
    labels = pad_sequence([t.labels for t in targets], batch_first=True)  # [B, N]
    index = labels[None, :, None].expand(logits.shape[0], -1, logits.shape[2], -1)  # [L, B, Q, N]
    of_label = logits.gather(-1, index)  # [L, B, Q, N]
    if classification == "cross_entropy":
        return -(of_label - logits.logsumexp(-1, keepdim=True)).exp()
    probability = of_label.sigmoid()
    # 1e-8 inside the logarithm, as published: it bounds the cost of a hopeless query.
    positive = ALPHA * (1 - probability) ** GAMMA * -(probability + 1e-8).log()
    negative = (1 - ALPHA) * probability**GAMMA * -(1 - probability + 1e-8).log()
    return positive - negative
