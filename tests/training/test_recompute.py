"""Layers that are computed anew in the backward pass learn exactly what those do that keep everything."""

import copy

import pytest
import torch
from recorder import Recorder
from safetensors.torch import load_file
from torch import nn

from dqdet.config import BackboneConfig, WindowedVitConfig
from dqdet.models.lw_detr import LwDetr
from dqdet.nn.backbone import Backbone
from dqdet.nn.checkpointing import recompute, repeated_layers
from dqdet.nn.vit import WindowedVit
from dqdet.runs.folder import load_metrics
from dqdet.training.engine import train
from small_families import CONFIGS, build, inputs, outputs
from tiny import tiny


class Model(nn.Module):
    """A model of what is passed through one function of it."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.backbone(images)


def learned(model: nn.Module, run, *given) -> dict[str, torch.Tensor]:
    """Outputs, gradients and buffers of a step whose random numbers are always the same."""
    torch.manual_seed(3)
    found = run(model, *given)
    found = dict(enumerate(found)) if isinstance(found, list) else outputs(found)
    sum((tensor * torch.randn_like(tensor)).sum() for tensor in found.values()).backward()
    return {
        **{f"output {name}": tensor.detach() for name, tensor in found.items()},
        **{name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        **{f"buffer {name}": buffer for name, buffer in model.named_buffers()},
    }


def assert_learns_the_same(model: nn.Module, run, *given) -> None:
    economical = copy.deepcopy(model.train())
    recompute(economical)
    economical = copy.deepcopy(economical)  # as averaged weights are made
    expected, found = learned(model, run, *given), learned(economical, run, *given)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_learns_exactly_the_same_with_dropout(name):
    model = build(name, {"dropout": 0.2})
    layers = [m for m in model.modules() if type(m).__name__.endswith(("EncoderLayer", "DecoderLayer"))]
    assert set(repeated_layers(model)) == set(layers)
    assert len(layers) >= 3 + (not isinstance(model, LwDetr))
    assert_learns_the_same(model, lambda model, *given: model.forward_features(*given), *inputs(model))


def vit() -> nn.Module:
    sizes = {"patch": 16, "positions": 4, "taps": [1, 2], "global_blocks": [1]}
    return WindowedVit(WindowedVitConfig(name="test_vit", pretrained=False, drop_path=0.5, **sizes))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        *(("test_resnet", 4), ("test_convnext", 9), ("test_vit", 6)),
        pytest.param("swin_tiny_patch4_window7_224", 12, marks=pytest.mark.slow),
    ],
)
def test_a_backbone_learns_exactly_the_same_with_dropped_paths_and_running_statistics(name, layers):
    torch.manual_seed(0)
    options = BackboneConfig(name=name, pretrained=False, freeze=False, drop_path=0.5)
    model = Model(vit() if name == "test_vit" else Backbone(options, (8, 16, 32)))
    assert len(repeated_layers(model)) == layers
    assert_learns_the_same(model, Model.__call__, torch.rand(2, 3, 64, 64))


def test_less_is_kept_for_the_backward_pass():
    kept = []
    for again in (False, True):
        model = build("deformable_detr").train()
        if again:
            recompute(model)
        sizes: dict[int, int] = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: sizes.setdefault(tensor.data_ptr(), tensor.nbytes) and tensor, lambda kept: kept
        ):
            model.forward_features(*inputs(model))
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 2


def test_a_training_is_the_same_to_the_last_digit(tmp_path):
    recorders = []
    for again in (False, True):
        recorders.append(Recorder())
        options = {"train__recompute": again, "train__epochs": 1, "train__ema": 0.9}
        train(tiny(**options), tmp_path / str(again), [recorders[-1]])
    assert recorders[1].steps == recorders[0].steps
    assert load_metrics(tmp_path / "True") == load_metrics(tmp_path / "False")
    plain, economical = (load_file(tmp_path / str(again) / "model.safetensors") for again in (False, True))
    assert all(torch.equal(economical[name], tensor) for name, tensor in plain.items())
