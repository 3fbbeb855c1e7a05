"""Throughput of `dqdet predict --engine ray` on this machine against a plain loop over the same images, in turns.

    python benchmarks/on_ray.py --images 96 --size 320

Needs Ray Data (pip install 'dqdet[ray]'). The model has random weights, which take as long as trained ones. The loop
reads, predicts and makes the entries of results in one process, with the threads that PyTorch takes by itself. Ray's
rate is that of its actor at work, what it waits between shards included: the clock is read where images are predicted,
as results come back in clumps. What starting takes is beside it. The first shard of both is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dqdet
from dqdet.config import resolve
from dqdet.formats.results import coco_results
from dqdet.models import create_model
from dqdet.predict.on_ray import loading, predict_on_ray
from dqdet.predict.predictor import Predictor, objects
from dqdet.runs.folder import save_folder
from dqdet.types import Outcome

SHARD = 8  # images


def write_images(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        small = Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        small.resize((640, 480)).save(folder / f"{number + 1}.jpg")
    return sorted(folder.iterdir(), key=lambda file: int(file.stem))


def watched(source: str, clock: Path, **options: Any) -> Predictor:
    """A model that appends the time of every image that it is done with to a file."""
    predictor = dqdet.load(source, **options)
    outcomes_of = predictor.outcomes_of

    def timed(*arguments: Any) -> list[Outcome]:
        outcomes = outcomes_of(*arguments)
        with clock.open("a") as file:
            file.writelines(f"{time.time()}\n" for _ in outcomes)
        return outcomes

    predictor.outcomes_of = timed  # type: ignore[method-assign]
    return predictor


def rate(clock: Path) -> float:
    """Images a second, after the first shard."""
    times = [float(line) for line in clock.read_text().split()]
    return (len(times) - SHARD) / (times[-1] - times[SHARD - 1])


def of_loop(run: Path, files: list[Path], clock: Path) -> float:
    predictor = watched(str(run), clock)
    for number, outcome in enumerate(predictor.outcomes([str(file) for file in files])):
        coco_results(number, objects(outcome), predictor.category_ids)
    return rate(clock)


def of_ray(run: Path, images: Path, out: Path, clock: Path) -> tuple[float, float]:
    """Images a second, and the seconds until the first one."""
    began = time.time()
    predict_on_ray(loading(watched, str(run), "fp32", False, {"clock": clock}), [str(images)], out, shard=SHARD)
    return rate(clock), float(clock.read_text().split()[0]) - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--size", type=int, default=320, help="shorter side that the model gets")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    # Ray makes its workers nicer than others; without that other programs disturb both sides alike.
    os.environ.setdefault("RAY_worker_niceness", "0")
    config = resolve("deformable_detr_r50", {"model.backbone.pretrained": False, "data.val_resize": given.size})
    config.classes = ["cell"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "run").mkdir()
        save_folder(folder / "run", create_model(config), config, {})
        files = write_images(folder / "images", given.images // SHARD * SHARD)
        ratios = []
        for number in range(given.rounds):
            loop = of_loop(folder / "run", files, folder / f"loop{number}")
            ray, starting = of_ray(folder / "run", folder / "images", folder / f"out{number}", folder / f"ray{number}")
            ratios.append(ray / loop)
            print(f"loop {loop:.2f} images/s, Ray {ray:.2f} images/s (the first after {starting:.1f} s)", flush=True)
    print(f"Ray / loop: {statistics.median(ratios):.2f} (median of {len(ratios)}), PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
