"""LW-DETR and RF-DETR equal to those of ``transformers`` on small random models, in inference and in training."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LwDetrConfig as TheirLwConfig
from transformers import (
    LwDetrForObjectDetection,
    LwDetrViTConfig,
    RfDetrForInstanceSegmentation,
    RfDetrForObjectDetection,
)
from transformers import RfDetrConfig as TheirRfConfig
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from dqdet.config import Config, InstanceLossConfig, LossConfig, override
from dqdet.losses import InstanceSetLoss, SetLoss
from dqdet.losses.masks import RandomPoints
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.types import Predictions, Target
from dqdet.weights import PUBLISHED

CLASSES, QUERIES, GROUPS = 5, 7, 13
SIZES = {
    "num_queries": QUERIES,
    "group_detr": GROUPS,
    "num_labels": CLASSES,
    "d_model": 64,
    "decoder_layers": 3,
    "decoder_ffn_dim": 48,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 4,
    "dropout": 0.0,
}
LOSS = LossConfig(classification="iou_aware", class_weight=1, beta=None)


def lw_detr(scales: list[float], width: int) -> nn.Module:
    backbone = LwDetrViTConfig(
        hidden_size=width,
        num_hidden_layers=3,
        num_attention_heads=12,
        window_block_indices=[0, 2],
        out_indices=[2, 3],
        image_size=256,
        pretrain_image_size=96,
    )
    return LwDetrForObjectDetection(
        TheirLwConfig(backbone_config=backbone, projector_scale_factors=scales, decoder_n_points=2, **SIZES)
    )


def dinov2(windows: int, patch: int) -> RfDetrDinov2Config:
    return RfDetrDinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        out_indices=[1, 3],
        image_size=8 * patch,
        patch_size=patch,
        num_windows=windows,
    )


def rf_detr(windows: int, patch: int) -> nn.Module:
    return RfDetrForObjectDetection(TheirRfConfig(backbone_config=dinov2(windows, patch), layer_norm_eps=1e-6, **SIZES))


# Their windows of DINOv2 mix up images that are not square.
VARIANTS = {
    "lw_detr": (lambda: lw_detr([1.0], 192), (128, 192)),
    "lw_detr_two_levels": (lambda: lw_detr([2.0, 0.5], 192), (128, 192)),
    "lw_detr_wide": (lambda: lw_detr([2.0, 0.5], 768), (128, 64)),
    "rf_detr": (lambda: rf_detr(2, 16), (128, 128)),
    "rf_detr_other_size": (lambda: rf_detr(2, 14), (140, 140)),
    "rf_detr_one_window": (lambda: rf_detr(1, 12), (132, 132)),
}


def randomise(model: nn.Module) -> None:
    """Away from initial values that hide mistakes: zeros, ones and equal heads."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.1 * torch.rand(buffer.shape, generator=generator)


def translated(theirs: nn.Module) -> tuple[dict[str, Tensor], Config]:
    """Our parameters and configuration of one of their models."""
    options = theirs.config.to_dict()
    published = PUBLISHED[options["model_type"]]
    state = published.from_huggingface(theirs.state_dict(), options)
    config = published.describe(state, names=[f"class {label}" for label in range(CLASSES)])
    # What a preset adds for training is not theirs: weights to start from, and blocks that are left out by chance.
    recipe = {"model.backbone.pretrained": False, "model.backbone.drop_path": 0.0}
    return state, override(config, published.huggingface.options(options) | recipe)


@dataclass
class Pair:
    theirs: nn.Module
    ours: Detector
    images: Tensor
    padding: Tensor

    def labels(self) -> tuple[list[dict[str, Tensor]], list[Target]]:
        generator = torch.Generator().manual_seed(1)
        labels = [torch.tensor([1, 4, 4]), torch.tensor([3])]
        boxes = [torch.rand(len(label), 4, generator=generator) * 0.4 + 0.2 for label in labels]
        theirs = [{"class_labels": c, "boxes": b} for c, b in zip(labels, boxes, strict=True)]
        size = self.images.shape[2:]
        return theirs, [Target(c, b, size, size) for c, b in zip(labels, boxes, strict=True)]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    torch.manual_seed(1)  # no activation lies so near to zero that rounding decides its gradient
    make, (height, width) = VARIANTS[request.param]
    theirs = make()
    randomise(theirs)
    state, config = translated(theirs)
    ours = create_model(config)
    ours.load_state_dict(state, strict=True)
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[0, height - 20 :] = True
    padding[1, :, width - 30 :] = True
    return Pair(theirs, ours, torch.randn(2, 3, height, width), padding)


def assert_equal(predictions: Predictions, outputs) -> None:
    torch.testing.assert_close(predictions.logits[-1], outputs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions.boxes[-1], outputs.pred_boxes, rtol=1e-4, atol=1e-4)
    encoder = predictions.proposals
    torch.testing.assert_close(encoder.logits[0], outputs.enc_outputs_class, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.boxes[0], outputs.enc_outputs_coord_logits, rtol=1e-4, atol=1e-4)


def test_inference(pair):
    with torch.no_grad():
        outputs = pair.theirs.eval()(pair.images, pixel_mask=(~pair.padding).long())
        predictions = pair.ours.eval()(pair.images, pair.padding)
    assert predictions.groups == {"static": QUERIES}
    assert_equal(predictions, outputs)


