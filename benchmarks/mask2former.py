"""Mask2Former R50 against ``transformers``: same weights, same inputs, outputs checked equal, then timed.

    python benchmarks/mask2former.py [--size 512] [--repeats 7] [--json FILE]

Prints medians and ratios of inference (class logits and masks of the last layer) and of a training step (forward,
loss at 12,544 points, backward), and the peak memory of each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig as TheirConfig
from transformers import Mask2FormerForUniversalSegmentation, ResNetConfig

from dqdet.config import Config, resolve
from dqdet.losses import make_loss
from dqdet.models import create_model
from dqdet.runs.upgrade import upgrade
from dqdet.types import Batch, Target
from dqdet.weights.mask2former import MASK2FORMER
from timing import compare, make_input, make_task

CLASSES = 80
QUERIES = 100
THEIRS = "transformers"


def their_model() -> Mask2FormerForUniversalSegmentation:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = TheirConfig(
        backbone_config=ResNetConfig(out_features=stages, downsample_in_bottleneck=False),
        num_queries=QUERIES,
        num_labels=CLASSES,
    )
    torch.manual_seed(0)
    model = Mask2FormerForUniversalSegmentation(config).eval()
    for name, parameter in model.named_parameters():  # norms of the backbone are fixed, as published
        parameter.requires_grad = ".normalization." not in name
    return model


def our_config() -> Config:
    overrides = {
        "model": {"backbone": {"pretrained": False}},
        "queries": {"kind": "static", "count": QUERIES},
        "classes": [f"class {i}" for i in range(CLASSES)],
    }
    return resolve("mask2former_r50_coco_instance", overrides)


def make_models() -> dict[str, nn.Module]:
    """Theirs and ours with equal weights, for inference."""
    theirs, config = their_model(), our_config()
    static = create_model(config).eval()
    static.load_state_dict(MASK2FORMER.from_huggingface(theirs.state_dict(), theirs.config.to_dict()))
    return {THEIRS: theirs, "static": static, "modulated": upgrade(static, config)[0]}


def make_masks(size: tuple[int, int], batch: int) -> tuple[Tensor, Tensor, list[Target]]:
    """As `make_input`, with discs in the boxes for masks."""
    images, padding, targets = make_input(size, batch)
    down, across = ((torch.arange(side) + 0.5) / side for side in size)
    with_masks = []
    for target in targets:
        x, y, width, height = (side[:, None, None] for side in target.boxes.unbind(1))  # [N, 1, 1]
        masks = ((across[None, None] - x) / width) ** 2 + ((down[None, :, None] - y) / height) ** 2 < 0.25  # [N, H, W]
        with_masks.append(replace(target, labels=target.labels % CLASSES, masks=masks))
    return images, padding, with_masks


def their_labels(targets: list[Target]) -> dict[str, list[Tensor]]:
    return {
        "mask_labels": [target.masks.float() for target in targets if target.masks is not None],
        "class_labels": [target.labels for target in targets],
    }


def check_equal(models: dict[str, nn.Module], criterion: nn.Module, batch: Batch) -> None:
    """The three models give the same logits and masks, train as many parameters, and have about the same loss."""
    images, padding, targets = batch.images, batch.padding, batch.targets
    theirs = models[THEIRS]
    with torch.no_grad():
        expected = theirs(pixel_values=images, pixel_mask=(~padding).long(), **their_labels(targets))
        for kind in ("static", "modulated"):
            found = models[kind](images, padding)
            torch.testing.assert_close(found.logits[-1], expected.class_queries_logits, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(found.final.masks.all()[0], expected.masks_queries_logits, rtol=1e-3, atol=1e-2)
            loss = criterion(found, targets).total  # at other random points
            torch.testing.assert_close(loss, expected.loss.squeeze(), rtol=2e-2, atol=0)
    ours, other = trainable(models["static"]), trainable(theirs)
    assert ours == other, (ours, other)


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def make_run(
    kind: str,
    task: str,
    model: nn.Module,
    criterion: nn.Module,
    batch: Batch,
    autocast: torch.autocast | None = None,
) -> Callable[[], object]:
    """What is timed: a batch through one of the models, both on the same device."""
    images, padding, targets = batch.images, batch.padding, batch.targets
    if kind == THEIRS:
        mask, labels = (~padding).long(), their_labels(targets)

        def predict():
            return model(pixel_values=images, pixel_mask=mask).masks_queries_logits

        def loss():
            return model(pixel_values=images, pixel_mask=mask, **labels).loss
    else:

        def predict():
            return model(images, padding).final.masks.all()

        def loss():
            return criterion(model(images, padding), targets).total

    return make_task(task, model, predict, loss, autocast)


def make_named(name: str, size: int, batch: int) -> Callable[[], object]:
    """One of the things that are timed: ``"inference, static"``, ``"step, transformers"``, ..."""
    task, kind = name.split(", ")
    model = make_models()[kind].train(task == "step" and kind != THEIRS)
    return make_run(kind, task, model, make_loss(our_config().loss), Batch(*make_masks((size, size), batch)))


NAMES = [f"{task}, {kind}" for task in ("inference", "step") for kind in ("transformers", "static", "modulated")]

RATIOS = [
    ("inference: transformers / static", "inference, transformers", "inference, static"),
    ("inference: transformers / modulated", "inference, transformers", "inference, modulated"),
    ("step: transformers / static", "step, transformers", "step, static"),
    ("step: transformers / modulated", "step, transformers", "step, modulated"),
    ("step: modulated / static", "step, modulated", "step, static"),
]


if __name__ == "__main__":
    compare(
        "Mask2Former R50",
        512,
        make_named,
        lambda size, batch: check_equal(
            make_models(), make_loss(our_config().loss), Batch(*make_masks((size, size), batch))
        ),
        NAMES,
        RATIOS,
    )
