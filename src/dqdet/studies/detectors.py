"""Static against modulated queries in all six detectors, on generated scenes: python -m dqdet.studies.detectors."""

from __future__ import annotations

from typing import Any

from dqdet.studies.comparison import Experiment, study

# Each family as its preset has it, at the size of `scenes_tiny`.
PRESETS = {
    "DETR": "detr_r50",
    "Conditional-DETR": "conditional_detr_r50",
    "SMCA-DETR": "smca_detr_r50",
    "DAB-DETR": "dab_detr_r50",
    "Deformable-DETR": "deformable_detr_r50_refine",
    "DAB-Deformable-DETR": "dab_deformable_detr_r50",
}
BATCH = 8
ABOUT = """\
Generated scenes of 128 pixels, 200 held-out images, {steps} steps of 8 images, {seeds} seeds: mean
and standard deviation over the seeds. The models are tiny (hidden size 64, 1 + 2 layers, 30 queries,
ratio 4) and far from converged; the single-scale ones see a map of 4 x 4 cells. These numbers show that
every family trains with both kinds of queries under one budget. They do not predict results on real data."""


def options(preset: str, steps: int) -> dict[str, Any]:
    """Overrides that make a published preset small; its loss and its variant stay."""
    model: dict[str, Any] = {
        "backbone": {"name": "test_resnet", "pretrained": False, "freeze": False},
        "hidden": 64,
        "heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "feedforward": 256,
        "dropout": 0.0,
    }
    if "deformable" in preset:
        model["levels"] = 3
    return {
        "model": model,
        "queries": {"count": 30, "hidden": 128},
        "data": {
            "kind": "scenes",
            "resize": [128],
            "max_size": 128,
            "val_resize": 128,
            "crop": False,
            "workers": 0,
            "scenes": {"train_images": steps * BATCH},
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


def experiments(steps: int) -> dict[str, Experiment]:
    return {family: Experiment(preset, options(preset, steps), ("AP", "AP50")) for family, preset in PRESETS.items()}


if __name__ == "__main__":
    study(
        "study-detectors",
        "Static against modulated queries, six detectors",
        ABOUT,
        experiments,
        steps=200,
    )
