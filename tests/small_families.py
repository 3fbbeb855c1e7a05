"""A small model of every family, and the feature maps and objects that it is tested on."""

from __future__ import annotations

import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor

from dqdet.config import (
    ConditionalDetrConfig,
    DabDeformableDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    DinoConfig,
    LwDetrConfig,
    Mask2FormerConfig,
    QueriesConfig,
    RfDetrConfig,
    RfDetrSegConfig,
    SeqFormerConfig,
    SmcaDetrConfig,
    TransformerConfig,
    VideoMask2FormerConfig,
    WindowedVitConfig,
)
from dqdet.models import FAMILIES
from dqdet.models.detector import Detector
from dqdet.models.seqformer import SeqFormer
from dqdet.models.video_mask2former import VideoMask2Former
from dqdet.types import Predictions, Target

SIZES = {"hidden": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 3, "feedforward": 48, "dropout": 0.0}
# One layer more than there are levels, which the layers read in turn.
MASK2FORMER_SIZES = SIZES | {"decoder_layers": 4, "encoder_feedforward": 24}
# The encoder is the backbone.
VIT_SIZES = {name: size for name, size in SIZES.items() if name != "encoder_layers"} | {"cross_heads": 8}
VIT_SIZES["backbone"] = WindowedVitConfig(name="test_vit", patch=16, positions=4, taps=[1, 2], global_blocks=[1])
CONFIGS: dict[str, TransformerConfig] = {
    "detr": DetrConfig(**SIZES),
    "conditional_detr": ConditionalDetrConfig(**SIZES),
    "smca_detr": SmcaDetrConfig(**SIZES),
    "dab_detr": DabDetrConfig(**SIZES),
    "dab_detr_patterns": DabDetrConfig(**SIZES, patterns=3, activation="relu"),
    "deformable_detr": DeformableDetrConfig(**SIZES),
    "deformable_detr_refine": DeformableDetrConfig(**SIZES, refine=True),
    "dab_deformable_detr": DabDeformableDetrConfig(**SIZES),
    "dino": DinoConfig(**SIZES),
    "mask2former": Mask2FormerConfig(**MASK2FORMER_SIZES),
    "video_mask2former": VideoMask2FormerConfig(**MASK2FORMER_SIZES),
    "seqformer": SeqFormerConfig(**SIZES),
    "lw_detr": LwDetrConfig(**VIT_SIZES, scales=[2.0, 0.5]),
    "rf_detr": RfDetrConfig(**VIT_SIZES),
    "rf_detr_seg": RfDetrSegConfig(**VIT_SIZES),
}
CLASSES, COUNT, RATIO, FRAMES = 5, 6, 4, 4
CHANNELS = {4: 8, 8: 12, 16: 20, 32: 24}  # stride -> channels
IMAGES = [(96, 128), (70, 120), (96, 50)]  # height, width
CLIPS = [(64, 96), (50, 70)]


def build(name: str, changes: dict | None = None, family: type[Detector] | None = None, **queries) -> Detector:
    """A model whose parameters are away from initial values that hide mistakes: zeros, and heads that are all equal.

    Args:
        name: one of ``CONFIGS``.
        changes: of that configuration.
        family: another one than the configuration's.
        queries: options of the queries other than the small modulated ones.
    """
    torch.manual_seed(0)
    config = CONFIGS[name].model_copy(update=changes)
    family = family or FAMILIES[config.family]
    options = {"kind": "modulated", "count": COUNT, "ratio": RATIO, "hidden": 16} | queries
    model = family(config, QueriesConfig(**options), CLASSES, [CHANNELS[stride] for stride in family.reads(config)])
    freeze_batch_norm_2d(model)  # those of LW-DETR's projector, which would tell training from inference
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def reads_clips(model: Detector) -> bool:
    return isinstance(model, VideoMask2Former | SeqFormer)


def inputs(model: Detector, seed: int = 0, frames: int = FRAMES) -> tuple[list[Tensor], Tensor]:
    """Feature maps ``[B, C, h, w]`` of ``IMAGES`` or ``[B, T, C, h, w]`` of ``CLIPS``, and their padding."""
    generator = torch.Generator().manual_seed(seed)
    sizes, clip = (CLIPS, (frames,)) if reads_clips(model) else (IMAGES, ())
    height, width = (max(side) for side in zip(*sizes, strict=True))
    padding = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for mask, (h, w) in zip(padding, sizes, strict=True):
        mask[:h, :w] = False
    shapes = [(len(sizes), *clip, CHANNELS[s], height // s, width // s) for s in model.strides]
    return [torch.randn(shape, generator=generator) for shape in shapes], padding


def make_targets(sizes: list[tuple[int, int]], counts: tuple[int, ...], frames: int | None = None) -> list[Target]:
    """So many rectangles in each image; in clips they move to the right, and the first enters in the second frame."""
    generator = torch.Generator().manual_seed(2)
    targets = []
    for (height, width), count in zip(sizes, counts, strict=True):
        masks = torch.zeros(count, frames or 1, height, width, dtype=torch.bool)
        boxes = torch.zeros(count, frames or 1, 4)
        for number in range(count):
            top, left = (int(torch.randint(side // 3, (), generator=generator)) for side in (height, width))
            for frame in range(frames is not None and number == 0, frames or 1):
                x = left + 3 * frame
                masks[number, frame, top : top + 20, x : x + 24] = True
                box = torch.tensor([x + 12, top + 10, 24, 20])
                boxes[number, frame] = box / torch.tensor([width, height, width, height])
        targets.append(
            Target(
                labels=torch.randint(CLASSES, (count,), generator=generator),
                boxes=boxes if frames else boxes[:, 0],
                size=(height, width),
                original_size=(height, width),
                masks=masks if frames else masks[:, 0],
            )
        )
    return targets


def outputs(predictions: Predictions) -> dict[str, Tensor]:
    """Of all layers, by name: ``[L, B, Q, ...]``."""
    masks = None if predictions.masks is None else predictions.masks.all()
    found = {"logits": predictions.logits, "boxes": predictions.boxes, "masks": masks}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-5) -> None:
    """To ``atol``, and masks to what single precision leaves of their largest logit: SeqFormer's exceed 1000."""
    assert actual.keys() == expected.keys()
    for name, wanted in expected.items():
        allowed = 2e-6 * wanted.abs().max().item() if name == "masks" else atol
        torch.testing.assert_close(
            actual[name], wanted, rtol=1e-4, atol=allowed, msg=lambda text, name=name: f"{name}: {text}"
        )
