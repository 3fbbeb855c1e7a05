"""Tiny models learn a few images or videos by heart: data, model, loss and metric agree with each other."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from dqdet.config import Config, override, resolve
from dqdet.data import open_dataset
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.loader import collate
from dqdet.inference import infer
from dqdet.losses import make_loss
from dqdet.models import create_model
from dqdet.studies.small import detector
from dqdet.studies.video import SEQFORMER
from dqdet.training.task_metrics import make_metric
from dqdet.types import Batch, ClipTracks
from whole_tracks import as_tracks


def resized(side: int) -> dict[str, Any]:
    return {"resize": [side], "val_resize": side, "max_size": side + side // 4, "workers": 0}


def learn(model: nn.Module, config: Config, batch: Batch, steps: int, lr: float = 2e-3) -> None:
    criterion = make_loss(config.loss)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        criterion(model(batch.images, batch.padding, batch.targets), batch.targets).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
        optimiser.step()
        schedule.step()


def measure(model: nn.Module, config: Config, dataset: DetectionDataset, batch: Batch) -> dict[str, float]:
    # In training mode still: batch norms of a model this young know no statistics but the batch's own.
    with torch.inference_mode():
        predictions = model(batch.images, batch.padding)
    targets = batch.targets
    metric = make_metric(config, dataset)
    outcomes = infer(predictions, [t.size for t in targets], [t.original_size for t in targets], config)
    outcomes = [as_tracks(one) if isinstance(one, ClipTracks) else one for one in outcomes]
    metric.update([t.image_id for t in targets], outcomes)
    return metric.compute()


def memorised(config: Config, indices: list[int], steps: int, split: Split = "val") -> dict[str, float]:
    """The metrics on some items of a data set after training on nothing else."""
    dataset = open_dataset(config.data, split)
    config.classes, config.category_ids = dataset.classes, dataset.category_ids
    config.stuff = list(dataset.stuff)
    batch = collate([dataset[i] for i in indices])
    torch.manual_seed(0)
    model = create_model(config).train()
    learn(model, config, batch, steps)
    return measure(model, config, dataset, batch)


def with_few_objects(config: Config, count: int) -> list[int]:
    """Images with a few objects, which are visible at a small size."""
    dataset = open_dataset(config.data, "val")
    return [i for i in range(len(dataset)) if 1 <= len(dataset[i][1].labels) <= 4][:count]


@pytest.mark.parametrize(("images", "steps"), [(4, 100), pytest.param(8, 200, marks=pytest.mark.slow)])
def test_boxes_in_images_of_coco(shared, images, steps):
    data = {"kind": "coco", "root": str(shared / "data" / "coco_real"), **resized(128)}
    config = resolve("scenes_tiny", {"data": data, "queries": {"count": 30}})
    assert memorised(config, with_few_objects(config, images), steps)["AP50"] > 0.9


@pytest.mark.slow
def test_boxes_in_eight_images_of_coco_with_dino(shared):
    data = {"kind": "coco", "root": str(shared / "data" / "coco_real"), **resized(128)}
    config = override(resolve("dino_r50", detector("dino_r50").options), {"data": data, "queries.denoising": 20})
    assert memorised(config, with_few_objects(config, 8), steps=120)["AP50"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "steps"), [("lw_detr_small", 200), ("rf_detr_nano", 400)])
def test_plain_transformers_learn_eight_images_of_coco(shared, preset, steps):
    subject = detector(preset)
    data = {"kind": "coco", "root": str(shared / "data" / "coco_real"), **resized(128)}
    config = override(resolve(preset, subject.options), {"data": data})
    assert memorised(config, with_few_objects(config, 8), steps)["AP50"] > 0.9


@pytest.mark.slow
def test_masks_in_four_images_of_coco(shared):
    data = {"kind": "coco", "task": "instance", "root": str(shared / "data" / "coco_real"), **resized(128)}
    config = resolve("scenes_tiny_panoptic", {"data": data})
    assert memorised(config, with_few_objects(config, 4), steps=120)["AP50"] > 0.9


@pytest.mark.slow
def test_panoptic_maps_of_two_images_of_coco(shared, tmp_path):
    sample = shared / "data" / "panoptic_sample"
    (tmp_path / "annotations").mkdir()
    document = json.loads((sample / "annotations" / "panoptic.json").read_text())
    document["categories"] = json.loads((sample / "categories.json").read_text())
    (tmp_path / "annotations" / "panoptic_val.json").write_text(json.dumps(document))
    (tmp_path / "annotations" / "panoptic_val").symlink_to(sample / "annotations" / "panoptic")
    (tmp_path / "val").symlink_to(sample / "images")
    data = {"kind": "coco", "task": "panoptic", "root": str(tmp_path), **resized(320)}  # segments are small
    config = resolve(
        "scenes_tiny_panoptic", {"data": data, "queries": {"kind": "static", "count": 40}, "loss.points": 2048}
    )
    assert memorised(config, [0, 1], steps=350)["PQ"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "options"), [("scenes_tiny_video", {}), ("seqformer_r50", SEQFORMER)])
def test_tracks_in_two_videos(preset, options):
    # Clips are whole videos here, because only training items have masks.
    config = override(
        resolve(preset, options),
        {
            "data": {"scenes": {"train_images": 2, "frames": 4}, "flip": False, "workers": 0},
            "data.clips": {"frames": 4, "reach": 4, "every_frame": False},
        },
    )
    assert memorised(config, [0, 1], steps=150, split="train")["AP50"] > 0.9
