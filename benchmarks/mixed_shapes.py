"""Images a second of landscapes and portraits in turns: in batches as they come, and in batches of one shape.

    python benchmarks/mixed_shapes.py [--size 480] [--batch 8] [--repeats 5] [--preset detr_r50]

Images of 3:4 and 4:3 that are prepared already; both ways take turns, the ratio is the median of those within repeats.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from dqdet.config import resolve
from dqdet.models import create_model
from dqdet.predict.batches import in_batches
from dqdet.predict.predictor import Predictor, Prepared
from timing import machine, ratio, take_turns


def main() -> None:
    parser = argparse.ArgumentParser(description="Batches of one shape, timed.")
    parser.add_argument("--size", type=int, default=480, help="shorter side")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--preset", default="detr_r50")
    options = parser.parse_args()
    config = resolve(options.preset, {"model.backbone.pretrained": False, "classes": ["cat", "dog"]})
    torch.manual_seed(0)
    predictor = Predictor(create_model(config), config, batch=options.batch)
    count, sides = 2 * options.batch, (options.size, options.size * 4 // 3)
    shapes = [sides if number % 2 else sides[::-1] for number in range(count)]
    images = [Prepared(torch.randint(256, (3, *shape), dtype=torch.uint8), shape) for shape in shapes]

    def as_they_come() -> None:
        for start in range(0, count, options.batch):
            predictor.outcomes_of(images[start : start + options.batch])

    def of_one_shape() -> None:
        for _ in in_batches(images, predictor.outcomes_of, predictor.padded, options.batch, count):
            pass

    seconds = take_turns({"as they come": as_they_come, "of one shape": of_one_shape}, options.repeats)
    print(f"{options.preset}, {sides[0]}x{sides[1]} and turned, batches of {options.batch}, {machine()}")
    for name, times in seconds.items():
        print(f"{name:16}{count / statistics.median(times):8.3f} images/s")
    print(f"{'ratio':16}{ratio(seconds['as they come'], seconds['of one shape']):8.3f}")


if __name__ == "__main__":
    main()
