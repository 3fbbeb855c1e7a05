"""Backbones: maps at the right strides, frozen norms that compute the same, weights and errors."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import DropPath, freeze_batch_norm_2d
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from dqdet.config import BackboneConfig, DataConfig
from dqdet.errors import DqdetError
from dqdet.nn.backbone import SHORT_NAMES, Backbone, other_colours
from dqdet.nn.frozen_norms import freeze_norms
from dqdet.weights.backbones import read_backbone

STRIDES = (8, 16, 32)


def backbone(name: str, freeze: bool = False) -> Backbone:
    torch.manual_seed(0)
    return Backbone(BackboneConfig(name=name, pretrained=False, freeze=freeze), STRIDES)


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        *(("resnet18", 1), ("test_resnet", 1), ("swin_tiny_patch4_window7_224", 4)),
        *(("convnext_atto", 32), ("edgenext_xx_small", 32), ("hrnet_w18_small", 32), ("dla46_c", 32)),
    ],
)
def test_maps_of_any_image_size(name, multiple):
    """Some round down, some cannot add up maps of different roundings."""
    model = backbone(name).eval()
    assert model.multiple == multiple
    with torch.inference_mode():
        maps = model(torch.randn(2, 3, 101, 150))
    assert [tuple(x.shape) for x in maps] == [
        (2, channels, -(-101 // stride), -(-150 // stride))
        for channels, stride in zip(model.channels, STRIDES, strict=True)
    ]


def test_a_dilated_last_stage_is_torchvisions():
    torch.manual_seed(0)
    expected = torchvision.models.resnet50(replace_stride_with_dilation=[False, False, True]).eval()
    model = Backbone(BackboneConfig(name="resnet50", pretrained=False, freeze=False, dilation=True), (32,)).eval()
    model.body.load_state_dict({k: v for k, v in expected.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 101, 70)
    with torch.inference_mode():
        (found,) = model(images)
        wanted = IntermediateLayerGetter(expected, {"layer4": "map"})(images)["map"]
    assert found.shape == (1, 2048, 7, 5)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_what_has_no_stage_to_dilate_says_so():
    config = BackboneConfig(name="swin_t", pretrained=False, dilation=True)
    with pytest.raises(DqdetError, match=r"model\.backbone\.dilation=true: .*swin.* has no stage to dilate"):
        Backbone(config, STRIDES)


def away_from_its_start(model: nn.Module) -> torch.Generator:
    """Initial norms and biases are ones that hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif isinstance(module, nn.Conv2d) and module.bias is not None:
            module.bias.data.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return generator


