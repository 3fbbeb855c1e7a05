"""How fast a process reads and augments training images, part by part, and how many of them keep a GPU busy."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, fields

import numpy as np
import torch
from torchvision.transforms.v2 import query_size

from dqdet.data.dataset import DetectionDataset
from dqdet.data.loader import collate, keep_freed_memory


@dataclass
class Speed:
    """Seconds that one process takes for an image."""

    reading: float = 0.0  # files and annotations, decoded
    augmenting: float = 0.0
    collating: float = 0.0  # its share of a batch

    @property
    def parts(self) -> dict[str, float]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def rate(self) -> float:
        """Images a second of one process."""
        return 1 / sum(self.parts.values())

    def workers(self, rate: float) -> int:
        """Processes that give ``rate`` images a second, each on a core of its own."""
        return math.ceil(rate / self.rate)


def measure(dataset: DetectionDataset, images: int, batch: int) -> Speed:
    """The speed of this process, which behaves as a worker of the loader: with one thread, on images drawn at random.

    Args:
        dataset: of training items.
        images: how many are timed, after a batch that is not; rounded up to whole batches.
        batch: images that are put together.

    Raises:
        DqdetError: a file cannot be read.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    drawn = np.random.default_rng(dataset.seed)
    speed = Speed()
    batches = math.ceil(images / batch)
    try:
        for number in range(batches + 1):
            seconds = _batch(dataset, drawn.integers(0, len(dataset), batch).tolist())
            if number:
                for name, value in seconds.parts.items():
                    setattr(speed, name, getattr(speed, name) + value / (batches * batch))
    finally:
        torch.set_num_threads(threads)
    return speed


def _batch(dataset: DetectionDataset, indices: list[int]) -> Speed:
    """Seconds of a whole batch."""
    speed = Speed()
    items = []
    with torch.random.fork_rng(devices=[]):
        for index in indices:
            start = time.perf_counter()
            sample = dataset.read(index)
            read = time.perf_counter()
            size = query_size([sample["image"]])
            sample = dataset.augmented(sample)
            target = dataset.target(sample, original_size=(size[0], size[1]), image_id=dataset.image_ids[index])
            items.append((sample["image"], target))
            speed.reading += read - start
            speed.augmenting += time.perf_counter() - read
    start = time.perf_counter()
    collate(items, size=dataset.padded_size)
    speed.collating = time.perf_counter() - start
    return speed
