"""Losses of masks, at points (Mask2Former) and at stride 4 (SeqFormer), on random predictions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_convert, generalized_box_iou, sigmoid_focal_loss

from dqdet.config import MaskLossConfig, SequenceLossConfig
from dqdet.losses import MaskSetLoss, SequenceSetLoss, make_loss
from dqdet.losses.masks import ObjectMasks, RandomPoints, uncertain_points
from dqdet.losses.matching import Matches
from dqdet.losses.sequences import PAIRS_AT_ONCE
from dqdet.nn.dynamic_masks import DynamicMasks, parameter_count
from dqdet.nn.product_masks import ProductMasks
from dqdet.types import Predictions, Target
from small_families import CLASSES, CLIPS, FRAMES, make_targets

LAYERS = 3
IMAGES = CLIPS  # of the same sizes
GROUPS = {"modulated": 4, "basic": 8}


def of_images(groups: dict[str, int]) -> Predictions:
    torch.manual_seed(3)
    shape = (LAYERS, len(IMAGES), sum(groups.values()))
    return Predictions(
        logits=torch.randn(*shape, CLASSES + 1, requires_grad=True),
        boxes=None,
        groups=groups,
        masks=ProductMasks(
            torch.randn(*shape, 8, requires_grad=True),
            torch.randn(len(IMAGES), 8, 16, 24, requires_grad=True),
        ),
    )


def of_clips(groups: dict[str, int]) -> Predictions:
    torch.manual_seed(3)
    shape = (LAYERS, len(CLIPS), sum(groups.values()))
    return Predictions(
        logits=torch.randn(*shape, CLASSES, requires_grad=True),
        boxes=torch.rand(*shape, FRAMES, 4, requires_grad=True),
        groups=groups,
        masks=DynamicMasks(
            (0.1 * torch.randn(*shape, parameter_count(2))).requires_grad_(),
            torch.randn(len(CLIPS), FRAMES, 2, 8, 12, requires_grad=True),
            50 * torch.rand(*shape, FRAMES, 2),
        ),
    )


def case(kind: str, groups: dict[str, int], objects: tuple[int, int]) -> tuple[Predictions, list[Target]]:
    if kind == "masks":
        return of_images(groups), make_targets(IMAGES, objects)
    return of_clips(groups), make_targets(CLIPS, objects, FRAMES)


LOSSES = {"masks": MaskLossConfig(points=50), "sequences": SequenceLossConfig()}
every_loss = pytest.mark.parametrize("kind", LOSSES)


@every_loss
def test_without_objects_the_classes_alone_learn(kind):
    predictions, targets = case(kind, GROUPS, (0, 0))
    losses = make_loss(LOSSES[kind])(predictions, targets)
    assert {value.item() for key, value in losses.terms.items() if not key.endswith("class")} == {0.0}
    masks = predictions.masks
    given = {"logits": predictions.logits, "embeddings": masks.embeddings, "features": masks.features}
    if predictions.boxes is not None:
        given["boxes"] = predictions.boxes
    gradients = dict(zip(given, torch.autograd.grad(losses.total, list(given.values())), strict=True))
    assert [name for name, gradient in gradients.items() if gradient.any()] == ["logits"]


@every_loss
def test_more_objects_than_queries(kind):
    predictions, targets = case(kind, {"modulated": 2, "basic": 4}, (3, 1))
    assert make_loss(LOSSES[kind])(predictions, targets).total.isfinite()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize(("kind", "frames", "objects"), [("masks", 1, (2, 2)), ("sequences", FRAMES, (10, 10))])
def test_masks_of_all_queries_never_exist(kind, frames, objects):
    predictions, targets = case(kind, {"modulated": 100, "basic": 400}, objects)
    with Largest() as largest:
        make_loss(LOSSES[kind])(predictions, targets).total.backward()
    of_one_layer = 500 * frames * 16 * 24
    assert largest.elements < of_one_layer


# At points.


class PixelCentres(RandomPoints):
    """All pixels' centres of the padded image."""

    points = torch.stack(
        torch.meshgrid((torch.arange(96) + 0.5) / 96, (torch.arange(64) + 0.5) / 64, indexing="xy"), -1
    ).flatten(0, 1)

    def of_images(self, layer, group, images, count, device):
        return self.points.expand(images, -1, -1)

    def of_pairs(self, pairs, frames, count):
        return self.points[:count].expand(len(pairs.query), frames, -1, -1)