@pytest.mark.parametrize("name", ["resnet18", "test_resnet"])
def test_frozen_norms_equal_batch_norms_in_value_and_gradient(name):
    body = backbone(name).body.eval()
    generator = away_from_its_start(body)
    frozen = copy.deepcopy(body)
    freeze_norms(frozen)
    freeze_batch_norm_2d(frozen)
    images = torch.randn(1, 3, 64, 96, generator=generator)
    for ours, theirs in zip(frozen.train()(images), body(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    for model in (body, frozen):
        model(images)[-1].mean().backward()
    for (name, ours), theirs in zip(
        ((n, p) for n, p in frozen.named_parameters() if "conv" in n and p.dim() == 4),
        (p for n, p in body.named_parameters() if "conv" in n and p.dim() == 4),
        strict=True,
    ):
        scale = theirs.grad.abs().max()
        assert torch.allclose(ours.grad / scale, theirs.grad / scale, atol=1e-3), name


@pytest.mark.parametrize(
    "name",
    [
        *("efficientnet_b0", "mobilenetv3_small_050", "regnetx_002", "resnetv2_50", "densenet121", "ghostnet_100"),
        *("cspresnet50", "repvgg_a0", "hrnet_w18_small"),
        *("starnet_s1", "repvit_m0_9", "rexnet_100", "resnest14d"),
    ],
)
def test_frozen_norms_change_no_family(name):
    """Some norms of timm have the activation inside, some convolutions a bias, and some norms read a sum."""
    model = backbone(name).eval()
    generator = away_from_its_start(model)
    images = torch.randn(1, 3, 64, 96, generator=generator)
    with torch.no_grad():
        expected = model(images)
        freeze_norms(model.body)
        freeze_batch_norm_2d(model.body)
        for found, wanted in zip(model(images), expected, strict=True):
            scale = wanted.abs().max()
            torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=1e-4)


class ReadTwice(nn.Module):
    """Norms of a sum, of an output that is added to the norm's, and of a convolution alone."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv3, self.bn3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x) + x)
        y = self.conv2(x)
        return self.bn3(self.conv3(self.bn2(y) + y))


def test_norms_become_part_of_convolutions_that_nothing_else_reads():
    model = ReadTwice().eval()
    images = torch.randn(1, 3, 8, 8, generator=away_from_its_start(model))
    with torch.no_grad():
        expected = model(images)
        freeze_norms(model)
        torch.testing.assert_close(model(images), expected)
    assert [type(norm) for norm in (model.bn1, model.bn2, model.bn3)] == [nn.BatchNorm2d, nn.BatchNorm2d, nn.Identity]


def test_no_parameter_is_left_without_effect():
    """Several processes that train together end where there is one."""
    model = backbone("rexnet_100", freeze=True)
    sum(x.sum() for x in model(torch.randn(2, 3, 64, 64))).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


def test_stochastic_depth_acts_in_training_only_and_more_in_later_blocks():
    def build(rate: float | None) -> Backbone:
        torch.manual_seed(0)
        return Backbone(BackboneConfig(name="test_convnext", pretrained=False, drop_path=rate), STRIDES)

    def differs(model: Backbone) -> bool:
        return not torch.equal(model(images)[-1], model(images)[-1])

    images = torch.randn(4, 3, 64, 64)
    plain, dropping = build(None), build(0.4)
    dropping.load_state_dict(plain.state_dict())
    assert not differs(plain.train())
    assert differs(dropping.train())
    for found, expected in zip(dropping.eval()(images), plain.eval()(images), strict=True):
        assert torch.equal(found, expected)
    rates = [module.drop_prob for module in dropping.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx(torch.linspace(0, 0.4, 9)[1:].tolist())  # of nine blocks, linear from 0 to the last


def test_stem_and_first_stage_are_frozen():
    trained = {
        name.split(".")[0] for name, p in backbone("resnet18", freeze=True).body.named_parameters() if p.requires_grad
    }
    assert trained == {"layer2", "layer3", "layer4"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone("test_resnet", freeze=True).modules())


def from_file(config: BackboneConfig) -> Backbone:
    return Backbone(config, STRIDES, read_backbone(Path(config.weights), config.name))


def test_local_weights(tmp_path):
    source = timm.create_model("resnet18", pretrained=False)
    save_file(source.state_dict(), tmp_path / "resnet18.safetensors")
    config = BackboneConfig(name="resnet18", weights=str(tmp_path / "resnet18.safetensors"), freeze=False)
    assert torch.equal(from_file(config).body.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_local_weights_of_detectron2(tmp_path):
    """A ResNet of torchvision and a Swin transformer as the official scripts convert them."""
    source = timm.create_model("resnet18", pretrained=False)
    arrays = {}
    for name, tensor in source.state_dict().items():
        name = name if name.startswith("layer") else f"stem.{name}"
        name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
        name = re.sub(r"bn(\d)", r"conv\1.norm", name)
        name = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        arrays[name] = tensor.numpy()
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    config = BackboneConfig(name="resnet18", weights=str(tmp_path / "R-18.pkl"), freeze=False)
    found = from_file(config).body.state_dict()
    for name, tensor in source.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(found[name], tensor), name

    source = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False)
    tensors = {  # the step down ends a stage in the original names, and begins the next one in timm's
        re.sub(r"(\d)(?=\.downsample)", lambda stage: str(int(stage[0]) - 1), name): tensor
        for name, tensor in source.state_dict().items()
    }
    (tmp_path / "swin.pkl").write_bytes(pickle.dumps({"model": tensors, "__author__": "third_party"}))
    config = BackboneConfig(name="swin_t", weights=str(tmp_path / "swin.pkl"))
    found = from_file(config).body.state_dict()
    for name, tensor in source.state_dict().items():
        if name.startswith(("layers.", "patch_embed.")):
            assert torch.equal(found[name.replace("layers.", "layers_")], tensor), name


def test_weights_of_another_backbone_are_refused(tmp_path):
    (tmp_path / "caffe2.pkl").write_bytes(pickle.dumps({"model": {"conv1_w": np.zeros((64, 3, 7, 7))}}))
    with pytest.raises(DqdetError, match=r"caffe2\.pkl: not weights of resnet18 \(has no conv1\.weight, .* more\)"):
        from_file(BackboneConfig(name="resnet18", weights=str(tmp_path / "caffe2.pkl")))


def test_weights_of_a_shallower_backbone_are_refused():
    weights = timm.create_model("resnet18", pretrained=False).state_dict()
    with pytest.raises(DqdetError, match=r"not weights of resnet34 \(has no layer1\.2\..* and \d+ more\)"):
        Backbone(BackboneConfig(name="resnet34", weights="file", pretrained=False), STRIDES, weights)


def test_weights_may_lack_what_counts_batches_or_be_of_half_precision():
    weights = timm.create_model("test_resnet", pretrained=False).state_dict()
    halved = {name: x.half() for name, x in weights.items() if "num_batches" not in name}
    model = Backbone(BackboneConfig(name="test_resnet", freeze=False), STRIDES, halved)
    assert all(torch.equal(x, halved[name].float()) for name, x in model.body.named_parameters())


@pytest.mark.parametrize("name", ["vgg11_bn", "hrnet_w18_small", "densenet121"])
def test_what_has_no_stochastic_depth_says_so(name):
    with pytest.raises(DqdetError, match=rf"model\.backbone\.drop_path=0\.1: {name} has no stochastic depth"):
        Backbone(BackboneConfig(name=name, pretrained=False, drop_path=0.1), STRIDES)


def test_weights_for_images_of_other_colours_are_said():
    imagenet = DataConfig()
    half = BackboneConfig(name="tf_efficientnetv2_s.in21k_ft_in1k")
    (line,) = other_colours(half, imagenet.mean, imagenet.std)
    assert line.endswith("set data.mean=[0.5, 0.5, 0.5] and data.std=[0.5, 0.5, 0.5]")
    assert list(other_colours(half, [0.5] * 3, [0.5] * 3)) == []
    assert list(other_colours(half.model_copy(update={"pretrained": False}), imagenet.mean, imagenet.std)) == []
    for name in (*SHORT_NAMES, "cae_small"):
        assert list(other_colours(BackboneConfig(name=name), imagenet.mean, imagenet.std)) == []


def test_errors_name_the_option_and_the_way_out(tmp_path, monkeypatch):
    with pytest.raises(
        DqdetError, match=r"model\.backbone\.name=resnet5O: no such backbone in timm; nearest: resnet50"
    ):
        backbone("resnet5O")
    with pytest.raises(DqdetError, match=r"model\.backbone\.weights=nowhere\.pth: no such file"):
        from_file(BackboneConfig(weights="nowhere.pth"))
    with pytest.raises(DqdetError, match=r"has maps at strides .*, not at \[64\]"):
        Backbone(BackboneConfig(name="resnet18", pretrained=False), (64,))
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    with pytest.raises(DqdetError, match=r"broken\.safetensors: not weights of resnet18"):
        from_file(BackboneConfig(name="resnet18", weights=str(tmp_path / "broken.safetensors")))

    def offline(*arguments, **options):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DqdetError, match=r"could not be fetched .* model\.backbone\.pretrained=false"):
        Backbone(BackboneConfig(name="resnet18"), STRIDES)
