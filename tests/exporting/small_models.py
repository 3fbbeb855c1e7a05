"""A small model of every family and task, with its backbone, to be exported."""

from __future__ import annotations

import torch

from dqdet.config import Config, resolve
from dqdet.models import create_model
from dqdet.models.detector import Detector
from test_vit_families import SMALL
from tiny import tiny_family

CLASSES = ["cat", "dog", "bird"]
BOXES = {
    "detr": "detr_r50",
    "conditional_detr": "conditional_detr_r50",
    "smca_detr": "smca_detr_r50",
    "dab_detr": "dab_detr_r50",
    "deformable_detr": "deformable_detr_r50",
    "deformable_detr_refine": "deformable_detr_r50_refine",
    "dab_deformable_detr": "dab_deformable_detr_r50",
    "dino": "dino_r50",
}
MASKS = {
    "mask2former": "mask2former_r50_coco_instance",
    "mask2former_panoptic": "mask2former_r50_coco_panoptic",
    "video_mask2former": "video_mask2former_r50",
    "seqformer": "seqformer_r50",
}
VIT = {"lw_detr": "lw_detr_small", "rf_detr": "rf_detr_nano", "rf_detr_seg": "rf_detr_seg_nano"}
FAMILIES = [*BOXES, *MASKS, *VIT]
EVERYTHING = 1000  # more objects than any of these models can report


def small_config(name: str, kind: str) -> Config:
    options = {"queries.kind": kind, "queries.ratio": 2, "inference.limit": EVERYTHING, "classes": CLASSES}
    if name in VIT:
        return resolve(VIT[name], SMALL | options | {"data.val_resize": 96})
    preset = {**BOXES, **MASKS}[name]
    config = tiny_family(preset, **{option.replace(".", "__"): value for option, value in options.items()})
    if name in MASKS:  # group norms of 32 groups, and masks at an eighth of the width in SeqFormer
        config.model.hidden = 64
    return config


def small_model(config: Config) -> Detector:
    """Away from initial values that hide mistakes, such as offsets of zero."""
    torch.manual_seed(0)
    model = create_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def some_images(batch: int, height: int, width: int, frames: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, of which all images but the first have padding below and on the right (clips have none)."""
    random = torch.Generator().manual_seed(height)
    clip = () if frames is None else (frames,)
    images = torch.randint(0, 256, (batch, *clip, 3, height, width), dtype=torch.uint8, generator=random)
    step = 0 if frames else 1
    return images, torch.tensor([[height - 9 * i * step, width - 12 * i * step] for i in range(batch)])
