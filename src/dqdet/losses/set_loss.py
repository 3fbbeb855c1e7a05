"""The set loss of all families that predict boxes: classification, L1 and generalised IoU (Eq. 2 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import LossConfig
from dqdet.losses.boxes import generalized_iou, iou
from dqdet.losses.matching import ALPHA, GAMMA, Matches, assign_together, matched_by_construction, matching_costs
from dqdet.losses.whole_step import WholeStep
from dqdet.types import Predictions, Target


@dataclass
class Losses:
    """What a step learns from, and what it logs."""

    total: Tensor  # scalar, weighted
    terms: dict[str, Tensor]  # "group/layer/term" -> scalar, unweighted and detached


class SetLoss(nn.Module):
    """Matches predictions with objects and sums the losses of all layers and groups of queries.

    ``L = L(first group) + beta * L(the others, on average)``, each group with its own matching, each layer with the
    same weights; without beta, the mean over all groups. Sums over objects are divided by the number of objects of the
    whole step (``whole_step.py``).

    Proposals of an encoder and denoising queries have the same losses, once each. Denoising queries need no matching:
    each belongs to the object that it was made of, or to none, and the sums are over several copies of all objects.
    """

    def __init__(self, config: LossConfig):
        super().__init__()
        self.config = config

    def forward(self, predictions: Predictions, targets: list[Target], counts: Sequence[int] = ()) -> Losses:
        """The losses of ``predictions`` (logits ``[L, B, Q, C]``, boxes ``[L, B, Q, 4]``) for B targets.

        Args:
            predictions: of the model.
            targets: B of them.
            counts: objects of each image of the step that this batch is a part of; empty: it is all of it.
        """
        step = self.whole_step(predictions, targets, counts)
        tasks = [(predictions.matched, targets)]
        if (proposals := predictions.proposals) is not None:
            agnostic = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
            tasks.append((proposals, agnostic if proposals.class_agnostic else targets))
        costs = [self.costs(*task, step) for task in tasks]
        matches = assign_together(costs, targets, [predicted.groups for predicted, _ in tasks])
        parts = [self.of_pairs(*task, pairs, step) for task, pairs in zip(tasks, matches, strict=True)]
        if (denoised := predictions.denoised) is not None:
            group = predictions.group(list(predictions.groups)[-1])
            pairs = matched_by_construction(denoised, len(group.logits), targets)
            parts.append(self.of_pairs(group, targets, pairs, step, denoised.copies))
        totals, terms = zip(*parts, strict=True)
        return Losses(torch.stack(totals).sum(), {name: term for part in terms for name, term in part.items()})

    def whole_step(self, predictions: Predictions, targets: list[Target], counts: Sequence[int]) -> WholeStep:
        """What all sets of predictions of a step have in common; arguments as of :meth:`forward`."""
        return WholeStep(targets, counts, predictions.logits.device)

    @torch.no_grad()
    def costs(self, predictions: Predictions, targets: list[Target], step: WholeStep) -> Tensor:
        """What each query costs each object of its image in the matching, ``[L, B, Q, N]``, as `matching_costs`."""
        return matching_costs(predictions, targets, self.config)

    def of_pairs(
        self, predictions: Predictions, targets: list[Target], matches: Matches, step: WholeStep, copies: int = 1
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and terms of one set of predictions, all layers and groups.

        ``step`` normalises the sums, which are over so many copies of its objects.
        """
        weighted = self.weighted(predictions, matches, targets, step, copies)
        return weighted_sum(weighted, list(predictions.groups), self.config.beta)

    def weighted(
        self, predictions: Predictions, matches: Matches, targets: list[Target], step: WholeStep, copies: int = 1
    ) -> dict[str, tuple[float, Tensor]]:
        """Name of each term -> its weight and its values ``[L, G]``; arguments as of :meth:`of_pairs`."""
        groups, config = predictions.groups, self.config
        labels = torch.cat([t.labels for t in targets])[matches.row]  # [M]
        boxes = torch.cat([t.boxes for t in targets])[matches.row]  # [M, 4]
        objects = step.objects * copies
        assert predictions.boxes is not None
        matched = predictions.boxes[matches.layer, matches.image, matches.query].float()  # [M, 4]
        match config.classification:
            case "focal":
                class_loss = focal_loss(predictions, matches, labels) / objects  # [L, G]
            case "iou_aware":
                class_loss = iou_aware_loss(predictions, matches, labels, iou(matched.detach(), boxes)) / objects
            case "cross_entropy":
                class_loss = cross_entropy_loss(predictions, matches, labels, config.no_object_weight, step)
        l1 = (matched - boxes).abs().sum(-1)  # [M]
        giou = 1 - generalized_iou(matched, boxes, config.box_epsilon)  # [M]
        cell = matches.layer * len(groups) + matches.group  # [M]: layer and group of each pair
        box_losses = l1.new_zeros(2, class_loss.numel()).index_add(1, cell, torch.stack([l1, giou])) / objects
        l1_loss, giou_loss = box_losses.view(2, *class_loss.shape)
        return {
            "class": (config.class_weight, class_loss),
            "box": (config.box_weight, l1_loss),
            "giou": (config.giou_weight, giou_loss),
        }


