"""Throughput of `dqdet predict --engine ray` on this machine against a plain loop over the same images, in turns.

    python benchmarks/on_ray.py --images 48 --size 320

Needs Ray Data (pip install 'dqdet[ray]'). The model has random weights, which take as long as trained ones. The loop
reads, predicts and makes the entries of results in one process, with the threads that PyTorch takes by itself. Ray's
rate is that of its actor at work, from the first shard that is done to the last one; what starting takes is beside it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dqdet
from dqdet.config import resolve
from dqdet.formats.results import coco_results
from dqdet.models import create_model
from dqdet.predict.on_ray import loading, predict_on_ray
from dqdet.predict.predictor import objects
from dqdet.runs.folder import save_folder

SHARD = 8  # images


def write_images(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        small = Image.fromarray(random.integers(0, 255, (60, 80, 3), dtype=np.uint8))
        small.resize((640, 480)).save(folder / f"{number + 1}.jpg")
    return sorted(folder.iterdir(), key=lambda file: int(file.stem))


def of_loop(run: Path, files: list[Path]) -> float:
    """Images a second, after the first ones."""
    predictor = dqdet.load(run)
    for number, outcome in enumerate(predictor.outcomes([str(file) for file in files])):
        if number + 1 == SHARD:
            start = time.perf_counter()
        coco_results(number, objects(outcome), predictor.category_ids)
    return (len(files) - SHARD) / (time.perf_counter() - start)


def of_ray(run: Path, images: Path, out: Path) -> tuple[float, float]:
    """Images a second after the first shard, and the seconds until that."""
    began = time.time()
    predict_on_ray(loading(dqdet.load, str(run), "fp32", False, {}), [str(images)], out, shard=SHARD)
    done = sorted(file.stat().st_mtime for file in (out / "shards").glob("0*.json"))
    return (len(done) - 1) * SHARD / (done[-1] - done[0]), done[0] - began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--size", type=int, default=320, help="shorter side that the model gets")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    config = resolve("deformable_detr_r50", {"model.backbone.pretrained": False, "data.val_resize": given.size})
    config.classes = ["cell"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "run").mkdir()
        save_folder(folder / "run", create_model(config), config, {})
        files = write_images(folder / "images", given.images // SHARD * SHARD)
        ratios = []
        for number in range(given.rounds):
            loop = of_loop(folder / "run", files)
            rate, starting = of_ray(folder / "run", folder / "images", folder / f"out{number}")
            ratios.append(rate / loop)
            print(
                f"loop {loop:.2f} images/s, Ray {rate:.2f} images/s (the first shard after {starting:.1f} s)",
                flush=True,
            )
    print(f"Ray / loop: {statistics.median(ratios):.2f} (median of {len(ratios)}), PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
