"""The published optimisation recipe: AdamW, three learning rates, and steps down by ten."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from dqdet.config import TrainConfig

OFFSETS = ("sampling_offsets", "reference_points")  # the layers that say where deformable attention looks


def make_optimiser(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW with the groups of the published recipes: backbone, sampling locations, everything else.

    Weight decay applies to all parameters, as published. A learning rate of 0 freezes the backbone.
    """
    if config.backbone_lr == 0:
        model.get_submodule("backbone").requires_grad_(False)
    groups: dict[str, dict[str, Any]] = {
        "rest": {"params": [], "lr": config.lr},
        "backbone": {"params": [], "lr": config.backbone_lr},
        "offsets": {"params": [], "lr": config.offsets_lr},
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_group(name)]["params"].append(parameter)
    used = [{"name": name, **group} for name, group in groups.items() if group["params"]]
    return AdamW(used, weight_decay=config.weight_decay)


def _group(parameter: str) -> str:
    if parameter.startswith("backbone."):
        return "backbone"
    return "offsets" if any(name in parameter.split(".") for name in OFFSETS) else "rest"


def make_schedule(optimiser: AdamW, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """All learning rates are divided by ten at each of ``config.drop``, after a linear warm-up. Stepped every step."""
    return LambdaLR(optimiser, learning_rate_factor(config, steps_per_epoch))


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor on the learning rates as a function of the optimiser steps taken so far."""
    drops = sorted(round(epoch * steps_per_epoch) for epoch in config.drop)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        return warm * 0.1 ** bisect_right(drops, step)

    return factor
