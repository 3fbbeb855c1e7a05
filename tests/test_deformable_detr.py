"""What is particular to the deformable detectors beyond the recorded cases: proposals, and the scale of positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dqdet.models.deformable_detr import DeformableDetr
from dqdet.nn.levels import Levels
from small_families import CLASSES, CONFIGS, COUNT, build, inputs


def two_stage() -> DeformableDetr:
    return build("deformable_detr", {"two_stage": True, "refine": True}, kind="static").train()


def references_of(model: DeformableDetr) -> list[Tensor]:
    """Filled with the references of each layer in the first image, ``[Q, 2 or 4]``, which has no padding."""
    references: list[Tensor] = []
    for layer in model.decoder:
        layer.register_forward_pre_hook(lambda layer, given: references.append(given[2][0, :, 0]))
    return references


def test_queries_are_the_proposals_of_the_highest_first_score():
    model = two_stage()
    references = references_of(model)
    predictions = model.forward_features(*inputs(model))
    assert predictions.groups == {"proposals": COUNT}
    assert predictions.logits.shape[1:] == (3, COUNT, CLASSES)
    proposals = predictions.proposals
    best = proposals.logits[0, ..., 0].topk(COUNT, 1).indices
    torch.testing.assert_close(references[0], proposals.boxes[0, 0, best[0]])


def test_small_images_have_fewer_proposals_than_queries():
    model = build("deformable_detr", {"two_stage": True, "refine": True, "levels": 3}, kind="static", count=300).eval()
    features = [torch.randn(1, x.shape[1], side, side) for x, side in zip(inputs(model)[0], (8, 4, 2), strict=True)]
    found = model.forward_features(features, torch.zeros(1, 64, 64, dtype=torch.bool))
    assert found.logits.shape[2] == found.groups["proposals"] == 8 * 8 + 4 * 4 + 2 * 2


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("context", ["backbone", "projected", "memory"])
@pytest.mark.parametrize("name", ["deformable_detr", "dab_deformable_detr", "dino"])
def test_with_fewer_levels_the_coarsest_maps_are_read(name, context, levels):
    """As the published Deformable-DETR of a single scale."""
    model = build(name, {"levels": levels}, context=context, count=2).eval()
    assert model.strides == (8, 16, 32)[-levels:]
    features, padding = inputs(model)
    assert len(features) == levels
    assert model.forward_features(features, padding).boxes.isfinite().all()


def test_an_image_of_one_cell_has_the_same_levels_alone_as_beside_another():
    levels = Levels([8, 8], hidden=32, levels=3)
    features = [torch.randn(2, 8, side, side) for side in (2, 1)]  # the third level has one cell, too
    both = levels(features)
    alone = levels([x[:1] for x in features])
    for one, two in zip(alone, both, strict=True):
        torch.testing.assert_close(one, two[:1])
    gradients = torch.autograd.grad(sum(x.square().sum() for x in alone), list(levels.parameters()), allow_unused=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_proposals_learn_from_their_own_loss_alone():
    model = two_stage()
    predictions = model.forward_features(*inputs(model))
    heads = [*model.box_head[-1].parameters(), *model.class_head[-1].parameters()]
    decoded = predictions.logits.sum() + predictions.boxes.sum()
    gradients = torch.autograd.grad(decoded, heads, retain_graph=True, allow_unused=True)
    assert not [gradient for gradient in gradients if gradient is not None and gradient.any()]
    proposed = predictions.proposals.logits.sum() + predictions.proposals.boxes.nan_to_num().sum()
    assert all(gradient.any() for gradient in torch.autograd.grad(proposed, heads))


def test_references_are_the_boxes_of_the_layer_before_without_their_gradient():
    """With refinement; without, all layers start from the same points."""
    for name, refined in (("deformable_detr", False), ("deformable_detr_refine", True), ("dab_deformable_detr", True)):
        model = build(name).train()
        references = references_of(model)
        boxes = model.forward_features(*inputs(model)).boxes
        assert len(references) == len(boxes)
        for layer, reference in enumerate(references[1:]):
            torch.testing.assert_close(reference, boxes[layer, 0] if refined else references[0])
            assert reference.requires_grad != refined


def test_every_layer_but_the_first_scales_the_positions_of_anchors():
    model = build("dab_deformable_detr").eval()
    scaled, positions = [], []
    model.position_scale.register_forward_hook(lambda head, given, scale: scaled.append(scale))
    model.position_head.register_forward_hook(lambda head, given, position: positions.append(position))
    used = []
    for layer in model.decoder:
        layer.register_forward_pre_hook(lambda layer, given: used.append(given[1]))
    model.forward_features(*inputs(model))
    assert len(used) == len(positions) == CONFIGS["dab_deformable_detr"].decoder_layers == len(scaled) + 1
    assert torch.equal(used[0], positions[0])
    for position, unscaled, scale in zip(used[1:], positions[1:], scaled, strict=True):
        torch.testing.assert_close(position, unscaled * scale)
