"""Peak memory of measuring the masks of a whole data set, the size of COCO's validation split.

    python benchmarks/evaluation_memory.py --images 5000 --masks 100

Masks are random blobs at 640x480, 100 an image; 7 of them are the objects of the image, so that the evaluation has
matches to find. After the first 100 images their masks come again, under other numbers and with other scores, and are
not compressed anew, which would only take time. The peak is that of the process, with all that it has loaded.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dqdet.formats import rle
from dqdet.metrics.detection import DetectionMetric
from dqdet.types import ImageDetections

HEIGHT, WIDTH = 480, 640
CLASSES = 80
OBJECTS = 7  # an image, as in COCO
BLOBS = 300  # that the masks of all images are made of, by shifts
DISTINCT = 100  # images


def blobs() -> Tensor:
    """``[BLOBS, HEIGHT, WIDTH]`` bool: smooth noise above a threshold, near random places."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, HEIGHT), torch.linspace(-1, 1, WIDTH), indexing="ij")
    pool = torch.zeros(BLOBS, HEIGHT, WIDTH, dtype=torch.bool)
    for blob in pool:
        noise = F.interpolate(torch.randn(1, 1, 9, 12), size=(HEIGHT, WIDTH), mode="bicubic")[0, 0]
        row, column, size = torch.rand(3).tolist()
        distance = ((y - row + 0.5) ** 2 + (x - column + 0.5) ** 2).sqrt() / (0.1 + 0.4 * size)
        blob.copy_(noise / 2 + 2 * (1 - distance) > 0)
    return pool


def masks_of(image: int, pool: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Masks ``[count, HEIGHT, WIDTH]`` and labels ``[count]`` of an image, always the same."""
    random = np.random.default_rng(image)
    shift = (int(random.integers(HEIGHT)), int(random.integers(WIDTH)))
    chosen = torch.from_numpy(random.permutation(BLOBS)[:count])
    return pool[chosen].roll(shift, (1, 2)), chosen % CLASSES


def ground_truth(images: int, pool: Tensor) -> dict:
    annotations = []
    for image in range(min(images, DISTINCT)):
        masks, labels = masks_of(image, pool, OBJECTS)
        areas = masks.flatten(1).sum(1).tolist()
        for mask, label, area in zip(rle.encode(masks), labels.tolist(), areas, strict=True):
            shape = {"segmentation": mask, "area": area, "bbox": [0, 0, 1, 1]}
            annotations += [
                {"image_id": same, "category_id": label, "iscrowd": 0, **shape}
                for same in range(image, images, DISTINCT)
            ]
    document = {
        "images": [{"id": image, "height": HEIGHT, "width": WIDTH} for image in range(images)],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(CLASSES)],
    }
    return json.loads(json.dumps(document))  # as from a file: nothing is shared between annotations


def peak() -> float:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--masks", type=int, default=100)
    options = parser.parse_args()
    torch.manual_seed(0)
    pool = blobs()
    metric = DetectionMetric(ground_truth(options.images, pool), range(CLASSES), "segm")
    measured = {"images": options.images, "masks_an_image": options.masks, "peak_before_mib": peak()}
    for image in range(min(options.images, DISTINCT)):
        masks, labels = masks_of(image, pool, options.masks)
        scores = torch.rand(len(masks)).sort(descending=True).values
        metric.update([image], [ImageDetections(scores, labels, torch.zeros(len(masks), 4), rle.compressed(masks))])
    for image in range(DISTINCT, options.images):
        scores = torch.rand(options.masks).sort(descending=True).values.tolist()
        same = zip(metric.results[image % DISTINCT], scores, strict=True)
        metric.results[image] = [{**entry, "image_id": image, "score": score} for entry, score in same]
    measured |= {"peak_after_updates_mib": peak(), "on_disk_mib": metric.results.file.seek(0, 2) / 2**20}
    measured |= {"AP": metric.compute()["AP"], "peak_mib": peak()}
    print(json.dumps(measured, indent=2))


if __name__ == "__main__":
    main()
