"""Every preset as published: full size, one training step at its resolution."""

from __future__ import annotations

import pytest
import torch

from dqdet.config import Config, preset_names, resolve
from dqdet.losses import make_loss
from dqdet.models import create_model
from dqdet.training.optimiser import make_optimiser
from dqdet.types import Target

CLASSES = 91
PHOTOGRAPH = (800, 1066)  # height, width: of 640 x 480 with its shorter side resized to 800
VIDEO = (360, 640)  # of 1280 x 720 with its shorter side resized to 360


def make_target(config: Config, frames: tuple[int, ...], size: tuple[int, int]) -> Target:
    boxes = torch.rand(7, *frames, 4) * 0.4 + 0.2
    masks = None
    if config.data.task != "detection":
        masks = torch.zeros(7, *frames, *size, dtype=torch.bool)
        masks[..., 100:200, 100:300] = True
    return Target(torch.randint(CLASSES, (7,)), boxes, size, size, masks=masks)


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in preset_names() if not name.startswith("scenes")])
def test_trains_a_step(preset):
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(CLASSES)]
    config = resolve(preset, {"model.backbone.pretrained": False, "classes": names})
    model = create_model(config).train()
    optimiser = make_optimiser(model, config.train)

    video = config.data.task == "video"
    frames = (config.data.clips.frames,) if video else ()
    square = (config.data.val_resize,) * 2 if config.data.square else None
    size = VIDEO if video else config.data.window or square or PHOTOGRAPH
    targets = [make_target(config, frames, size)]
    predictions = model(torch.randn(1, *frames, 3, *size), torch.zeros(1, *size, dtype=torch.bool), targets)
    losses = make_loss(config.loss)(predictions, targets)
    assert losses.total.isfinite()
    basic = [f"basic {j}" for j in range(1, 14)] if config.queries.basic == "groups" else ["basic"]
    denoising = ["denoising"] if config.queries.denoising else []
    assert list(predictions.groups) == ["modulated", *basic, *denoising]

    losses.total.backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    optimiser.step()
    assert all(p.isfinite().all() for p in trained.values())
