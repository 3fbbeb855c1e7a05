"""Matching and set loss against plain, slow statements of the same."""

from __future__ import annotations

import itertools
from dataclasses import replace

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


def test_epsilon_is_added_to_both_denominators():
    ends = torch.tensor([[0.1, 0.5, 0.2, 1.0], [0.9, 0.5, 0.2, 1.0]])  # on the left and the right side of the image
    # Overlap and union of a box and itself are its area; the two have no overlap, and the image as their hull.
    expected = torch.tensor([[0.2 / 0.3, -0.6 / 1.1], [-0.6 / 1.1, 0.2 / 0.3]])
    torch.testing.assert_close(generalized_iou(ends[:, None], ends[None], epsilon=0.1), expected)


def plain_giou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``[Q, 4], [N, 4] -> [Q, N]``."""
    return generalized_box_iou(box_convert(a, "cxcywh", "xyxy"), box_convert(b, "cxcywh", "xyxy"))


def plain_class_cost(logits: torch.Tensor, labels: torch.Tensor, config: LossConfig) -> torch.Tensor:
    """``[Q, C], [N] -> [Q, N]``: the focal loss as a positive beyond that as a negative, or minus the probability."""
    if config.classification == "cross_entropy":
        return -logits.softmax(-1)[:, labels]
    as_positive, as_negative = (
        sigmoid_focal_loss(logits, torch.full_like(logits, wanted), alpha=0.25, gamma=2) for wanted in (1, 0)
    )
    return (as_positive - as_negative)[:, labels]


@pytest.mark.parametrize("cost", ["class_cost", "box_cost", "giou_cost"])
@pytest.mark.parametrize("config", [FOCAL, CROSS_ENTROPY])
def test_costs_are_those_of_torch_and_torchvision(config, cost):
    config = config.model_copy(update={"class_cost": 2.0, "box_cost": 5.0, "giou_cost": 3.0} | {cost: 7.0})
    predictions = make_predictions(2, {"static": 6}, extra=config.classification == "cross_entropy")
    targets = make_targets([3, 2])
    costs = matching_costs(predictions, targets, config)
    for layer, (image, target) in itertools.product(range(2), enumerate(targets)):
        boxes = predictions.boxes[layer, image]
        expected = (
            config.class_cost * plain_class_cost(predictions.logits[layer, image], target.labels, config)
            + config.box_cost * (boxes[:, None] - target.boxes).abs().sum(-1)
            - config.giou_cost * plain_giou(boxes, target.boxes)
        )
        found = costs[layer, image, :, : len(target.labels)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


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


def test_without_objects_and_weights_of_no_object_nothing_is_learned():
    predictions = make_predictions(2, {"modulated": 4, "basic": 6}, extra=1)
    predictions.logits.requires_grad_()
    losses = SetLoss(CROSS_ENTROPY.model_copy(update={"no_object_weight": 0.0}))(predictions, make_targets([0, 0]))
    losses.total.backward()
    assert losses.total == 0
    assert not predictions.logits.grad.any()


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
def test_losses_are_those_of_torch_and_torchvision(config):
    config = config.model_copy(
        update={"class_weight": 2.0, "box_weight": 5.0, "giou_weight": 3.0, "no_object_weight": 0.2, "beta": 0.5}
    )
    cross_entropy = config.classification == "cross_entropy"
    groups, targets = {"modulated": 4, "basic": 8}, make_targets([3, 1, 0])
    predictions = make_predictions(3, groups, extra=cross_entropy)
    losses, found = SetLoss(config)(predictions, targets), match(predictions, targets, config)
    total = torch.zeros(())
    for layer, (name, start, size) in itertools.product(range(2), [("modulated", 0, 4), ("basic", 4, 8)]):
        mine = (found.layer == layer) & (found.query >= start) & (found.query < start + size)
        pairs = zip(found.image[mine], found.query[mine], found.object[mine], strict=True)
        logits = predictions.logits[layer]
        wanted = torch.full(logits.shape[:2], CLASSES)  # no object
        l1, giou = torch.zeros(2)
        for image, query, index in pairs:
            wanted[image, query] = targets[image].labels[index]
            box, of_object = predictions.boxes[layer, image, query], targets[image].boxes[index]
            l1 = l1 + (box - of_object).abs().sum()
            giou = giou + 1 - plain_giou(box[None], of_object[None])[0, 0]
        logits, wanted = (x[:, start : start + size].flatten(0, 1) for x in (logits, wanted))
        if cross_entropy:
            weight = torch.tensor([1.0] * CLASSES + [0.2])
            class_loss = F.cross_entropy(logits, wanted, weight)
        else:
            one_hot = F.one_hot(wanted, CLASSES + 1)[:, :CLASSES].float()
            class_loss = sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction="sum") / 4
        terms = {"class": class_loss, "box": l1 / 4, "giou": giou / 4}
        for term, value in terms.items():
            torch.testing.assert_close(losses.terms[f"{name}/{layer}/{term}"], value.detach())
        share = 0.5 if name == "basic" else 1
        total = total + share * (2 * terms["class"] + 5 * terms["box"] + 3 * terms["giou"])
    assert len(losses.terms) == 2 * 2 * 3
    torch.testing.assert_close(losses.total, total)
    inputs = [predictions.logits, predictions.boxes]
    gradients = (torch.autograd.grad(loss, inputs) for loss in (losses.total, total))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_proposals_learn_objects_of_any_class_as_the_first():
    predictions, targets = make_predictions(2, {"static": 4}), make_targets([3, 2])
    proposals = make_predictions(2, {"encoder": 9}, layers=1, seed=2)
    assert any(target.labels.any() for target in targets)
    agnostic = replace(proposals, class_agnostic=True)
    both = SetLoss(FOCAL)(replace(predictions, proposals=agnostic), targets)
    first = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
    alone = [SetLoss(FOCAL)(predictions, targets), SetLoss(FOCAL)(proposals, first)]
    torch.testing.assert_close(both.total, alone[0].total + alone[1].total)
    assert both.terms == alone[0].terms | alone[1].terms


def test_proposals_that_tell_classes_learn_them():
    predictions, targets = make_predictions(2, {"static": 4}), make_targets([3, 2])
    proposals = make_predictions(2, {"encoder": 9}, layers=1, seed=2)
    both = SetLoss(FOCAL)(replace(predictions, proposals=proposals), targets)
    alone = [SetLoss(FOCAL)(predictions, targets), SetLoss(FOCAL)(proposals, targets)]
    torch.testing.assert_close(both.total, alone[0].total + alone[1].total)
    assert both.terms == alone[0].terms | alone[1].terms


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
    inputs = [both.logits, both.boxes]
    gradients = torch.autograd.grad(together.total, inputs)
    for losses, queries, share in zip(alone, (slice(0, 4), slice(4, 12)), (1, 0.5), strict=True):
        for gradient, expected in zip(gradients, torch.autograd.grad(losses.total, inputs), strict=True):
            torch.testing.assert_close(gradient[:, :, queries], share * expected[:, :, queries])


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
