"""Own data from zero: blood cells, from a look at the files to pictures of what a small detector finds.

    python examples/bccd.py --data FOLDER --out FOLDER [--preset scenes_tiny] [OPTION=VALUE ...]

FOLDER has images with boxes in any format that dqdet reads; the recipe is for the 205 images of BCCD, 480 x 640 pixels.
Small as it is, the model learns them from nothing, on a CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2.functional import to_pil_image

import dqdet
from dqdet.config import parse_overrides, resolve
from dqdet.data import open_dataset
from dqdet.data.kinds import kind_of
from dqdet.drawing.data_check import check
from dqdet.drawing.pictures import ground_truth, side_by_side
from dqdet.predict.predictor import Predictor

RECIPE = {
    "queries.count": 60,
    "data.resize": [160, 176, 192, 208, 224],
    "data.max_size": 320,
    "data.val_resize": 192,
    "train.epochs": 30,
    "train.drop": [24],
    "train.validate_every": 5,
}
PICTURES = 6


def draw(predictor: Predictor, out: Path) -> None:
    """``predictions.png``: truth, and what the model finds in images that no training saw."""
    dataset = open_dataset(predictor.config.data, "val")
    samples = [dataset[number] for number in range(min(PICTURES, len(dataset)))]
    images = [to_pil_image(image) for image, _ in samples]
    truth = [
        ground_truth(target, (image.height, image.width), dataset.classes)
        for image, (_, target) in zip(images, samples, strict=True)
    ]
    side_by_side(images, {"ground truth": truth, "found": predictor(images)}).save(out / "predictions.png")


def main(arguments: Sequence[str] | None = None) -> Path:
    """The folder with the run, the page of the data, the report and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/bccd"))
    parser.add_argument("--preset", default="scenes_tiny")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    given = parser.parse_args(arguments)
    data = {"data.kind": kind_of(given.data), "data.root": str(given.data)}
    options = RECIPE | data | parse_overrides(given.options)

    checked = check(resolve(given.preset, options).data)
    table = Table("", *checked.splits, title=str(given.data))
    for row in checked.table():
        table.add_row(*row)
    Console().print(table)
    for fault in checked.faults:
        print(fault)

    run = dqdet.train(given.preset, out=given.out / "run", **options)
    (given.out / "data.html").write_text(checked.page(str(given.data)), encoding="utf-8")
    metrics = dqdet.evaluate(run)
    draw(dqdet.load(run), given.out)
    print(f"AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}; report and pictures in {given.out}")
    return given.out


if __name__ == "__main__":
    main()
