"""What holds for Mask2Former and its loss on points beyond the recorded cases, on small models and given features."""

from __future__ import annotations

from itertools import product

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dqdet.config import Mask2FormerConfig, MaskLossConfig, QueriesConfig
from dqdet.losses.masks import MaskSetLoss, ObjectMasks, RandomPoints
from dqdet.losses.matching import Matches
from dqdet.models.mask2former import Level, Mask2Former
from dqdet.types import Predictions, Queries, Target

CHANNELS = [8, 12, 16, 20]
IMAGES = [(64, 96), (50, 70)]  # height, width
CLASSES = 5


def build(**options) -> Mask2Former:
    """A model whose parameters are away from initial values that hide mistakes."""
    torch.manual_seed(0)
    sizes = {"hidden": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 4, "feedforward": 24}
    config = Mask2FormerConfig(**sizes, encoder_feedforward=24, **options)
    model = Mask2Former(config, QueriesConfig(count=6, ratio=3, hidden=16), CLASSES, CHANNELS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs() -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(1)
    padding = torch.ones(2, 64, 96, dtype=torch.bool)
    for image, (height, width) in enumerate(IMAGES):
        padding[image, :height, :width] = False
    features = [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip(CHANNELS, Mask2Former.strides, strict=True)]
    return features, padding


def make_targets(*counts: int) -> list[Target]:
    """Objects that are rectangles, in images of different sizes."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for (height, width), count in zip(IMAGES, counts, strict=True):
        masks = torch.zeros(count, height, width, dtype=torch.bool)
        for mask in masks:
            top, left = (int(torch.randint(side // 2, (), generator=generator)) for side in (height, width))
            mask[top : top + height // 2, left : left + width // 2] = True
        targets.append(
            Target(
                labels=torch.randint(CLASSES, (count,), generator=generator),
                boxes=torch.zeros(count, 4),
                crowd=torch.zeros(count, dtype=torch.bool),
                size=(height, width),
                original_size=(height, width),
                masks=masks,
            )
        )
    return targets


class OneGroup(nn.Module):
    """Some source of queries, reduced to one of its groups."""

    def __init__(self, source: nn.Module, group: str):
        super().__init__()
        self.source, self.group = source, group

    def forward(self, features: Tensor, padding: Tensor) -> Queries:
        queries = self.source(features, padding)
        index = list(queries.groups).index(self.group)
        sizes = list(queries.groups.values())
        parts = {name: part.split(sizes, 1)[index] for name, part in queries.parts.items()}
        return Queries(parts, {self.group: sizes[index]}, queries.coefficients)


def test_one_pass_equals_separate_passes():
    model, (features, padding) = build().train(), inputs()
    together = model.forward_features(features, padding)
    assert together.groups == {"modulated": 6, "basic": 18}
    source = model.queries
    for group in together.groups:
        model.queries = OneGroup(source, group)
        alone = model.forward_features(features, padding)
        torch.testing.assert_close(together.group(group).logits, alone.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(together.group(group).masks, alone.masks, rtol=1e-4, atol=1e-4)


def test_padding_seen_as_image():
    features, padding = inputs()
    seen = build(see_padding=True).eval().forward_features(features, padding)
    model = build().eval()
    without = model.forward_features(features, torch.zeros_like(padding))
    torch.testing.assert_close(seen.logits, without.logits)
    assert not torch.allclose(seen.logits, model.forward_features(features, padding).logits, atol=1e-3)


def test_attention_sees_the_foreground_or_else_the_whole_image_but_never_padding():
    padding = torch.tensor([[False, False, False, True]])
    features = torch.tensor([[[1.0, -1.0, -1.0, 1.0]]])  # [B, c, S]
    level = Level(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1), padding, features)
    # Masks with foreground, with more foreground, and (without the first cell) with none but in the padding.
    bias = level.attention_bias(torch.tensor([[[1.0], [-1.0]]]))[0, 0]
    assert (bias == 0).tolist() == [[True, False, False, False], [False, True, True, False]]
    level.mask_features[..., 0] = -1
    assert (level.attention_bias(torch.tensor([[[1.0]]]))[0, 0] == 0).tolist() == [[True, True, True, False]]


# The loss.


class PixelCentres(RandomPoints):
    """All pixels' centres of the padded image."""

    points = torch.stack(
        torch.meshgrid((torch.arange(96) + 0.5) / 96, (torch.arange(64) + 0.5) / 64, indexing="xy"), -1
    ).flatten(0, 1)

    def of_images(self, layer, group, images, count, device):
        return self.points.expand(images, -1, -1)

    def of_pairs(self, pairs, frames, count):
        return self.points[:count].expand(len(pairs.query), frames, -1, -1)


def random_predictions(groups: dict[str, int], layers: int = 3) -> Predictions:
    torch.manual_seed(3)
    total = sum(groups.values())
    return Predictions(
        logits=torch.randn(layers, 2, total, CLASSES + 1, requires_grad=True),
        boxes=None,
        groups=groups,
        mask_embeddings=torch.randn(layers, 2, total, 8, requires_grad=True),
        mask_features=torch.randn(2, 8, 16, 24, requires_grad=True),
    )


def test_at_all_pixels_costs_and_losses_are_those_of_whole_masks():
    groups = {"modulated": 4, "basic": 8}
    predictions, targets = random_predictions(groups), make_targets(3, 2)
    config = MaskLossConfig(points=64 * 96, oversample=1, important=1, no_object_weight=0.3, beta=0.5)
    criterion = MaskSetLoss(config, PixelCentres())
    assert predictions.masks is not None
    # Points at the centres of pixels are read from upsampled logits, whose border is not repeated: 0 outside.
    padded = F.pad(predictions.masks.flatten(0, 2)[:, None], (1, 1, 1, 1))
    large = F.interpolate(padded, scale_factor=4, mode="bilinear")[..., 4:-4, 4:-4]
    large = large.reshape(*predictions.masks.shape[:3], -1)  # [L, B, Q, pixels]
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
    inputs = [predictions.mask_embeddings, predictions.mask_features]
    expected_gradients = torch.autograd.grad(of_masks, inputs, retain_graph=True)
    for gradient, wanted in zip(torch.autograd.grad(losses.total, inputs), expected_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_object_masks_are_read_as_padded_ones():
    targets = make_targets(3, 2)
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
    points = criterion.loss_points(ramp, Matches(*torch.zeros(4, 1, dtype=torch.long)))[0]  # of two frames
    assert points.shape == (2, 40, 2)
    distance = (points[..., 0] - 0.5).abs()
    # Of 120 candidates the nearest 30, about a quarter of the width; the other 10 anywhere.
    assert distance[:, :30].max() < 0.25
    assert distance[:, 30:].max() > 0.25


def test_images_without_objects():
    predictions = random_predictions({"modulated": 4, "basic": 8})
    losses = MaskSetLoss(MaskLossConfig(points=50))(predictions, make_targets(0, 0))
    assert {value.item() for key, value in losses.terms.items() if not key.endswith("class")} == {0.0}
    gradients = torch.autograd.grad(
        losses.total, [predictions.logits, predictions.mask_embeddings, predictions.mask_features]
    )
    assert gradients[0].abs().sum() > 0
    assert all(not gradient.any() for gradient in gradients[1:])


def test_mixed_precision_sums_in_full_precision():
    predictions, targets = random_predictions({"modulated": 4, "basic": 8}), make_targets(3, 2)
    criterion = MaskSetLoss(MaskLossConfig(points=64 * 96, oversample=1, important=1), PixelCentres())
    expected = criterion(predictions, targets).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = criterion(predictions, targets).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=0)  # the masks themselves are in half precision


def test_more_objects_than_queries():
    predictions = random_predictions({"modulated": 2, "basic": 4})
    losses = MaskSetLoss(MaskLossConfig(points=50))(predictions, make_targets(3, 1))
    assert torch.isfinite(losses.total)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_masks_of_all_queries_never_exist():
    predictions, targets = random_predictions({"modulated": 100, "basic": 400}), make_targets(2, 2)
    with Largest() as largest:
        MaskSetLoss(MaskLossConfig(points=32))(predictions, targets).total.backward()
    of_one_layer = 500 * 16 * 24
    assert largest.elements < of_one_layer


def test_every_parameter_learns():
    model, (features, padding) = build().train(), inputs()
    torch.manual_seed(0)
    MaskSetLoss(MaskLossConfig(points=100))(
        model.forward_features(features, padding), make_targets(2, 2)
    ).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
