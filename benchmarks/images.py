"""Training images a second of one core: from the file to the padded batch, as uint8 tensors and as Pillow's images.

    python benchmarks/images.py

JPEGs of 640x480 with the detail of photographs, 7 boxes each, DETR's augmentation to 800 pixels, batches of 4. Both
ways take turns and draw the same numbers; the ratio is of CPU seconds, so that other programs do not disturb it. Run
again with --plain, the process gives freed memory back at once, as workers did before they were told to keep it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from dqdet.config import DataConfig
from dqdet.data.loader import collate, keep_freed_memory
from dqdet.data.transforms import make_transform
from dqdet.formats.image_files import read_image, read_pixels
from dqdet.types import Target

OBJECTS, BATCH = 7, 4


def photograph(random: np.random.Generator, height: int, width: int) -> Image.Image:
    """Noise of all scales, the coarser the stronger, as in photographs; about 120 KiB as a JPEG of 640x480."""
    pixels = np.zeros((height, width, 3))
    for octave in range(1, 9):
        size = (2**octave + 1, 2**octave * 3 // 4 + 1)
        noise = random.normal(0, 1, (*size[::-1], 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(noise[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(layer) * 60 / octave
    return Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8))


def target(height: int, width: int) -> Target:
    return Target(torch.zeros(OBJECTS, dtype=torch.int64), torch.zeros(OBJECTS, 4), (height, width), (height, width))


def batch_of(files: list[Path], read: Callable, transform: Callable) -> tuple[dict[str, float], Tensor]:
    """CPU seconds of each part for a batch of files, and its images."""
    seconds = dict.fromkeys(("reading", "augmenting", "collating"), 0.0)
    items = []
    for number, file in enumerate(files):
        start = time.process_time()
        image = read(file)
        read_at = time.process_time()
        torch.manual_seed(number)
        corners = torch.rand(OBJECTS, 2) * 300
        boxes = tv_tensors.BoundingBoxes(torch.cat([corners, corners + 100], 1), format="XYXY", canvas_size=(480, 640))
        image = transform({"image": image, "boxes": boxes, "labels": torch.zeros(OBJECTS, dtype=torch.int64)})["image"]
        seconds["augmenting"] += time.process_time() - read_at
        seconds["reading"] += read_at - start
        items.append((image, target(*image.shape[1:])))
    start = time.process_time()
    images = collate(items).images
    seconds["collating"] = time.process_time() - start
    return seconds, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--plain", action="store_true", help="give freed memory back")
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # as in a worker
    if not options.plain:
        keep_freed_memory()
    transform = make_transform(DataConfig(), train=True)
    ways = {"tensors": lambda file: tv_tensors.Image(read_pixels(file)), "Pillow": read_image}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    random = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.jpg" for number in range(BATCH * 8)]
        for file in files:
            photograph(random, 480, 640).save(file, quality=90)
        size = sum(file.stat().st_size for file in files) / len(files) / 1024
        for number in range(options.batches + 1):
            chosen = random.choice(len(files), BATCH, replace=False)
            images = {}
            for name, read in ways.items():
                seconds, images[name] = batch_of([files[index] for index in chosen], read, transform)
                if number:
                    found[name].append(seconds)
            if not number:  # the first one is not counted, but compared
                difference = (images["tensors"].int() - images["Pillow"].int()).abs().max()
                # Two resizes one after the other, each of which rounds.
                assert difference <= 3, f"pixels differ by {difference}"
    print(f"{len(files)} JPEGs of {size:.0f} KiB, CPU ms an image\n\n{'':12}" + "".join(f"{n:>12}" for n in found))
    for part in ("reading", "augmenting", "collating"):
        row = [statistics.median(seconds[part] for seconds in found[name]) / BATCH * 1000 for name in found]
        print(f"{part:12}" + "".join(f"{value:12.2f}" for value in row))
    totals = {name: [sum(seconds.values()) for seconds in found[name]] for name in found}
    for name in found:
        print(f"{name:12}{BATCH / statistics.median(totals[name]):12.1f} images/s of a core")
    ratio = statistics.median(a / b for a, b in zip(totals["Pillow"], totals["tensors"], strict=True))
    print(f"ratio{ratio:19.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"seconds": found, "ratio": ratio}, file, indent=1)


if __name__ == "__main__":
    main()