def group_weights(groups: int, beta: float | None) -> tuple[float, float]:
    """The weights of the first of G groups and of each other one.

    Args:
        groups: G.
        beta: of Eq. 7, which the others share; None: all groups weigh the same, 1 together.
    """
    return (1 / groups, 1 / groups) if beta is None else (1.0, beta / max(groups - 1, 1))


def weighted_sum(
    losses: dict[str, tuple[float, Tensor]], groups: list[str], beta: float | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The total loss and the terms that are logged.

    Args:
        losses: name of the term -> its weight and its values ``[L, G]``.
        groups: names of the G groups.
        beta: of `group_weights`.
    """
    # Weights are numbers, not tensors, which would have to be sent to the device.
    first, share = group_weights(len(groups), beta)
    of_terms = [weight * (first * value[:, 0].sum() + share * value[:, 1:].sum()) for weight, value in losses.values()]
    values = torch.stack([value for _, value in losses.values()]).detach()  # [T, L, G]
    terms = {
        f"{name}/{layer}/{term}": values[t, layer, g]
        for g, name in enumerate(groups)
        for layer in range(values.shape[1])
        for t, term in enumerate(losses)
    }
    return torch.stack(of_terms).sum(), terms


def focal_loss(predictions: Predictions, matches: Matches, labels: Tensor) -> Tensor:
    """Sum of the focal loss (Lin et al., 2017) over images, queries and classes: ``[L, G]``.

    Nearly all of the ``[L, B, Q, C]`` logits are negatives: the loss is theirs, corrected at the M matched places.

    Args:
        labels: ``[M]`` of the matched objects.
    """
    positive = predictions.logits[matches.layer, matches.image, matches.query, labels].float()  # [M]
    of_positive = ALPHA * (-positive).sigmoid() ** GAMMA * F.softplus(-positive)
    return _corrected_sum(predictions, matches, lambda x: (1 - ALPHA) * _negative(x), positive, of_positive)


def iou_aware_loss(predictions: Predictions, matches: Matches, labels: Tensor, quality: Tensor) -> Tensor:
    """Sum of the IoU-aware classification loss of LW-DETR over images, queries and classes: ``[L, G]``.

    Cai et al., "Align-DETR", 2023: a matched query learns ``t = p^alpha * IoU^(1 - alpha)`` for its class, no gradient
    in t, instead of 1. All other logits learn 0 with the weight ``p^gamma`` of the focal loss.

    Args:
        labels: ``[M]`` of the matched objects; quality: ``[M]``, IoU of the matched boxes.
    """
    positive = predictions.logits[matches.layer, matches.image, matches.query, labels].float()  # [M]
    wanted = (positive.detach().sigmoid() ** ALPHA * quality ** (1 - ALPHA)).clamp(min=0.01)
    of_positive = F.binary_cross_entropy_with_logits(positive, wanted, reduction="none")
    return _corrected_sum(predictions, matches, _negative, positive, of_positive)


def _corrected_sum(
    predictions: Predictions,
    matches: Matches,
    negative: Callable[[Tensor], Tensor],
    positive: Tensor,
    of_positive: Tensor,
) -> Tensor:
    """The loss of all logits as negatives, that of the M positive ones, ``[M]``, in its place there: ``[L, G]``."""
    negatives = negative(predictions.logits.float()).sum((1, 3))  # [L, Q]
    per_group = [part.sum(1) for part in negatives.split(list(predictions.groups.values()), 1)]
    losses = torch.stack(per_group, 1)  # [L, G]
    cell = matches.layer * losses.shape[1] + matches.group
    return losses.flatten().index_add(0, cell, of_positive - negative(positive)).view_as(losses)


def _negative(logits: Tensor) -> Tensor:
    return logits.sigmoid() ** GAMMA * F.softplus(logits)


def cross_entropy_loss(
    predictions: Predictions, matches: Matches, labels: Tensor, no_object_weight: float, step: WholeStep
) -> Tensor:
    """Cross-entropy over C + 1 classes, averaged with weights over a group's queries of all images: ``[L, G]``.

    The last class is "no object", with the weight ``no_object_weight``.

    Args:
        labels: ``[M]`` of the matched objects; step: whose images the average is over.
    """
    logits = predictions.logits.float()
    none = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:3], none, device=logits.device)  # [L, B, Q]
    wanted[matches.layer, matches.image, matches.query] = labels
    nll = F.cross_entropy(logits.flatten(0, 2), wanted.flatten(), reduction="none").view_as(wanted)
    weight = torch.where(wanted == none, no_object_weight, 1.0)
    sums = [part.sum((1, 2)) for part in (nll * weight).split(list(predictions.groups.values()), 2)]  # G of [L]
    return torch.stack(sums, 1) / step.query_weights(predictions.groups, no_object_weight)
