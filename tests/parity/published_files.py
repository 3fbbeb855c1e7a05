"""What files of published models hold: the recorded weights, behind a ResNet-18 in torchvision's names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FrozenBatchNorm2d

from dqdet.errors import DqdetError
from dqdet.runs.sources import load_model

RESNET18 = {4: 64, 8: 128, 16: 256, 32: 512}  # stride -> channels
CHANNELS = {16: 64, 24: 128, 40: 256, 56: 512}  # of the recorded backbones -> of ResNet-18
SIZES = [(64, 100), (96, 70)]  # of images


class TorchvisionBackbone(nn.Module):
    """ResNet-18 in torchvision's implementation and names, with the maps that a family reads."""

    def __init__(self, strides: tuple[int, ...]):
        super().__init__()
        backbone = resnet18(norm_layer=FrozenBatchNorm2d)
        for name, buffer in backbone.named_buffers():
            buffer.copy_(torch.rand_like(buffer) * 0.2 + (0.9 if name.endswith(("weight", "var")) else -0.1))
        stages = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
        self.body = IntermediateLayerGetter(backbone, {stages[stride]: stages[stride] for stride in strides})

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())


def reading_resnet18(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recorded weights, with new convolutions where they read maps of the backbone."""
    changed = dict(weights)
    for parameter, tensor in weights.items():
        if ("input_proj" in parameter or "adapter_1.weight" in parameter) and tensor.dim() == 4:
            out, given, *kernel = tensor.shape
            changed[parameter] = torch.randn(out, CHANNELS.get(given, given), *kernel) * 0.05
    return changed


def message(source: Path | str) -> str:
    """Of the error on loading it, which is one line."""
    with pytest.raises(DqdetError) as caught:
        load_model(source)
    text = str(caught.value)
    assert text.startswith(f"{source}: ")
    assert "\n" not in text
    return text
