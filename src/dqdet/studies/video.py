"""Table 6 in small: both video families with static and with modulated queries: python -m dqdet.studies.video."""

from __future__ import annotations

from typing import Any

from dqdet.studies.comparison import Experiment, study

BATCH = 8
METRICS = ("AP", "AP50", "AR10")
ABOUT = """\
Generated videos of 8 frames of 96 pixels, 50 held-out ones, {steps} steps of 8 clips, {seeds} seeds: mean and standard
deviation over the seeds. Mask2Former as in the preset `scenes_tiny_video`; SeqFormer as tiny (hidden size 64, 1 + 3
layers, 20 queries, ratio 4), with clips of 3 frames. Both are far from converged; the numbers do not predict results on
real data."""

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


def options(steps: int) -> dict[str, Any]:
    return {
        "data.workers": 0,
        "data.scenes.train_images": steps * BATCH,
        "train.epochs": 1,
        "train.batch": BATCH,
        "train.drop": [0.85],
    }


def experiments(steps: int) -> dict[str, Experiment]:
    return {
        "Mask2Former": Experiment("scenes_tiny_video", options(steps), METRICS),
        "SeqFormer": Experiment("seqformer_r50", {**SEQFORMER, **options(steps)}, METRICS),
    }


if __name__ == "__main__":
    study(
        "study-video",
        "Static against modulated queries, video instance segmentation",
        ABOUT,
        experiments,
        steps=300,
    )
