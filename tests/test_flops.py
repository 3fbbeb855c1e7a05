"""Counted operations: against sums by hand, and against PyTorch's own count of unfused attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dqdet.config import resolve
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.nn.flops import decoder_flops
from dqdet.nn.sampling import sample

HIDDEN, HEADS, FEEDFORWARD, LAYERS, COUNT, RATIO, CLASSES = 32, 4, 48, 2, 6, 3, 5
COEFFICIENTS = 8  # hidden size of the MLP
SMALL: dict[str, Any] = {
    "model.backbone.name": "test_resnet",
    "model.backbone.pretrained": False,
    "model.hidden": HIDDEN,
    "model.heads": HEADS,
    "model.encoder_layers": 1,
    "model.decoder_layers": LAYERS,
    "model.feedforward": FEEDFORWARD,
    "queries.count": COUNT,
    "queries.ratio": RATIO,
    "queries.hidden": COEFFICIENTS,
    "classes": [f"class {i}" for i in range(CLASSES)],
}
PRESETS = [
    "detr_r50",
    "conditional_detr_r50",
    "smca_detr_r50",
    "dab_detr_r50",
    "deformable_detr_r50",
    "dab_deformable_detr_r50",
    "dino_r50",
]


def build(preset: str, kind: str = "static") -> Detector:
    return create_model(resolve(preset, SMALL | {"queries.kind": kind})).eval()


def inputs(batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 64, 96), torch.zeros(batch, 64, 96, dtype=torch.bool)


def linear(rows: int, inputs: int, outputs: int) -> int:
    return 2 * rows * inputs * outputs


def test_sampling():
    """2 images, 3 queries, 2 heads, 2 levels, 5 points: 120 in all, each with 4 corners of 7 channels."""
    value = torch.randn(2, 4 * 6 + 2 * 3, 2, 7)
    with FlopCounterMode(display=False) as counter:
        sample(value, [(4, 6), (2, 3)], torch.rand(2, 3, 2, 2, 5, 2), torch.rand(2, 3, 2, 2, 5))
    assert counter.get_total_flops() == 120 * 4 * 7 * 2


def test_deformable_decoder():
    points = HEADS * 4 * 4  # of one query: four levels with four points a head
    cells = 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2  # of a 64 x 96 image at strides 8 to 64
    self_attention = linear(COUNT, HIDDEN, 4 * HIDDEN) + 2 * linear(COUNT, HIDDEN, COUNT)
    values = linear(cells, HIDDEN, HIDDEN)
    offsets_and_weights = linear(COUNT, HIDDEN, 2 * points) + linear(COUNT, HIDDEN, points)
    sampling = COUNT * points * 4 * 2 * (HIDDEN // HEADS)
    cross_attention = values + offsets_and_weights + sampling + linear(COUNT, HIDDEN, HIDDEN)
    feedforward = 2 * linear(COUNT, HIDDEN, FEEDFORWARD)
    heads = linear(COUNT, HIDDEN, CLASSES) + 2 * linear(COUNT, HIDDEN, HIDDEN) + linear(COUNT, HIDDEN, 4)
    reference = linear(COUNT, HIDDEN, 2)
    expected = reference + LAYERS * (self_attention + cross_attention + feedforward + heads)
    assert decoder_flops(build("deformable_detr_r50"), *inputs()) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_fused_attention_counts_as_its_two_products(preset):
    model, batch = build(preset), inputs(2)
    with sdpa_kernel(SDPBackend.MATH):
        unfused = decoder_flops(model, *batch)
    assert decoder_flops(model, *batch) == unfused


@pytest.mark.parametrize("preset", PRESETS)
def test_modulated_queries_cost_one_mlp_besides_their_sum(preset):
    """The weighted sum itself is elementwise work, which does not count."""
    static, modulated = build(preset), build(preset, "modulated")
    batch = 2
    mlp = modulated.queries.coefficients
    expected = linear(batch, mlp[0].in_features, COEFFICIENTS) + linear(batch, COEFFICIENTS, COUNT * RATIO)
    found = decoder_flops(modulated, *inputs(batch)) - decoder_flops(static, *inputs(batch))
    assert found == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_the_encoder_does_not_count(preset):
    model = build(preset)
    options = SMALL | {"queries.kind": "static", "model.encoder_layers": 3, "model.backbone.name": "resnet18"}
    larger = create_model(resolve(preset, options)).eval()
    assert decoder_flops(larger, *inputs()) == decoder_flops(model, *inputs())
