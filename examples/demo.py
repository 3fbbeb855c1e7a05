"""Static against dynamic queries on generated scenes: train both, evaluate both, draw what they find.

    python examples/demo.py --out FOLDER [--preset scenes_tiny] [OPTION=VALUE ...]

The two trainings differ in ``queries.kind`` alone: same steps, same seed, same number of queries at inference.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torchvision.transforms.v2.functional import to_pil_image

import dqdet
from dqdet.cli import HEADLINE
from dqdet.config import parse_overrides
from dqdet.data import open_dataset
from dqdet.data.dataset import DetectionDataset
from dqdet.drawing.pictures import coefficient_figure, ground_truth, side_by_side
from dqdet.metrics.scores import shown
from dqdet.predict.predictor import Predictor

PICTURES = 6
THRESHOLD = 0.35  # scores are still low after so short a training


class StepTimes(Callback):
    """Seconds of every training step, without the wait for data."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, *_) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def query_share(predictor: Predictor, image) -> float:
    """The part of an inference pass that making the queries takes: median over 30 passes."""
    started: list[float] = []
    spent: list[float] = []
    source = predictor.model.queries
    hooks = [
        source.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        source.register_forward_hook(lambda *_: spent.append(time.perf_counter() - started.pop())),
    ]
    shares = []
    for _ in range(30):
        start = time.perf_counter()
        predictor(image)
        shares.append(spent.pop() / (time.perf_counter() - start))
    for hook in hooks:
        hook.remove()
    return statistics.median(shares)


def draw(predictors: dict[str, Predictor], dataset: DetectionDataset, out: Path) -> None:
    """``predictions.png``: ground truth and what each model finds; ``coefficients.png``: W of a few images."""
    samples = [dataset[i] for i in range(PICTURES)]
    images = [to_pil_image(image) for image, _ in samples]
    columns = {
        "ground truth": [
            ground_truth(target, (image.height, image.width), dataset.classes)
            for image, (_, target) in zip(images, samples, strict=True)
        ]
    }
    columns |= {kind: predictor(images, THRESHOLD) for kind, predictor in predictors.items()}
    side_by_side(images, columns).save(out / "predictions.png")
    figure = coefficient_figure(images[:4], predictors["modulated"].coefficients(images[:4]))
    figure.savefig(out / "coefficients.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--preset", default="scenes_tiny")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    arguments = parser.parse_args()
    out = arguments.out
    for number in range(2, 1000):  # an earlier demo is kept
        if not out.exists():
            break
        out = arguments.out.with_name(f"{arguments.out.name}-{number}")

    begin = time.perf_counter()
    table = Table(title="scenes, held-out images")
    predictors = {}
    dataset = None
    for kind in ("static", "modulated"):
        times = StepTimes()
        overrides = parse_overrides(arguments.options) | {"queries.kind": kind}
        run = dqdet.train(arguments.preset, out=out / kind, callbacks=[times], **overrides)
        metrics = dqdet.evaluate(run)
        predictor = predictors[kind] = dqdet.load(run)
        dataset = dataset or open_dataset(predictor.config.data, "val")
        row = {
            "queries": kind,
            **{name: shown(metrics[name]) for name in HEADLINE if name in metrics},
            "parameters": f"{sum(p.numel() for p in predictor.model.parameters()) / 1e6:.2f} M",
            "step time": f"{1000 * statistics.median(times.seconds):.0f} ms",
            "making queries": f"{100 * query_share(predictor, to_pil_image(dataset[0][0])):.2f} % of inference",
        }
        if not table.columns:
            for name in row:
                table.add_column(name)
        table.add_row(*row.values())
    draw(predictors, dataset, out)
    console = Console()
    console.print(table)
    console.print(f"{time.perf_counter() - begin:.0f} s on {torch.get_num_threads()} threads; pictures in {out}")


if __name__ == "__main__":
    main()
