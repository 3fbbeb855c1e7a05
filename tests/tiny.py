"""A model and a data set so small that a training takes a second."""

from pathlib import Path
from typing import Any

from dqdet.config import Config, resolve

TINY: dict[str, Any] = {
    "model.backbone.name": "test_resnet",
    "model.hidden": 32,
    "model.heads": 2,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.feedforward": 32,
    "model.dropout": 0.1,
    "model.refine": False,
    "queries.count": 5,
    "queries.ratio": 2,
    "queries.hidden": 8,
    "data.scenes.size": 64,
    "data.scenes.train_images": 12,
    "data.scenes.val_images": 4,
    "data.resize": [64],
    "data.val_resize": 64,
    "data.max_size": 64,
    "data.workers": 0,
    "train.batch": 4,
    "train.epochs": 3,
    "train.drop": [2.0],
    "train.drop_steps": [],
    "train.warmup": 0,
    "train.lr": 5e-4,
    "train.backbone_lr": 5e-4,
    "train.offsets_lr": 5e-5,
}

PRESETS = [
    "detr_r50",
    "conditional_detr_r50",
    "smca_detr_r50",
    "dab_detr_r50",
    "deformable_detr_r50",
    "deformable_detr_r50_refine",
    "dab_deformable_detr_r50",
    "dino_r50",
]


def tiny(**overrides: Any) -> Config:
    """Three epochs of three steps; options are written with ``__`` for the dot."""
    return resolve("scenes_tiny", TINY | {name.replace("__", "."): value for name, value in overrides.items()})


def tiny_family(preset: str, **overrides: Any) -> Config:
    """The same sizes for the preset of any family, without pretrained weights."""
    options = {name: value for name, value in TINY.items() if name != "model.refine"}
    overrides = {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(preset, options | {"model.backbone.pretrained": False} | overrides)


def tiny_scenes(preset: str | None = None, **overrides: Any) -> Config:
    """`tiny`, or a preset of any family at the same sizes, on generated scenes."""
    if preset is None:
        return tiny(**overrides)
    return tiny_family(preset, data__kind="scenes", data__crop=False, **overrides)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
