"""Deformable-DETR R50 against ``transformers``: same weights, same inputs, outputs checked equal, then timed.

    python benchmarks/compare_transformers.py [--size 640] [--repeats 7] [--json FILE]

Prints medians and ratios of inference and of a training step (forward, loss, backward), the overhead of dynamic
queries against our own static model, the time of making queries and of matching and loss alone, and the peak
memory of each step.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from transformers import DeformableDetrConfig as TheirConfig
from transformers import DeformableDetrForObjectDetection, ResNetConfig

from dqdet.checkpoints.huggingface import from_huggingface
from dqdet.config import Config, QueriesConfig, resolve
from dqdet.losses import SetLoss
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.types import Predictions
from timing import CLASSES, machine, make_input, ratio, take_turns, their_labels, train_same_stages


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
    state = from_huggingface(theirs.state_dict(), theirs.config.to_dict())
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
    images, padding, targets = make_input(size, batch)
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
    images, padding, targets = make_input(size, batch)
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

    def inference():
        with torch.inference_mode():
            forward()

    def queries():
        with torch.inference_mode():
            model.queries(coarsest, coarsest_padding)

    def step():
        model.zero_grad()
        loss().backward()

    if task == "queries alone":
        cells = size // 64  # the coarsest map, which the queries are made from
        coarsest = torch.randn(batch, our_config(kind).model.hidden, cells, cells)
        coarsest_padding = torch.zeros(batch, cells, cells, dtype=torch.bool)
        return queries
    if task == "inference":
        return inference
    if task == "step":
        return step
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


def peak_memory(name: str, size: int, batch: int) -> float:
    """Peak resident memory of a process that runs one step twice, MiB."""
    command = [sys.executable, __file__, "--size", str(size), "--batch", str(batch), "--only", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        run = make_run(options.only, options.size, options.batch)
        run(), run()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return

    # Before this process grows: a new process inherits the peak of the one that started it.
    memory = {name: peak_memory(name, options.size, options.batch) for name in NAMES}
    check_equal(options.size, options.batch)
    seconds = take_turns({name: make_run(name, options.size, options.batch) for name in NAMES}, options.repeats)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"Deformable-DETR R50, {options.batch} x {options.size}x{options.size}, {torch.get_num_threads()} threads\n")
    print(f"{'':36}{'median s':>10}{'min':>8}{'max':>8}{'peak MiB':>10}")
    for name, median in medians.items():
        print(f"{name:36}{median:10.3f}{min(seconds[name]):8.3f}{max(seconds[name]):8.3f}{memory[name]:10.0f}")
    ratios = {label: ratio(seconds[first], seconds[second]) for label, first, second in RATIOS}
    print()
    for label, found in ratios.items():
        print(f"{label:36}{found:10.3f}")
    if options.json:
        result = {
            **machine(),
            "size": options.size,
            "batch": options.batch,
            "seconds": seconds,
            "peak_mib": memory,
            "ratios": ratios,
        }
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