def test_training(pair):
    """Outputs of all groups and layers, losses, and the gradient of every parameter, the backbone's too."""
    labels, targets = pair.labels()
    for model in (pair.theirs.train(), pair.ours.train()):
        model.zero_grad()
    outputs = pair.theirs(pair.images, pixel_mask=(~pair.padding).long(), labels=labels)
    predictions = pair.ours(pair.images, pair.padding)
    assert list(predictions.groups.values()) == [QUERIES] * GROUPS
    assert_equal(predictions, outputs)
    for layer, earlier in enumerate(outputs.auxiliary_outputs):
        torch.testing.assert_close(predictions.logits[layer], earlier["logits"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predictions.boxes[layer], earlier["pred_boxes"], rtol=1e-4, atol=1e-4)

    losses = SetLoss(LOSS)(predictions, targets)
    torch.testing.assert_close(losses.total, outputs.loss, rtol=1e-4, atol=1e-4)
    outputs.loss.backward()
    losses.total.backward()
    options = pair.theirs.config.to_dict()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in pair.theirs.named_parameters()
    }
    expected = PUBLISHED[options["model_type"]].from_huggingface(gradients, options)
    for name, parameter in pair.ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = expected[name].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            gradient / scale, expected[name] / scale, rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )


# Masks


class SamePoints(RandomPoints):
    """The first ones of the same sequence for every mask, as many as theirs has."""

    def __init__(self, of_matching: int):
        self.of_matching = of_matching
        self.sequence = torch.rand(10_000, 2, generator=torch.Generator().manual_seed(0))

    def of_images(self, layer, group, images, count, device):
        return self.sequence[: self.of_matching].expand(images, -1, -1)

    def of_pairs(self, pairs, frames, count):
        return self.sequence[:count].expand(len(pairs.query), frames, -1, -1)


class WithoutChance:
    """PyTorch, where random points are the first ones of a sequence."""

    def __init__(self, sequence: Tensor):
        self.sequence = sequence

    def __getattr__(self, name):
        return getattr(torch, name)

    def rand(self, masks, count, two, device=None):
        return self.sequence[:count].expand(masks, -1, -1)


@pytest.fixture
def segmentation(monkeypatch):
    """Both models with masks, and points that are no longer random.

    Theirs leaves out the projection of the features for the masks of proposals, which the ``rfdetr`` package has, and
    so has ours: it is put in. The number of points that it matches at depends on the number of queries, by mistake.
    """
    torch.manual_seed(1)
    backbone = dinov2(2, 12)
    theirs = RfDetrForInstanceSegmentation(
        TheirRfConfig(backbone_config=backbone, layer_norm_eps=1e-6, intermediate_size=256, **SIZES)
    )
    randomise(theirs)
    original = theirs.segmentation_head

    def projected(spatial_features, query_features, image_size, skip_blocks=False):
        if not skip_blocks:
            return original(spatial_features, query_features, image_size)
        size = [side // 4 for side in image_size]
        features = theirs.spatial_features_proj(F.interpolate(spatial_features, size=size, mode="bilinear"))
        return theirs.get_mask_logits(query_features, features)

    monkeypatch.setattr(theirs, "segmentation_head", projected)
    points = SamePoints(of_matching=2 * GROUPS * QUERIES * 4 // 16)
    monkeypatch.setattr("transformers.loss.loss_rf_detr.torch", WithoutChance(points.sequence))
    state, config = translated(theirs)
    ours = create_model(config)
    ours.load_state_dict(state, strict=True)
    return Pair(theirs, ours, torch.randn(2, 3, 96, 96), torch.zeros(2, 96, 96, dtype=torch.bool)), points


def test_masks_in_inference(segmentation):
    pair, _ = segmentation
    with torch.no_grad():
        outputs = pair.theirs.eval()(pair.images)
        predictions = pair.ours.eval()(pair.images, pair.padding)
    final = predictions.final
    torch.testing.assert_close(final.logits[0], outputs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.boxes[0], outputs.pred_boxes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.masks.all()[0], outputs.pred_masks, rtol=1e-4, atol=1e-3)
    of_proposals = predictions.proposals.masks.all()[0]
    torch.testing.assert_close(of_proposals, outputs.enc_outputs_mask_logits, rtol=1e-4, atol=1e-3)


def test_masks_in_training(segmentation):
    pair, points = segmentation
    labels, targets = pair.labels()
    for theirs, ours in zip(labels, targets, strict=True):
        ours.masks = torch.zeros(len(ours.labels), 96, 96, dtype=torch.bool)
        for number in range(len(ours.labels)):
            ours.masks[number, 10 + 9 * number : 50 + 9 * number, 20:70] = True
        theirs["masks"] = ours.masks
    outputs = pair.theirs.train()(pair.images, labels=labels)
    predictions = pair.ours.train()(pair.images, pair.padding)
    losses = InstanceSetLoss(InstanceLossConfig(**LOSS.model_dump(exclude={"kind"})), points)(predictions, targets)
    torch.testing.assert_close(losses.total, outputs.loss, rtol=1e-4, atol=1e-4)
    outputs.loss.backward()
    losses.total.backward()
    options = pair.theirs.config.to_dict()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in pair.theirs.named_parameters()
    }
    expected = PUBLISHED["rf_detr"].from_huggingface(gradients, options)
    for name, parameter in pair.ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = expected[name].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            gradient / scale, expected[name] / scale, rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