def test_at_all_pixels_costs_and_losses_are_those_of_whole_masks():
    predictions, targets = of_images(GROUPS), make_targets(IMAGES, (3, 2))
    config = MaskLossConfig(points=64 * 96, oversample=1, important=1, no_object_weight=0.3, beta=0.5)
    criterion = MaskSetLoss(config, PixelCentres())
    assert predictions.masks is not None
    # Points at the centres of pixels are read from upsampled logits, whose border is not repeated: 0 outside.
    padded = F.pad(predictions.masks.all().flatten(0, 2)[:, None], (1, 1, 1, 1))
    large = F.interpolate(padded, scale_factor=4, mode="bilinear")[..., 4:-4, 4:-4]
    large = large.reshape(*predictions.masks.embeddings.shape[:3], -1)  # [L, B, Q, pixels]
    matches = criterion.match(predictions, targets, ObjectMasks(targets, 1, 64, 96))
    probability = predictions.logits.softmax(-1)

    def mask_losses(layer: int, image: int, query: int, object_: int) -> tuple[Tensor, Tensor]:
        masks = targets[image].masks
        assert masks is not None
        wanted = F.pad(masks[object_].float(), (0, 96 - masks.shape[2], 0, 64 - masks.shape[1])).flatten()
        logits = large[layer, image, query]
        overlap = 2 * (logits.sigmoid() * wanted).sum() + 1
        dice = 1 - overlap / (logits.sigmoid().sum() + wanted.sum() + 1)
        return F.binary_cross_entropy_with_logits(logits, wanted), dice

    def cost(layer: int, image: int, query: int, object_: int) -> float:
        mask, dice = mask_losses(layer, image, query, object_)
        label = targets[image].labels[object_]
        return (5 * mask + 5 * dice - 2 * probability[layer, image, query, label]).item()

    expected: dict[str, Tensor] = {}
    pairs = set()
    for layer, image, (name, queries) in product(
        range(3), range(2), {"modulated": range(4), "basic": range(4, 12)}.items()
    ):
        costs = [[cost(layer, image, query, object_) for object_ in range((3, 2)[image])] for query in queries]
        for row, object_ in zip(*linear_sum_assignment(costs), strict=True):
            pairs.add((layer, image, queries[row], object_))
            for term, value in zip(("mask", "dice"), mask_losses(layer, image, queries[row], object_), strict=True):
                key = f"{name}/{layer}/{term}"
                expected[key] = expected.get(key, torch.zeros(())) + value / 5
    fields = (matches.layer, matches.image, matches.query, matches.object)
    assert set(zip(*(field.tolist() for field in fields), strict=True)) == pairs

    losses = criterion(predictions, targets)
    for key, value in expected.items():
        torch.testing.assert_close(losses.terms[key], value.detach(), rtol=1e-4, atol=1e-5)
    weights = {"class": 2.0, "mask": 5.0, "dice": 5.0}
    total = sum(
        weights[key.split("/")[2]] * (0.5 if key.startswith("basic") else 1) * value
        for key, value in losses.terms.items()
    )
    torch.testing.assert_close(losses.total, total)

    of_masks = 5 * sum(value * (0.5 if key.startswith("basic") else 1) for key, value in expected.items())
    inputs = [predictions.masks.embeddings, predictions.masks.features]
    expected_gradients = torch.autograd.grad(of_masks, inputs, retain_graph=True)
    for gradient, wanted in zip(torch.autograd.grad(losses.total, inputs), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_object_masks_are_read_as_padded_ones():
    targets = make_targets(IMAGES, (3, 2))
    masks = ObjectMasks(targets, 1, 64, 96)
    padded = torch.cat([F.pad(t.masks.float(), (0, 96 - t.size[1], 0, 64 - t.size[0])) for t in targets])
    points = torch.rand(5, 1000, 2, generator=torch.Generator().manual_seed(0))
    points[:, :100] = points[:, :100].round()  # corners and borders, where a part of each sample is outside
    expected = F.grid_sample(padded[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]
    torch.testing.assert_close(masks.at(torch.arange(5), points[:, None])[:, 0], expected, rtol=0, atol=1e-4)


def test_points_are_mostly_those_of_least_certainty():
    criterion = MaskSetLoss(MaskLossConfig(points=40))
    ramp = torch.linspace(-10, 10, 32).expand(1, 2, 32, 32)  # uncertain around the middle column
    torch.manual_seed(0)
    pairs = Matches([1], *torch.zeros(6, 1, dtype=torch.long))
    points = uncertain_points(criterion.points, ramp, pairs, 40, 3.0, 0.75)[0]  # of two frames
    assert points.shape == (2, 40, 2)
    distance = (points[..., 0] - 0.5).abs()
    # Of 120 candidates the nearest 30, about a quarter of the width; the other 10 anywhere.
    assert distance[:, :30].max() < 0.25
    assert distance[:, 30:].max() > 0.25


def test_mixed_precision_sums_in_full_precision():
    predictions, targets = of_images(GROUPS), make_targets(IMAGES, (3, 2))
    criterion = MaskSetLoss(MaskLossConfig(points=64 * 96, oversample=1, important=1), PixelCentres())
    expected = criterion(predictions, targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = criterion(predictions, targets).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=0)  # the masks themselves are in half precision


# At stride 4.


def test_the_loss_is_that_of_each_group_and_beta_times_the_others():
    predictions, targets = of_clips({"modulated": 4, "basic": 16}), make_targets(CLIPS, (3, 2), FRAMES)
    assert LAYERS * 2 * 3 > PAIRS_AT_ONCE  # the first clip's pairs take more than one turn
    together = SequenceSetLoss(SequenceLossConfig(beta=0.5))(predictions, targets)
    alone = [SequenceSetLoss(SequenceLossConfig())(predictions.group(name), targets) for name in predictions.groups]
    torch.testing.assert_close(together.total, alone[0].total + 0.5 * alone[1].total)
    assert together.terms.keys() == alone[0].terms.keys() | alone[1].terms.keys()
    for key, value in (alone[0].terms | alone[1].terms).items():
        torch.testing.assert_close(together.terms[key], value)


def giou(a: Tensor, b: Tensor) -> Tensor:
    return generalized_box_iou(box_convert(a[None], "cxcywh", "xyxy"), box_convert(b[None], "cxcywh", "xyxy"))[0, 0]


def test_costs_and_losses_of_sequences_are_those_of_torchvision():
    """Costs and losses of the published code: it matches by Euclidean distances, and learns by L1 ones."""
    sizes = {"class": 3.0, "box": 5.0, "giou": 4.0, "mask": 2.0, "dice": 6.0}
    config = SequenceLossConfig(
        class_cost=3, box_cost=15, giou_cost=4, beta=0.5, **{f"{term}_weight": size for term, size in sizes.items()}
    )
    predictions, targets = of_clips({"modulated": 10, "basic": 20}), make_targets(CLIPS, (3, 2), FRAMES)
    assert predictions.masks is not None
    logits, boxes, masks = predictions.logits, predictions.boxes, predictions.masks.all()
    focal = partial(sigmoid_focal_loss, alpha=0.25, gamma=2)
    gained = focal(logits, torch.ones_like(logits)) - focal(logits, torch.zeros_like(logits))

    def frames(image: int, object_: int, sequence: Tensor) -> Tensor:
        of_object = targets[image].boxes[object_]  # [T, 4]
        return torch.stack([giou(sequence[frame], of_object[frame]) for frame in range(FRAMES)])

    def cost(layer: int, image: int, query: int, object_: int) -> float:
        sequence = boxes[layer, image, query]
        distance = (sequence - targets[image].boxes[object_]).square().sum().sqrt()
        of_class = gained[layer, image, query, targets[image].labels[object_]]
        return (3 * of_class + 15 * distance - 4 * frames(image, object_, sequence).mean()).item()

    matches = SequenceSetLoss(config).match(predictions, targets)
    fields = (matches.layer, matches.image, matches.query, matches.object)
    found = set(zip(*(field.tolist() for field in fields), strict=True))
    losses = SequenceSetLoss(config)(predictions, targets)
    total = torch.zeros(())
    for layer, (name, queries) in product(range(LAYERS), {"modulated": range(10), "basic": range(10, 30)}.items()):
        one_hot = torch.zeros(len(CLIPS), 30, CLASSES)
        terms = dict.fromkeys(sizes, torch.zeros(()))
        for image, target in enumerate(targets):
            costs = [[cost(layer, image, query, n) for n in range(len(target.labels))] for query in queries]
            for row, object_ in zip(*linear_sum_assignment(costs), strict=True):
                found.remove((layer, image, queries[row], object_))
                one_hot[image, queries[row], target.labels[object_]] = 1
                sequence = boxes[layer, image, queries[row]]
                of_object = targets[image].masks[object_, :, 2::4, 2::4].float()
                mask = masks[layer, image, queries[row]]
                of_object = F.pad(
                    of_object, (0, mask.shape[2] - of_object.shape[2], 0, mask.shape[1] - of_object.shape[1])
                )
                overlap = 2 * (mask.sigmoid() * of_object).sum() + 1
                pair = {
                    "box": (sequence - target.boxes[object_]).abs().sum(-1).mean(),
                    "giou": 1 - frames(image, object_, sequence).mean(),
                    "mask": focal(mask, of_object).mean(),
                    "dice": 1 - overlap / (mask.sigmoid().sum() + of_object.sum() + 1),
                }
                terms |= {term: terms[term] + value / 5 for term, value in pair.items()}
        terms["class"] = focal(logits[layer], one_hot)[:, queries.start : queries.stop].sum() / 5
        for term, value in terms.items():
            torch.testing.assert_close(losses.terms[f"{name}/{layer}/{term}"], value.detach(), rtol=1e-4, atol=1e-5)
        total = total + (0.5 if name == "basic" else 1) * sum(sizes[term] * value for term, value in terms.items())
    assert not found
    torch.testing.assert_close(losses.total, total)


def test_the_loss_of_a_perfect_mask_is_nearly_nothing():
    """Masks are compared where the published code does: at the third pixel of every four, padding included."""
    predictions, (target, _) = of_clips({"static": 1}), make_targets(CLIPS, (1, 1), FRAMES)
    target = replace(target, boxes=target.boxes + 1e-6)
    logits = torch.full((FRAMES, 16, 24), -20.0)
    logits[target.masks[0][..., 2::4, 2::4]] = 20.0

    class Perfect(ProductMasks):
        def of(self, layer, image, queries):
            return logits.expand(len(queries), -1, -1, -1)

    masks = Perfect(predictions.masks.embeddings[:, :1], predictions.masks.features)
    perfect = replace(predictions, logits=predictions.logits[:, :1], boxes=predictions.boxes[:, :1], masks=masks)
    terms = SequenceSetLoss(SequenceLossConfig())(perfect, [target]).terms
    assert terms["static/0/mask"] < 1e-6
    assert terms["static/0/dice"] < 1e-6
    logits[0, 0, 0] = 20.0  # one cell of 4 x 16 x 24, in a frame without the object
    terms = SequenceSetLoss(SequenceLossConfig())(perfect, [target]).terms
    assert terms["static/0/mask"].item() == pytest.approx(0.75 * 20 / (FRAMES * 16 * 24), rel=1e-3)


def test_masks_of_pairs_are_not_kept():
    predictions, targets = of_clips({"modulated": 100, "basic": 400}), make_targets(CLIPS, (10, 10), FRAMES)
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        SequenceSetLoss(SequenceLossConfig())(predictions, targets)
    assert kept < 2 * LAYERS * 2 * 20 * FRAMES * 16 * 24  # two numbers a cell of the masks of all pairs
