"""Trainings whose validation gives two processes unlike shares."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from dqdet.runs.folder import load_metrics
from dqdet.training.engine import train
from tiny import tiny_scenes

# No randomness but the data's, and no norm over the batch.
SAME = {
    "model__dropout": 0.0,
    "data__scenes__train_images": 2,
    "train__batch": 2,
    "train__epochs": 2,
    "train__ema": None,
    "train__timeout": 60,
}

UNEVEN: dict[str, dict[str, Any]] = {
    "images": {"model__backbone__name": "test_convnext", "data__scenes__val_images": 5},  # 3 batches and 2
    "one image": {"model__backbone__name": "test_convnext", "data__scenes__val_images": 1},
    "videos": {  # 2 and 1, of two windows each
        "preset": "video_mask2former_r50",
        "model__encoder_feedforward": 32,
        # Without points, which are random.
        "loss__mask_weight": 0,
        "loss__dice_weight": 0,
        "train__precision": "32",
        "train__steps": None,
        "data__scenes__frames": 6,
        "data__scenes__val_images": 3,
        "inference__window": 4,
    },
}


@dataclass
class Found(Callback):
    """Of each validation the scores of what was found in each image, or video."""

    scores: list[dict[str, list[float]]] = field(default_factory=list)

    def on_validation_start(self, trainer, pl_module):
        self.scores.append({})

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        for target, found in zip(batch.targets, outputs, strict=True):
            scores = [track.score for track in found] if isinstance(found, list) else found.scores.tolist()
            self.scores[-1][str(target.image_id)] = scores


def found_by(name: str, folder: Path, **overrides: Any) -> dict[str, Any]:
    """What this process finds in the validations of a training, and what all measured."""
    train(tiny_scenes(**SAME | UNEVEN[name] | overrides), folder, [found := Found()])
    return {"scores": found.scores, "metrics": load_metrics(folder)}
