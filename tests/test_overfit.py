"""A tiny model learns eight real images by heart: data, model, loss and metric agree with each other."""

from __future__ import annotations

import torch

from dqdet.config import Config, resolve
from dqdet.data import open_dataset
from dqdet.data.loader import collate
from dqdet.evaluation.detection import DetectionMetric
from dqdet.evaluation.postprocess import detections
from dqdet.losses import SetLoss
from dqdet.models import create_model

STEPS = 200


def configuration(root: str) -> Config:
    return resolve(
        "scenes_tiny",
        {
            "data": {"kind": "coco", "root": root, "resize": [128], "val_resize": 128, "max_size": 160, "workers": 0},
            "queries": {"count": 30, "kind": "modulated"},
        },
    )


def test_eight_images_of_coco(shared):
    config = configuration(str(shared / "data" / "coco_real"))
    dataset = open_dataset(config.data, "val")
    config.classes = dataset.classes
    # Images with a few objects that are visible at this size.
    chosen = [i for i in range(len(dataset)) if 1 <= len(dataset[i][1].labels) <= 4][:8]
    batch = collate([dataset[i] for i in chosen])

    torch.manual_seed(0)
    model, criterion = create_model(config).train(), SetLoss(config.loss)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        criterion(model(batch.images, batch.padding), batch.targets).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        schedule.step()

    # In training mode still: batch norms of a model this young know no statistics but the batch's own.
    with torch.inference_mode():
        predictions = model(batch.images, batch.padding)
    metric = DetectionMetric(dataset.ground_truth(), dataset.category_ids)
    sizes = [target.original_size for target in batch.targets]
    found = detections(predictions, sizes, config.loss.classification, len(dataset.classes))
    metric.update([target.image_id for target in batch.targets], found)
    assert metric.compute()["AP50"] > 0.9
