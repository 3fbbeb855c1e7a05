"""What the names and shapes of published weights tell about the model that they belong to."""

from __future__ import annotations

import re
from typing import Any

from dqdet.checkpoints.conversion import State
from dqdet.config import Config, resolve
from dqdet.data.categories import COCO_CATEGORIES
from dqdet.errors import DqdetError

# A parameter that only this family has among those that follow, by its official name.
OFFICIAL_SIGNS: dict[str, str] = {
    "dab_deformable_detr": "tgt_embed.weight",
    "deformable_detr": "transformer.level_embed",
    "smca_detr": "transformer.decoder.layers.0.point1.layers.0.weight",
    "dab_detr": "refpoint_embed.weight",
    "conditional_detr": "transformer.decoder.ref_point_head.layers.0.weight",
    "detr": "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
}

# Blocks of the four stages, and whether a block has a third convolution.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

# The published models have an output for every id up to COCO's highest. Some ids are not used.
COCO_OUTPUTS = max(COCO_CATEGORIES) + 1
UNUSED = "N/A"


def describe(state: State, family: str, heads: int = 8, count: int | None = None) -> Config:
    """The configuration of the model that parameters (ours, after conversion) are of.

    Args:
        state: all parameters of the model.
        family: of the model.
        heads: of its attention; these leave no trace in parameters.
        count: of its queries at inference, if known. By default there are four basic queries behind each modulated
            one, as published.

    Raises:
        DqdetError: a parameter is missing, or the backbone is not one of `RESNETS`.
    """
    try:
        options = {
            **_model(state, family, heads),
            **_queries(state, family, count),
            **class_options(_count_classes(state, family)),
        }
    except KeyError as error:
        raise DqdetError(f"looks like {family}, but has no {error.args[0]}") from error
    return resolve(f"{family}_r50", options)


def class_options(count: int) -> dict[str, Any]:
    """Names and ids of so many classes: COCO's, or numbers where it cannot be COCO."""
    if count != COCO_OUTPUTS:
        return {"classes": [f"class {label}" for label in range(count)], "category_ids": []}
    return {
        "classes": [COCO_CATEGORIES.get(label, UNUSED) for label in range(count)],
        "category_ids": list(range(count)),
    }


def _model(state: State, family: str, heads: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model.backbone.name": _backbone(state),
        "model.hidden": len(state["decoder.0.norm1.weight"]),
        "model.heads": heads,
        "model.encoder_layers": _depth(state, "encoder.layers."),
        "model.decoder_layers": _depth(state, "decoder."),
        "model.feedforward": len(state["decoder.0.feedforward.linear1.bias"]),
    }
    if family == "dab_detr":
        options["model.activation"] = "prelu" if "decoder.0.feedforward.activation.weight" in state else "relu"
        options["model.patterns"] = len(state.get("patterns", ()))
    if family in ("deformable_detr", "dab_deformable_detr"):
        options["model.levels"] = levels = len(state["encoder.level_embed"])
        options["model.points"] = len(state["decoder.0.cross_attn.attention_weights.bias"]) // (heads * levels)
    if family == "deformable_detr":
        options["model.two_stage"] = "proposal_proj.0.weight" in state
        options["model.refine"] = "box_head.1.layers.0.weight" in state
    return options


def _queries(state: State, family: str, count: int | None) -> dict[str, Any]:
    tables = [table for name, table in state.items() if name.startswith(("queries.table.", "queries.basic."))]
    if "queries.coefficients.0.weight" not in state:
        count = len(tables[0]) if tables else count  # without tables the encoder proposes as many as wanted
        return {"queries.kind": "static"} | ({} if count is None else {"queries.count": count})
    basic = len(tables[0])
    count = count or basic // 4
    return {  # as the code with dynamic queries was published
        "queries.kind": "modulated",
        "queries.count": count,
        "queries.ratio": basic // count,
        "queries.hidden": len(state["queries.coefficients.0.weight"]),
        "queries.pool": "max",
        "queries.pool_padding": True,
        "queries.coefficients": "softmax" if family == "deformable_detr" else "raw",
        "loss.beta": 0.5 if family in ("dab_detr", "dab_deformable_detr") else 1.0,
    }


def _count_classes(state: State, family: str) -> int:
    bias = state["class_head.0.bias"] if "class_head.0.bias" in state else state["class_head.bias"]
    return len(bias) - (family in ("detr", "smca_detr"))  # these have an output more


def _depth(state: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if re.match(rf"{prefix}\d", name)})


def _backbone(state: State) -> str:
    stages = tuple(_depth(state, f"backbone.body.layer{stage}.") for stage in (1, 2, 3, 4))
    name = RESNETS.get((stages, "backbone.body.layer1.0.conv3.weight" in state))
    if name is None:
        raise DqdetError(f"the backbone is none of {', '.join(RESNETS.values())}, with batch norms")
    return name
