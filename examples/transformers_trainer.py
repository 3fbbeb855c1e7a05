"""Fine-tune a detector of ``transformers`` with its ``Trainer``: as it is, and with modulated queries.

    python examples/transformers_trainer.py --data FOLDER [--model NAME_OR_FOLDER] [--steps 300] ...

The data are images with boxes in COCO's layout (``annotations/instances_{train,val}.json``, ``images/{train,val}``).
Without ``--model`` a small Deformable-DETR learns from nothing for ``--start`` steps. It, or the model that is named,
is then fine-tuned twice: same steps, same seed, same number of queries at inference.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection, DeformableDetrConfig, ResNetConfig

import dqdet
from dqdet.metrics.detection import DetectionMetric
from dqdet.types import ImageDetections

HEIGHT, WIDTH = 96, 128  # of the images of blood cells, 480 x 640


class Boxes(torch.utils.data.Dataset):
    """One split, read and resized once."""

    def __init__(self, data: Path, split: str, processor: Any):
        self.truth = json.loads((data / f"annotations/instances_{split}.json").read_text())
        self.rows = []
        for image in self.truth["images"]:
            objects = [item for item in self.truth["annotations"] if item["image_id"] == image["id"]]
            with Image.open(data / "images" / split / image["file_name"]) as opened:
                row = processor(
                    opened.convert("RGB"),
                    annotations={"image_id": image["id"], "annotations": objects},
                    return_tensors="pt",
                )
            labels = row["labels"][0]
            ids = [category["id"] for category in self.truth["categories"]]
            labels["class_labels"] = torch.tensor([ids.index(number) for number in labels["class_labels"]]).long()
            self.rows.append({"pixel_values": row["pixel_values"][0], "labels": labels})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.rows[number]


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    pixels = torch.stack([row["pixel_values"] for row in rows])
    return {"pixel_values": pixels, "labels": [dict(row["labels"]) for row in rows]}


def small(classes: list[str]) -> transformers.PreTrainedModel:
    """A Deformable-DETR that learns on a CPU in minutes."""
    backbone = ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 48, 64, 96],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = DeformableDetrConfig(
        backbone_config=backbone,
        id2label=dict(enumerate(classes)),
        num_queries=50,
        d_model=64,
        encoder_layers=1,
        decoder_layers=3,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_feature_levels=3,
        auxiliary_loss=True,
        dropout=0.0,
    )
    return transformers.DeformableDetrForObjectDetection(config)


def train(model: transformers.PreTrainedModel, data: Boxes, steps: int, rate: float, batch: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        options = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            max_grad_norm=0.1,
            save_strategy="no",
            logging_steps=max(steps // 5, 1),
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            seed=0,
        )
        transformers.Trainer(model, options, data_collator=collate, train_dataset=data).train()


@torch.no_grad()
def evaluate(model: transformers.PreTrainedModel, data: Boxes, processor: Any) -> dict[str, float]:
    """The official metrics."""
    model.eval()
    metric = DetectionMetric(data.truth, [category["id"] for category in data.truth["categories"]])
    for image, row in zip(data.truth["images"], data.rows, strict=True):
        outputs = model(row["pixel_values"][None].to(model.device))
        sizes = [(image["height"], image["width"])]
        (found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
        detections = ImageDetections(found["scores"].cpu(), found["labels"].cpu(), found["boxes"].cpu())
        metric.update([image["id"]], [detections])
    return metric.compute()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", help="of transformers, for example facebook/detr-resnet-50")
    parser.add_argument("--start", type=int, default=600, help="steps of the small model, before")
    parser.add_argument("--steps", type=int, default=300, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--out", type=Path, help="folder to write the modulated model to")
    arguments = parser.parse_args()

    transformers.set_seed(0)
    categories = json.loads((arguments.data / "annotations/instances_val.json").read_text())["categories"]
    classes = [category["name"] for category in categories]
    if arguments.model is None:
        processor = transformers.DeformableDetrImageProcessor(size={"height": HEIGHT, "width": WIDTH})
        model = small(classes)
    else:
        processor = AutoImageProcessor.from_pretrained(arguments.model)
        model = AutoModelForObjectDetection.from_pretrained(
            arguments.model, id2label=dict(enumerate(classes)), ignore_mismatched_sizes=True
        )
    data, held_out = (Boxes(arguments.data, split, processor) for split in ("train", "val"))
    results = {}
    if arguments.model is None:
        train(model, data, arguments.start, arguments.rate, arguments.batch)
        results["before"] = evaluate(model, held_out, processor)
    models = {"static": copy.deepcopy(model), "modulated": dqdet.modulate(model, ratio=arguments.ratio)}
    if arguments.model is None:
        results["modulated, not trained"] = evaluate(model, held_out, processor)
    for name, changed in models.items():
        train(changed, data, arguments.steps, arguments.rate / 2, arguments.batch)
        results[name] = evaluate(changed, held_out, processor)
    for name, found in results.items():
        print(f"{name:24s} AP {found['AP']:.4f}  AP50 {found['AP50']:.4f}")
    if arguments.out is not None:
        models["modulated"].save_pretrained(arguments.out)
        processor.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
