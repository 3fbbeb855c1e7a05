"""A training step of Deformable-DETR R50 with and without ``train.recompute``: its peak memory and its time.

    python benchmarks/recompute.py [--size 480] [--batch 2] [--repeats 5] [--json FILE]

Losses and gradients are checked to be equal, digit by digit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dqdet.config import resolve
from dqdet.losses import SetLoss
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.nn.checkpointing import recompute
from timing import CLASSES, compare, make_input, make_task

KEPT, RECOMPUTED = "all is kept", "train.recompute"


def make_model(name: str) -> tuple[Detector, SetLoss]:
    options = {"model": {"backbone": {"pretrained": False}}, "classes": [f"class {i}" for i in range(CLASSES)]}
    config = resolve("deformable_detr_r50", options)
    torch.manual_seed(0)
    model = create_model(config).train()
    if name == RECOMPUTED:
        recompute(model)
    return model, SetLoss(config.loss)


def make_step(name: str, size: int, batch: int) -> Callable[[], object]:
    model, criterion = make_model(name)
    images, padding, targets = make_input((size, size), batch)

    def loss() -> torch.Tensor:
        torch.manual_seed(0)
        return criterion(model(images, padding), targets).total

    step = make_task("step", model, loss, loss)
    return lambda: (step(), model)


def check_equal(size: int, batch: int) -> None:
    plain, economical = (make_step(name, size, batch)()[1] for name in (KEPT, RECOMPUTED))  # type: ignore[index]
    for one, other in zip(plain.parameters(), economical.parameters(), strict=True):
        assert (one.grad is None and other.grad is None) or torch.equal(one.grad, other.grad)


if __name__ == "__main__":
    compare(
        "Deformable-DETR R50, a training step",
        480,
        make_step,
        check_equal,
        [KEPT, RECOMPUTED],
        [("time, recompute / kept", RECOMPUTED, KEPT)],
    )
