"""Published presets at a size that a small machine trains in minutes, on generated scenes."""

from __future__ import annotations

from typing import Any

from dqdet.studies.request import Subject

BATCH = 8
STEPS = 200

BACKBONE: dict[str, Any] = {"name": "test_resnet", "pretrained": False, "freeze": False}
# Of 128 pixels it makes 64 cells, which are proposals.
PLAIN: dict[str, Any] = {
    "name": "test_vit",
    "pretrained": False,
    "positions": 8,
    "windows": 2,
    "global_blocks": [1, 3],
    "taps": [1, 2, 4],
}


def detector(preset: str, **overrides: Any) -> Subject:
    """The preset of a detector; its loss and its variant stay.

    Args:
        preset: its name.
        overrides: options with ``__`` for the dot.
    """
    model: dict[str, Any] = {
        "backbone": BACKBONE,
        "hidden": 64,
        "heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "feedforward": 256,
        "dropout": 0.0,
    }
    if "deformable" in preset or "dino" in preset:
        model["levels"] = 3
    if plain := preset.startswith(("lw_detr", "rf_detr")):
        del model["encoder_layers"]
        model |= {"backbone": PLAIN, "cross_heads": 8}
    options: dict[str, Any] = {
        "model": model,
        "queries": {"count": 30, "hidden": 128},
        "data": {
            "kind": "scenes",
            "resize": [128],
            "max_size": 128,
            "val_resize": 128,
            "crop": False,
            "workers": 0,
            "scenes": {"train_images": STEPS * BATCH},
        },
        "train": {
            "epochs": 1,
            "batch": BATCH,
            "drop": [0.8],
            "warmup": 20,
            "lr": 1e-3,
            "backbone_lr": 1e-3,
            "offsets_lr": 1e-4,
        },
    }
    if plain:
        options["queries"] |= {"ratio": 4}
        options["train"] |= {"decoder_lr": None, "layer_decay": None, "ema": None, "precision": "32"}
    return _with(Subject(preset, options, preset), overrides)


def mask2former(task: str, **overrides: Any) -> Subject:
    """Mask2Former of images, for panoptic maps or instances."""
    options = {
        "data": {"task": task, "workers": 0, "scenes": {"train_images": 300 * BATCH}},
        "train": {"epochs": 1, "batch": BATCH, "drop": [0.85]},
    }
    return _with(Subject("scenes_tiny_panoptic", options, f"mask2former_r50_coco_{task}"), overrides)


def _with(subject: Subject, overrides: dict[str, Any]) -> Subject:
    options = subject.merged({name.replace("__", "."): value for name, value in overrides.items()})
    return Subject(subject.preset, options, subject.published)


DEFORMABLE_DETR = "deformable_detr_r50_refine"  # the paper's Deformable-DETR of 46.2 AP refines boxes
DETECTORS = {
    "DETR": "detr_r50",
    "Conditional-DETR": "conditional_detr_r50",
    "SMCA-DETR": "smca_detr_r50",
    "DAB-DETR": "dab_detr_r50",
    "Deformable-DETR": DEFORMABLE_DETR,
    "DAB-Deformable-DETR": "dab_deformable_detr_r50",
    "DINO": "dino_r50",
    "LW-DETR": "lw_detr_small",
    "RF-DETR": "rf_detr_nano",
}
