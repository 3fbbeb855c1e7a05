"""Matching and set loss against plain, slow statements of the same."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from dqdet.config import LossConfig
from dqdet.losses import SetLoss
from dqdet.losses.boxes import generalized_iou
from dqdet.losses.matching import match, matching_costs
from dqdet.types import Predictions, Target

CLASSES = 5
FOCAL = LossConfig()
CROSS_ENTROPY = LossConfig(classification="cross_entropy", class_cost=1, class_weight=1)


def make_targets(counts: list[int], seed: int = 0) -> list[Target]:
    generator = torch.Generator().manual_seed(seed)
    return [
        Target(
            labels=torch.randint(CLASSES, (n,), generator=generator),
            boxes=torch.rand(n, 4, generator=generator) * 0.4 + 0.1,
            size=(32, 32),
            original_size=(32, 32),
        )
        for n in counts
    ]


def make_predictions(batch: int, groups: dict[str, int], layers: int = 2, seed: int = 1, extra: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    queries = sum(groups.values())
    logits = torch.randn(layers, batch, queries, CLASSES + extra, generator=generator).requires_grad_()
    boxes = (torch.rand(layers, batch, queries, 4, generator=generator) * 0.4 + 0.1).requires_grad_()
    return Predictions(logits, boxes, groups)


@given(seed=st.integers(0, 100))
def test_generalized_iou_equals_torchvision(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 6, 4, generator=generator) * 0.5 + 0.05
    expected = generalized_box_iou(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy"))
    torch.testing.assert_close(generalized_iou(a[:, None], b[None]), expected)


@settings(deadline=None, max_examples=25)
@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=3), seed=st.integers(0, 100), focal=st.booleans())
def test_matching_is_optimal_within_every_layer_image_and_group(counts, seed, focal):
    config = FOCAL if focal else CROSS_ENTROPY
    groups = {"modulated": 4, "basic": 5}
    predictions = make_predictions(len(counts), groups, seed=seed, extra=0 if focal else 1)
    targets = make_targets(counts, seed)
    found = match(predictions, targets, config)
    if sum(counts) == 0:
        assert len(found.layer) == 0
        return
    costs = matching_costs(predictions, targets, config)
    for layer, (image, count) in itertools.product(range(2), enumerate(counts)):
        for start, size in ((0, 4), (4, 5)):
            here = (found.layer == layer) & (found.image == image)
            here &= (found.query >= start) & (found.query < start + size)
            assert sorted(found.object[here].tolist()) == list(range(count))
            cost = costs[layer, image, found.query[here], found.object[here]].sum()
            best = min(
                sum(costs[layer, image, start + q, i] for i, q in enumerate(queries))
                for queries in itertools.permutations(range(size), count)
            )
            torch.testing.assert_close(cost, torch.as_tensor(best, dtype=cost.dtype))


def slow_focal_class_loss(predictions: Predictions, targets: list[Target], found, layer: int) -> torch.Tensor:
    """One-hot targets through torchvision's focal loss."""
    wanted = torch.zeros_like(predictions.logits[layer])
    for at, image, query, index in zip(found.layer, found.image, found.query, found.object, strict=True):
        if at == layer:
            wanted[image, query, targets[image].labels[index]] = 1
    return sigmoid_focal_loss(predictions.logits[layer], wanted, alpha=0.25, gamma=2, reduction="sum")


@pytest.mark.parametrize("counts", [[2, 0, 1], [7, 3, 5], [0, 0, 0]])
def test_cross_entropy_is_the_weighted_mean_of_pytorch_also_with_more_objects_than_queries(counts):
    predictions, targets = make_predictions(3, {"modulated": 4, "basic": 6}, extra=1), make_targets(counts)
    terms = SetLoss(CROSS_ENTROPY)(predictions, targets).terms
    found = match(predictions, targets, CROSS_ENTROPY)
    weights = torch.tensor([1.0] * CLASSES + [CROSS_ENTROPY.no_object_weight])
    for layer, (name, queries) in itertools.product(range(2), {"modulated": slice(4), "basic": slice(4, 10)}.items()):
        wanted = torch.full((3, 10), CLASSES)
        for at, image, query, index in zip(found.layer, found.image, found.query, found.object, strict=True):
            if at == layer:
                wanted[image, query] = targets[image].labels[index]
        logits = predictions.logits[layer][:, queries].flatten(0, 1)
        expected = F.cross_entropy(logits, wanted[:, queries].flatten(), weights)
        torch.testing.assert_close(terms[f"{name}/{layer}/class"], expected.detach())


