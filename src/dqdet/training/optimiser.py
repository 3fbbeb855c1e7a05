"""The published optimisation recipes: AdamW, learning rates of parts, and a schedule of steps or a polynomial."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from timm.optim import param_groups_layer_decay
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from dqdet.config import TrainConfig, drop_places, total_steps

OFFSETS = ("sampling_offsets", "reference_points")  # the layers that say where deformable attention looks
DECODER = re.compile(r"(decoder|norm|position_head)\.")
NO_DECAY = ", no decay"  # at the end of a group's name
# What learns without weight decay, where norms and embeddings do: modules (a dict of parameters holds the queries'
# tables), and parameters by their names. The pixel decoder's embedding of levels decays in the published code, too.
UNDECAYED_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm, nn.ParameterDict)
UNDECAYED = re.compile(r"^level_embed$|\.relative_position_bias_table$")


def make_optimiser(model: nn.Module, config: TrainConfig) -> AdamW:
    """AdamW with the groups of the published recipes: backbone, sampling locations, decoder, everything else.

    A learning rate of 0 freezes the backbone. Weight decay applies to all parameters, or, with
    ``config.decay_norms`` off, to all but norms, learned queries, and embeddings of levels and positions: these are
    groups of their own then. With ``config.layer_decay`` the blocks of the backbone are, too.
    """
    freeze(model, config)
    decay = config.layer_decay
    layers = {} if decay is None else _layers(model.get_submodule("backbone.body"), decay)
    rates = {
        "rest": config.lr,
        "backbone": config.backbone_lr,
        "offsets": config.offsets_lr,
        "decoder": config.decoder_lr or config.lr,
        **{f"backbone {scale:.3g}": config.backbone_lr * scale for scale, _ in layers.values()},
    }
    groups: dict[str, dict[str, Any]] = {}
    for name in rates:
        groups[name] = {"params": [], "lr": rates[name], "weight_decay": config.weight_decay}
        groups[name + NO_DECAY] = {"params": [], "lr": rates[name], "weight_decay": 0.0}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not parameter.requires_grad:
                continue
            if parameter in layers:
                scale, decays = layers[parameter]
                groups[f"backbone {scale:.3g}" + ("" if decays else NO_DECAY)]["params"].append(parameter)
                continue
            undecayed = isinstance(module, UNDECAYED_MODULES) or UNDECAYED.search(name)
            suffix = NO_DECAY if undecayed and not config.decay_norms else ""
            groups[_group(name, config) + suffix]["params"].append(parameter)
    return AdamW([{"name": name, **group} for name, group in groups.items() if group["params"]])


def freeze(model: nn.Module, config: TrainConfig) -> None:
    """Hold what does not learn. Processes that train together wait for the gradients of all else.

    In evaluation mode, so that batch norms keep their statistics too, and no path is dropped.
    """
    if config.backbone_lr == 0:
        model.get_submodule("backbone").requires_grad_(False).eval()


def _layers(transformer: Any, layer_decay: float) -> dict[nn.Parameter, tuple[float, bool]]:
    """Of the parameters, the factor on their learning rate, and whether they decay; by timm's rule."""
    positions = transformer.no_weight_decay()
    groups = param_groups_layer_decay(transformer, 1.0, no_weight_decay_list=positions, layer_decay=layer_decay)
    return {p: (group["lr_scale"], bool(group["weight_decay"])) for group in groups for p in group["params"]}


def _group(parameter: str, config: TrainConfig) -> str:
    if parameter.startswith("backbone."):
        return "backbone"
    if any(name in parameter.split(".") for name in OFFSETS):
        return "offsets"
    return "decoder" if config.decoder_lr is not None and DECODER.match(parameter) else "rest"


def make_schedule(optimiser: AdamW, config: TrainConfig, steps_per_epoch: int) -> LambdaLR:
    """The learning rates over the training, stepped every step; see :func:`learning_rate_factor`."""
    return LambdaLR(optimiser, learning_rate_factor(config, steps_per_epoch))


def follow(schedule: LambdaLR) -> None:
    """Set the learning rates of the step that was reached: a checkpoint has those of its own training's length."""
    optimiser, step = schedule.optimizer, schedule.last_epoch
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(optimiser.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def learning_rate_factor(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor on the learning rates as a function of the optimiser steps taken so far.

    After a linear warm-up it is divided by ten at each of ``config.drop`` or ``config.drop_steps``, or (``poly``; Chen
    et al., "DeepLab", 2017) a power of the share of all steps that are left.
    """
    drops = drop_places(config, steps_per_epoch)
    last = total_steps(config, steps_per_epoch)

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
        if config.schedule == "poly":
            return warm * max(0.0, 1 - step / last) ** config.power
        return warm * 0.1 ** bisect_right(drops, step)

    return factor
