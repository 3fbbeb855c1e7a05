"""Tables 3 and 5 in small: Mask2Former with static and with modulated queries: python -m dqdet.studies.segmentation."""

from __future__ import annotations

from typing import Any

from dqdet.studies.comparison import Experiment, study

PRESET = "scenes_tiny_panoptic"
BATCH = 8
METRICS = {
    "panoptic": ("PQ", "PQ_things", "PQ_stuff", "AP_things", "mIoU"),
    "instance": ("AP", "AP50"),
}
ABOUT = """\
Mask2Former as in the preset `scenes_tiny_panoptic` (20 queries, ratio 4), trained on panoptic maps and on instances:
generated scenes of 128 pixels, 200 held-out images, {steps} steps of 8 images, {seeds} seeds: mean and standard
deviation over the seeds. These models are tiny and far from converged; the numbers do not predict results on real
data."""


def options(task: str, steps: int) -> dict[str, Any]:
    return {
        "data": {"task": task, "workers": 0, "scenes": {"train_images": steps * BATCH}},
        "train": {"epochs": 1, "batch": BATCH, "drop": [0.85]},
    }


def experiments(steps: int) -> dict[str, Experiment]:
    return {task: Experiment(PRESET, options(task, steps), metrics) for task, metrics in METRICS.items()}


if __name__ == "__main__":
    study(
        "study-segmentation",
        "Static against modulated queries, panoptic and instance segmentation",
        ABOUT,
        experiments,
        steps=300,
    )
