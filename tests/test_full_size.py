"""Every preset as published: full size, one training step at its resolution."""

from __future__ import annotations

import pytest
import torch

from dqdet.config import preset_names, resolve
from dqdet.losses import SetLoss
from dqdet.models import create_model
from dqdet.training.optimiser import make_optimiser
from dqdet.types import Target

CLASSES = 91
HEIGHT, WIDTH = 800, 1066  # of a photograph of 640 x 480 with its shorter side resized to 800


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in preset_names() if name != "scenes_tiny"])
def test_trains_a_step(preset):
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(CLASSES)]
    config = resolve(preset, {"model.backbone.pretrained": False, "classes": names})
    model = create_model(config).train()
    optimiser = make_optimiser(model, config.train)

    size = (HEIGHT, WIDTH)
    boxes = torch.rand(7, 4) * 0.4 + 0.2
    target = Target(torch.randint(CLASSES, (7,)), boxes, torch.zeros(7, dtype=torch.bool), size, size)
    predictions = model(torch.randn(1, 3, *size), torch.zeros(1, *size, dtype=torch.bool))
    losses = SetLoss(config.loss)(predictions, [target])
    assert losses.total.isfinite()
    assert set(predictions.groups) == {"modulated", "basic"}

    losses.total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    optimiser.step()
    assert all(p.isfinite().all() for p in trained.values())
