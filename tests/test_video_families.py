"""What holds for every family of videos, on small models and given features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import (
    MaskLossConfig,
    QueriesConfig,
    SeqFormerConfig,
    SequenceLossConfig,
    TransformerConfig,
    VideoMask2FormerConfig,
)
from dqdet.losses import make_loss
from dqdet.models import FAMILIES, video_mask2former
from dqdet.models.detector import Detector
from dqdet.models.mask2former import Mask2Former
from dqdet.models.video_mask2former import VideoMask2Former
from dqdet.nn.padding import resize_padding
from dqdet.nn.pixel_decoder import PixelFeatures
from dqdet.types import Predictions, Queries, Target

SIZES = {"hidden": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 3, "feedforward": 48, "dropout": 0.0}
CONFIGS: dict[str, TransformerConfig] = {
    "video_mask2former": VideoMask2FormerConfig(**SIZES, encoder_feedforward=48),
    "seqformer": SeqFormerConfig(**SIZES),
}
LOSSES = {"masks": MaskLossConfig(points=50), "sequences": SequenceLossConfig()}
CLASSES, COUNT, RATIO, FRAMES = 5, 6, 3, 3
CHANNELS = {4: 8, 8: 12, 16: 20, 32: 24}  # stride -> channels
CLIPS = [(64, 96), (50, 70)]  # height, width

every_family = pytest.mark.parametrize("name", CONFIGS)


def build(name: str, family: type[Detector] | None = None) -> Detector:
    """A model whose parameters are away from initial values that hide mistakes."""
    torch.manual_seed(0)
    config, queries = CONFIGS[name], QueriesConfig(count=COUNT, ratio=RATIO, hidden=16)
    family = family or FAMILIES[config.family]
    model = family(config, queries, CLASSES, [CHANNELS[stride] for stride in family.strides])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def inputs(model: Detector, frames: int = FRAMES) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    padding = torch.ones(len(CLIPS), 64, 96, dtype=torch.bool)
    for clip, (height, width) in enumerate(CLIPS):
        padding[clip, :height, :width] = False
    shapes = [(len(CLIPS), frames, CHANNELS[s], 64 // s, 96 // s) for s in model.strides]
    return [torch.randn(shape, generator=generator) for shape in shapes], padding


def make_targets(*counts: int) -> list[Target]:
    """Squares that move to the right; the first of each clip enters in the second frame."""
    targets = []
    for (height, width), count in zip(CLIPS, counts, strict=True):
        masks = torch.zeros(count, FRAMES, height, width, dtype=torch.bool)
        boxes = torch.zeros(count, FRAMES, 4)
        for number in range(count):
            for frame in range(number == 0, FRAMES):
                x, y = 4 * frame + 10 * number, 8 * number
                masks[number, frame, y : y + 20, x : x + 20] = True
                boxes[number, frame] = torch.tensor([x + 10, y + 10, 20, 20]) / torch.tensor([width, height] * 2)
        size = (height, width)
        labels, crowd = torch.arange(count) % CLASSES, torch.zeros(count, dtype=torch.bool)
        targets.append(Target(labels, boxes, crowd, size, size, masks=masks, visible=masks.flatten(2).any(2)))
    return targets


def assert_same(actual: Predictions, expected: Predictions) -> None:
    assert actual.groups == expected.groups
    for name in ("logits", "boxes", "masks"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=1e-4, atol=1e-3, msg=name)


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


@every_family
@pytest.mark.parametrize("frames", [1, 4])
def test_shapes_and_groups(name, frames):
    model = build(name).train()
    predictions = model.forward_features(*inputs(model, frames))
    layers, clips, queries = len(predictions.logits), len(CLIPS), COUNT * (1 + RATIO)
    assert predictions.groups == {"modulated": COUNT, "basic": COUNT * RATIO}
    assert predictions.logits.shape[1:3] == (clips, queries)
    assert predictions.final.masks.shape == (1, clips, COUNT, frames, 16, 24)
    if predictions.boxes is not None:
        assert predictions.boxes.shape == (layers, clips, queries, frames, 4)


@every_family
@pytest.mark.parametrize("group", ["modulated", "basic"])
def test_one_pass_equals_separate_passes(name, group):
    model = build(name).train()
    together = model.forward_features(*inputs(model)).group(group)
    model.queries = OneGroup(model.queries, group)
    assert_same(model.forward_features(*inputs(model)), together)


@every_family
def test_inference_is_the_first_group(name):
    model = build(name).train()
    first = model.forward_features(*inputs(model)).group("modulated")
    assert_same(model.eval().forward_features(*inputs(model)), first)


@every_family
def test_no_gradient_crosses_groups(name):
    model = build(name).train()
    contents = {}

    def keep(module: nn.Module, arguments: tuple, queries: Queries) -> None:
        for part, tensor in queries.parts.items():
            contents[part] = tensor.detach().requires_grad_()
            queries.parts[part] = contents[part]

    model.queries.register_forward_hook(keep)
    predictions = model.forward_features(*inputs(model)).group("modulated")
    total = predictions.logits.square().sum() + predictions.masks.square().sum()
    gradients = torch.autograd.grad(total, list(contents.values()))
    assert all(gradient[:, :COUNT].any() for gradient in gradients)
    assert not any(gradient[:, COUNT:].any() for gradient in gradients)


@every_family
def test_the_order_of_a_batch_does_not_matter(name):
    model = build(name).eval()
    features, padding = inputs(model)
    predictions = model.forward_features(features, padding)
    flipped = model.forward_features([x.flip(0) for x in features], padding.flip(0))
    torch.testing.assert_close(flipped.logits, predictions.logits.flip(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(flipped.masks, predictions.masks.flip(1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(flipped.coefficients, predictions.coefficients.flip(0))


@every_family
def test_every_frame_counts_for_the_class(name):
    model = build(name).eval()
    features, padding = inputs(model)
    logits = model.forward_features(features, padding).logits[-1]
    for frame in range(FRAMES):
        changed = [x.clone() for x in features]
        for x in changed:
            x[:, frame] = x[:, frame].flip(-1)
        assert not torch.allclose(model.forward_features(changed, padding).logits[-1], logits, atol=1e-3)


@every_family
@pytest.mark.parametrize("objects", [(0, 0), (3, 1)])
def test_losses_are_finite_and_every_parameter_learns(name, objects):
    model = build(name).train()
    torch.manual_seed(0)
    criterion = make_loss(LOSSES[CONFIGS[name].loss])
    losses = criterion(model.forward_features(*inputs(model)), make_targets(*objects))
    losses.total.backward()
    assert losses.total > 0
    assert all(term.isfinite() for term in losses.terms.values())
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]


# Mask2Former for video.


def test_without_time_equal_frames_are_one_image(monkeypatch):
    monkeypatch.setattr(video_mask2former, "frame_position", lambda frames, width, device: torch.zeros(frames, width))
    clips = build("video_mask2former").train()
    images = build("video_mask2former", Mask2Former).train()
    images.load_state_dict(clips.state_dict())
    features, padding = inputs(clips, frames=1)
    still = clips.forward_features([x.expand(-1, FRAMES, -1, -1, -1) for x in features], padding)
    expected = images.forward_features([x[:, 0] for x in features], padding)
    torch.testing.assert_close(still.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(still.coefficients, expected.coefficients)
    masks = expected.masks[:, :, :, None].expand(-1, -1, -1, FRAMES, -1, -1)
    torch.testing.assert_close(still.masks, masks, rtol=1e-4, atol=1e-3)


def test_frames_are_ordered_by_their_time():
    model = build("video_mask2former").eval()
    features, padding = inputs(model)
    predictions = model.forward_features(features, padding)
    reversed_ = model.forward_features([x.flip(1) for x in features], padding)
    torch.testing.assert_close(reversed_.coefficients, predictions.coefficients)
    assert not torch.allclose(reversed_.logits, predictions.logits, atol=1e-3)


class GivenMaps(nn.Module):
    """In place of the pixel decoder, whose published convolutions and norms see the padding."""

    def forward(self, features: list[Tensor], padding: Tensor) -> PixelFeatures:
        mask_features, *maps = features
        maps = maps[::-1]
        return PixelFeatures(maps, [resize_padding(padding, x) for x in maps], mask_features)


@pytest.mark.parametrize(("bottom", "right"), [(1, 0), (0, 2), (1, 1)])
def test_more_padding_changes_nothing(bottom, right):
    model = build("video_mask2former").eval()
    assert isinstance(model, VideoMask2Former)
    model.pixel_decoder = GivenMaps()
    _, padding = inputs(model)
    generator = torch.Generator().manual_seed(2)
    shapes = [(len(CLIPS), FRAMES, SIZES["hidden"], 64 // s, 96 // s) for s in model.strides]
    features = [torch.randn(shape, generator=generator) for shape in shapes]
    predictions = model.forward_features(features, padding)

    # What is in padded cells must not matter.
    padded = [
        F.pad(x, (0, 32 // s * right, 0, 32 // s * bottom), value=3.0)
        for x, s in zip(features, model.strides, strict=True)
    ]
    found = model.forward_features(padded, F.pad(padding, (0, 32 * right, 0, 32 * bottom), value=True))
    torch.testing.assert_close(found.logits, predictions.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.masks[..., :16, :24], predictions.masks, rtol=1e-4, atol=1e-3)
