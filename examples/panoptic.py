"""Panoptic maps of generated scenes: train a small Mask2Former, measure it, and draw what it sees.

python examples/panoptic.py --out FOLDER [--preset scenes_tiny_panoptic] [OPTION=VALUE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

import dqdet
from dqdet.config import parse_overrides
from dqdet.data import open_dataset

PICTURES = 4


def main(arguments: Sequence[str] | None = None) -> Path:
    """The folder with the run and ``0.png``, ``1.png``, ..."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/panoptic"))
    parser.add_argument("--preset", default="scenes_tiny_panoptic")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    given = parser.parse_args(arguments)

    run = dqdet.train(given.preset, out=given.out / "run", **parse_overrides(given.options))
    metrics = dqdet.evaluate(run)
    predictor = dqdet.load(run)
    dataset = open_dataset(predictor.config.data, "val")
    images = [to_pil_image(dataset[number][0]) for number in range(min(PICTURES, len(dataset)))]
    for number, (image, outcome) in enumerate(zip(images, predictor.outcomes(images), strict=True)):
        predictor.drawn(image, outcome, threshold=None).save(given.out / f"{number}.png")
        print(f"{number}.png:", ", ".join(segment["name"] for segment in predictor.panoptic(image).segments))
    print(f"PQ {metrics['PQ']:.3f}, mIoU {metrics['mIoU']:.3f}; pictures in {given.out}")
    return given.out


if __name__ == "__main__":
    main()
