"""Randomly initialised models of the Hugging Face ``transformers`` library, converted, give the same results."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import ConditionalDetrConfig as TheirConditionalConfig
from transformers import (
    ConditionalDetrForObjectDetection,
    DabDetrForObjectDetection,
    DeformableDetrForObjectDetection,
    DetrForObjectDetection,
    ResNetConfig,
)
from transformers import DabDetrConfig as TheirDabConfig
from transformers import DeformableDetrConfig as TheirDeformableConfig
from transformers import DetrConfig as TheirDetrConfig

from dqdet.config import (
    ConditionalDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    LossConfig,
    QueriesConfig,
)
from dqdet.losses import SetLoss
from dqdet.models import FAMILIES
from dqdet.types import Target, pad_images
from dqdet.weights import PUBLISHED

CLASSES, QUERIES = 7, 12
SIZES = [(96, 150), (128, 100)]
CHANNELS = [40, 48, 64]
SHAPE = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
OURS = {"hidden": 64, "encoder_layers": 2, "decoder_layers": 3, "feedforward": 96, "dropout": 0.0}


def randomise(model: nn.Module) -> None:
    """Away from initial values that hide mistakes: zeros, ones and equal heads."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += 0.05 * noise


def their_config(kind, stages: list[str], **options):
    backbone = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[32, *CHANNELS], embedding_size=32, out_features=stages)
    return kind(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=QUERIES,
        num_labels=CLASSES,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        dropout=0.0,
        **SHAPE,
        **options,
    )


# With auxiliary losses their decoders of DETR and Conditional-DETR feed the normed output to the next layer, unlike the
# published ones. The focal loss has weight 1 in the total, the published one 2 (DAB-DETR: 1).


def detr():
    theirs = DetrForObjectDetection(their_config(TheirDetrConfig, ["stage4"], auxiliary_loss=False))
    loss = LossConfig(classification="cross_entropy", class_cost=1, class_weight=1)
    return theirs, "detr", DetrConfig(**OURS), loss


def conditional():
    theirs = ConditionalDetrForObjectDetection(their_config(TheirConditionalConfig, ["stage4"], auxiliary_loss=False))
    return theirs, "conditional_detr", ConditionalDetrConfig(**OURS), LossConfig(class_weight=1)


def dab(patterns: int, activation: str):
    variant = {"num_patterns": patterns, "activation_function": activation, "hidden_size": SHAPE["d_model"]}
    theirs = DabDetrForObjectDetection(their_config(TheirDabConfig, ["stage4"], auxiliary_loss=True, **variant))
    ours = DabDetrConfig(**OURS, patterns=patterns, activation=activation)
    return theirs, "dab_detr", ours, LossConfig(class_weight=1)


def deformable(refine: bool, two_stage: bool):
    variant = {"with_box_refine": refine, "two_stage": two_stage, "two_stage_num_proposals": QUERIES}
    config = their_config(TheirDeformableConfig, ["stage2", "stage3", "stage4"], auxiliary_loss=True, **variant)
    loss = LossConfig(class_cost=config.class_cost, class_weight=1)
    ours = DeformableDetrConfig(**OURS, refine=refine, two_stage=two_stage)
    theirs = DeformableDetrForObjectDetection(config)
    if refine:  # the library ties the heads of all layers; the published models do not
        theirs.class_embed = nn.ModuleList(copy.deepcopy(head) for head in theirs.class_embed)
        theirs.bbox_embed = nn.ModuleList(copy.deepcopy(head) for head in theirs.bbox_embed)
        theirs.model.decoder.bbox_embed = theirs.bbox_embed
    if two_stage:
        theirs.model.decoder.class_embed = theirs.class_embed
    return theirs, "deformable_detr", ours, loss


VARIANTS = {
    "detr": detr,
    "conditional_detr": conditional,
    "dab_detr": lambda: dab(0, "prelu"),
    "dab_detr_patterns": lambda: dab(3, "relu"),
    "deformable_detr": lambda: deformable(False, False),
    "deformable_detr_refine": lambda: deformable(True, False),
    "deformable_detr_two_stage": lambda: deformable(True, True),
}


