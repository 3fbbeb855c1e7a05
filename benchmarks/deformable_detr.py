"""Deformable-DETR R50 against ``transformers``: same weights, same inputs, outputs checked equal, then timed.

    python benchmarks/deformable_detr.py [--size 640] [--repeats 7] [--json FILE]

Prints medians and ratios of inference and of a training step (forward, loss, backward), the overhead of dynamic
queries against our own static model, the time of making queries and of matching and loss alone, and the peak
memory of each step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import DeformableDetrConfig as TheirConfig
from transformers import DeformableDetrForObjectDetection, ResNetConfig

from dqdet.config import Config, QueriesConfig, resolve
from dqdet.losses import SetLoss
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.types import Predictions
from dqdet.weights.deformable_detr import DEFORMABLE_DETR
from timing import CLASSES, compare, make_input, make_task, their_labels, train_same_stages


def their_model() -> DeformableDetrForObjectDetection:
    backbone = ResNetConfig(out_features=["stage2", "stage3", "stage4"], downsample_in_bottleneck=False)
    config = TheirConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=300,
        num_labels=CLASSES,
        dropout=0.0,
        auxiliary_loss=True,
    )
    torch.manual_seed(0)
    model = DeformableDetrForObjectDetection(config).eval()
    train_same_stages(model)
    return model


def our_config(kind: str) -> Config:
    overrides = {
        "model": {"dropout": 0.0, "backbone": {"pretrained": False}},
        "queries": {"kind": kind},
        "loss": {"class_weight": 1.0},  # as transformers weighs it
        "classes": [f"class {i}" for i in range(CLASSES)],
    }
    return resolve("deformable_detr_r50", overrides)


def our_model(kind: str, theirs: DeformableDetrForObjectDetection) -> Detector:
    model = create_model(our_config(kind))
    state = DEFORMABLE_DETR.from_huggingface(theirs.state_dict(), theirs.config.to_dict())
    if kind == "modulated":
        ratio = QueriesConfig().ratio
        for part in ("position", "content"):
            state[f"queries.basic.{part}"] = state.pop(f"queries.table.{part}").repeat_interleave(ratio, 0)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("queries.coefficients") for name in missing), missing
    return model


def check_equal(size: int, batch: int) -> None:
    """The three models give the same logits, boxes and losses."""
    images, padding, targets = make_input((size, size), batch)
    theirs = their_model()
    criterion = SetLoss(our_config("static").loss)
    with torch.no_grad():
        expected = theirs(images, pixel_mask=(~padding).long(), labels=their_labels(targets))
        for kind in ("static", "modulated"):
            found = our_model(kind, theirs).eval()(images, padding)
            torch.testing.assert_close(found.logits[-1], expected.logits, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(found.boxes[-1], expected.pred_boxes, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(criterion(found, targets).total, expected.loss, rtol=1e-3, atol=1e-3)


def make_run(name: str, size: int, batch: int) -> Callable[[], object]:
    """One of the things that are timed: ``"inference, static"``, ``"step, transformers"``, ..."""
    task, kind = name.split(", ")
    images, padding, targets = make_input((size, size), batch)
    criterion = SetLoss(our_config("static").loss)

    if kind == "transformers":
        model, mask, labels = their_model(), (~padding).long(), their_labels(targets)

        def forward():
            return model(images, pixel_mask=mask)

        def loss():
            return model(images, pixel_mask=mask, labels=labels).loss
    else:
        model = our_model(kind, their_model()).train(task not in ("inference", "queries alone"))

        def forward():
            return model(images, padding)

        def loss():
            return criterion(forward(), targets).total

    def queries():
        with torch.inference_mode():
            model.queries(coarsest, coarsest_padding)

    if task == "queries alone":
        cells = size // 64  # the coarsest map, which the queries are made from
        coarsest = torch.randn(batch, our_config(kind).model.hidden, cells, cells)
        coarsest_padding = torch.zeros(batch, cells, cells, dtype=torch.bool)
        return queries
    if task in ("inference", "step"):
        return make_task(task, model, forward, loss)
    made = forward()
    logits, boxes = (x.detach().requires_grad_() for x in (made.logits, made.boxes))
    predictions = Predictions(logits, boxes, made.groups)
    return lambda: criterion(predictions, targets).total.backward()


NAMES = [
    "inference, transformers",
    "inference, static",
    "inference, modulated",
    "queries alone, static",
    "queries alone, modulated",
    "step, transformers",
    "step, static",
    "step, modulated",
    "matching and loss, static",
    "matching and loss, modulated",
]

RATIOS = [
    ("inference: transformers / static", "inference, transformers", "inference, static"),
    ("inference: transformers / modulated", "inference, transformers", "inference, modulated"),
    ("inference: modulated / static", "inference, modulated", "inference, static"),
    ("queries alone, modulated / inference", "queries alone, modulated", "inference, modulated"),
    ("step: transformers / static", "step, transformers", "step, static"),
    ("step: transformers / modulated", "step, transformers", "step, modulated"),
    ("step: modulated / static", "step, modulated", "step, static"),
]


if __name__ == "__main__":
    compare("Deformable-DETR R50", 640, make_run, check_equal, NAMES, RATIOS)
