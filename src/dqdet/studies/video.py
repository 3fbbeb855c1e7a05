"""Table 6: both video families."""

from __future__ import annotations

from typing import Any

from dqdet.studies.comparison import CONTROLLED, Comparison
from dqdet.studies.request import Subject

BATCH = 8
STEPS = 300

# What makes the published SeqFormer as small as `scenes_tiny_video`.
SEQFORMER: dict[str, Any] = {
    "model": {
        "backbone": {"name": "test_resnet", "pretrained": False, "freeze": False},
        "hidden": 64,
        "heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 3,
        "feedforward": 256,
        "levels": 3,
        "dropout": 0.0,
    },
    "queries": {"count": 20, "hidden": 128},
    "data": {
        "kind": "scenes",
        "resize": [96],
        "max_size": 96,
        "val_resize": 96,
        "crop": False,
        "colour": False,
        "redraw_empty": False,
        "clips": {"frames": 3, "reach": 3, "neighbours": 0, "every_frame": False},
        "scenes": {"size": 96, "val_images": 50},
    },
    "train": {"warmup": 20, "lr": 1e-3, "backbone_lr": 1e-3, "offsets_lr": 1e-4},
}

BUDGET: dict[str, Any] = {
    "data.workers": 0,
    "data.scenes.train_images": STEPS * BATCH,
    "train.epochs": 1,
    "train.batch": BATCH,
    "train.drop": [0.85],
}


def _numbers(*values: float) -> dict[str, float]:
    return dict(zip(("AP", "AP50", "AP75"), values, strict=True))


PAPER = {
    "video_mask2former_r50": {"static": _numbers(0.464, 0.680, 0.500), "modulated": _numbers(0.474, 0.692, 0.510)},
    "seqformer_r50": {"static": _numbers(0.474, 0.698, 0.518), "modulated": _numbers(0.490, 0.715, 0.530)},
    "video_mask2former_swin_b": {"static": _numbers(0.595, 0.843, 0.672), "modulated": _numbers(0.613, 0.861, 0.686)},
    "seqformer_swin_l": {"static": _numbers(0.593, 0.821, 0.664), "modulated": _numbers(0.612, 0.841, 0.680)},
}

run = Comparison(
    title="Video instance segmentation with dynamic queries and their controls",
    own={
        "Mask2Former": Subject("scenes_tiny_video", BUDGET, "video_mask2former_r50"),
        "SeqFormer": Subject("seqformer_r50", {**SEQFORMER, **BUDGET}, "seqformer_r50"),
    },
    arms=lambda config: CONTROLLED,
    paper=PAPER,
).run