@pytest.fixture(scope="module", params=list(VARIANTS))
def both(request):
    """Both models, their outputs and losses for one padded batch, with gradients computed."""
    torch.manual_seed(0)
    theirs, family, config, loss = VARIANTS[request.param]()
    randomise(theirs)
    theirs.eval()  # dropout is zero; their batch norms are not frozen
    state = PUBLISHED[family].from_huggingface(theirs.state_dict(), theirs.config.to_dict())
    channels = CHANNELS[-len(FAMILIES[family].strides) :]
    ours = FAMILIES[family](config, QueriesConfig(kind="static", count=QUERIES), CLASSES, channels)
    ours.load_state_dict({k: v for k, v in state.items() if not k.startswith("backbone.")}, strict=True)

    images, padding = pad_images([torch.randn(3, *size) for size in SIZES])
    labels = [torch.tensor([1, 4, 4]), torch.tensor([6])]
    boxes = [torch.rand(len(label), 4) * 0.4 + 0.2 for label in labels]
    outputs = theirs(
        images,
        pixel_mask=(~padding).long(),
        labels=[{"class_labels": c, "boxes": b} for c, b in zip(labels, boxes, strict=True)],
    )
    outputs.loss.backward()

    with torch.no_grad():
        backbone = theirs.model.backbone.conv_encoder if family == "dab_detr" else theirs.model.backbone
        features = backbone.model(images).feature_maps
    predictions = ours.forward_features(list(features), padding)
    targets = [
        Target(c, b, torch.zeros(len(c), dtype=torch.bool), size, size)
        for c, b, size in zip(labels, boxes, SIZES, strict=True)
    ]
    # Their loss leaves out the encoder's proposals.
    learned = replace(predictions, proposals=None) if theirs.config.auxiliary_loss else predictions.final
    losses = SetLoss(loss)(learned, targets)
    losses.total.backward()
    return theirs, outputs, ours, predictions, losses


def test_final_outputs(both):
    _, outputs, _, predictions, _ = both
    torch.testing.assert_close(predictions.logits[-1], outputs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predictions.boxes[-1], outputs.pred_boxes, rtol=1e-4, atol=1e-4)


def test_outputs_of_earlier_layers(both):
    theirs, outputs, _, predictions, _ = both
    earlier = outputs.auxiliary_outputs or []
    assert len(earlier) == (len(predictions.logits) - 1 if theirs.config.auxiliary_loss else 0)
    for layer, output in enumerate(earlier):
        torch.testing.assert_close(predictions.logits[layer], output["logits"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(predictions.boxes[layer], output["pred_boxes"], rtol=1e-4, atol=1e-4)


def test_losses(both):
    theirs, outputs, _, predictions, losses = both
    last = len(predictions.logits) - 1 if theirs.config.auxiliary_loss else 0
    for key, value in losses.terms.items():
        _, layer, term = key.split("/")
        place = "" if int(layer) == last else f"_{layer}"
        name = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}[term] + place
        assert value.item() == pytest.approx(outputs.loss_dict[name].item(), rel=1e-4), key


def test_gradients(both):
    theirs, outputs, ours, _, losses = both
    torch.testing.assert_close(losses.total, outputs.loss, rtol=1e-4, atol=1e-4)
    gradients = {
        name: parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        for name, parameter in theirs.named_parameters(remove_duplicate=False)
    }
    gradients = {name: gradient for name, gradient in gradients.items() if not name.startswith("model.backbone")}
    published = PUBLISHED[theirs.config.model_type.replace("-", "_")]
    expected = published.from_huggingface(gradients, theirs.config.to_dict())
    for name, parameter in ours.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        scale = expected[name].abs().max().clamp(min=1e-3)
        torch.testing.assert_close(
            gradient / scale, expected[name] / scale, rtol=1e-3, atol=2e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