def test_parts_of_a_step_add_up_to_it_also_without_objects_in_some():
    """The mean over the parts, as the engine takes it, is the loss of the whole."""
    for config, counts in itertools.product((FOCAL, CROSS_ENTROPY), ([3, 0, 2, 9], [0, 0, 0, 0])):
        extra = config.classification == "cross_entropy"
        whole, targets = make_predictions(4, {"modulated": 4, "basic": 6}, extra=extra), make_targets(counts)
        expected = SetLoss(config)(whole, targets).total
        parts = []
        for part in (slice(2), slice(2, 4)):
            predictions = Predictions(whole.logits[:, part], whole.boxes[:, part], whole.groups)
            parts.append(SetLoss(config)(predictions, targets[part], counts).total)
        torch.testing.assert_close(sum(parts) / 2, expected)


def test_focal_loss_equals_torchvision_in_value_and_gradient():
    predictions, targets = make_predictions(2, {"static": 6}), make_targets([3, 2])
    config = LossConfig(box_weight=0, giou_weight=0)
    losses = SetLoss(config)(predictions, targets)
    found = match(predictions, targets, config)
    expected = sum(slow_focal_class_loss(predictions, targets, found, layer) for layer in range(2)) * 2 / 5
    torch.testing.assert_close(losses.total, expected)
    ours, theirs = (torch.autograd.grad(loss, predictions.logits)[0] for loss in (losses.total, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("config", [FOCAL, CROSS_ENTROPY])
def test_groups_are_learned_separately(config):
    """The loss of two groups is the sum of each group's own, the second times beta; gradients do not mix."""
    config = config.model_copy(update={"beta": 0.5})
    extra = config.classification == "cross_entropy"
    both, targets = make_predictions(2, {"modulated": 4, "basic": 8}, extra=extra), make_targets([3, 1])
    criterion = SetLoss(config)
    alone = [criterion(both.group(name), targets) for name in both.groups]
    together = criterion(both, targets)
    torch.testing.assert_close(together.total, alone[0].total + 0.5 * alone[1].total)
    for losses in alone:
        for key, value in losses.terms.items():
            torch.testing.assert_close(together.terms[key], value)


@pytest.mark.parametrize("config", [FOCAL, CROSS_ENTROPY])
@pytest.mark.parametrize("counts", [[0, 0], [0, 2]])
def test_images_without_objects_give_finite_losses(config, counts):
    predictions = make_predictions(2, {"static": 5}, extra=config.classification == "cross_entropy")
    losses = SetLoss(config)(predictions, make_targets(counts))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert torch.isfinite(predictions.logits.grad).all()
    if sum(counts) == 0:
        assert losses.terms["static/1/giou"] == 0


def test_more_objects_than_queries_leaves_some_unmatched():
    found = match(make_predictions(1, {"static": 3}, layers=1), make_targets([7]), FOCAL)
    assert len(found.object) == 3
    assert len(set(found.object.tolist())) == 3


def test_diverged_predictions_reach_the_loss_as_nan():
    predictions = make_predictions(1, {"static": 4})
    with torch.no_grad():
        predictions.logits[:] = torch.nan
    assert torch.isnan(SetLoss(FOCAL)(predictions, make_targets([2])).total)


def test_order_of_images_and_objects_does_not_matter():
    predictions, targets = make_predictions(3, {"static": 6}), make_targets([2, 0, 3])
    order = [2, 0, 1]
    shuffled = Predictions(predictions.logits[:, order], predictions.boxes[:, order], predictions.groups)
    turned = [targets[i] for i in order]
    for target in turned:
        target.labels, target.boxes = target.labels.flip(0), target.boxes.flip(0)
    reordered = SetLoss(FOCAL)(shuffled, turned).total
    torch.testing.assert_close(SetLoss(FOCAL)(predictions, make_targets([2, 0, 3])).total, reordered)
