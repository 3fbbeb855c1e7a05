"""Deformable-DETR: the code of its authors, and ``transformers``."""

from __future__ import annotations

import re
from typing import Any

from dqdet.config import DeformableDetrConfig
from dqdet.weights import detr
from dqdet.weights.huggingface import HuggingFace, Theirs
from dqdet.weights.published import Published
from dqdet.weights.renaming import Rule, State, rename, split_queries

RULES: list[Rule] = [
    *detr.RULES,
    (r"^level_embed$", "encoder.level_embed"),
    (r"^enc_output\.", "proposal_proj.0."),
    (r"^enc_output_norm\.", "proposal_proj.1."),
    (r"^pos_trans\.", "proposal_query.0."),
    (r"^pos_trans_norm\.", "proposal_query.1."),
]


def split_and_share(state: State) -> State:
    """Without refinement all layers share one pair of heads, which the official state dict repeats."""
    if not any(name.startswith("transformer.decoder.bbox_embed.") for name in state):
        state = rename(state, [(r"^(class|bbox)_embed\.\d+\.", r"\1_embed.0.")])
    return split_queries(state, "query_embed.weight")


def untie(state: State, theirs: Theirs) -> State:
    """With refinement every layer has its own heads, which the library may tie, and then writes once."""
    if not theirs.get("with_box_refine"):
        return state
    state = rename(state, [(r"^(?:transformer\.decoder\.)?(class|bbox)_embed\.", r"transformer.decoder.\1_embed.")])
    for name, tensor in list(state.items()):
        if first := re.fullmatch(r"(transformer\.decoder\.(?:class|bbox)_embed\.)0(\..+)", name):
            for layer in range(1, theirs.get("decoder_layers", 6) + theirs.get("two_stage", False)):
                state.setdefault(f"{first[1]}{layer}{first[2]}", tensor)
    return state


def levels_and_points(state: State, heads: int) -> dict[str, Any]:
    levels = len(state["encoder.level_embed"])
    points = len(state["decoder.0.cross_attn.attention_weights.bias"]) // (heads * levels)
    return {"model.levels": levels, "model.points": points}


DEFORMABLE_DETR = Published(
    config=DeformableDetrConfig,
    sign="transformer.level_embed",
    rules=RULES,
    prepare=split_and_share,
    options=lambda state, heads: {
        **levels_and_points(state, heads),
        "model.two_stage": "proposal_proj.0.weight" in state,
        "model.refine": "box_head.1.layers.0.weight" in state,
    },
    dynamic={"queries.coefficients": "softmax"},
    huggingface=HuggingFace(
        "deformable_detr",
        rules=[  # the decoder's layers attend to the memory first
            (r"(\.decoder\..*)\.self_attn_layer_norm\.", r"\1.norm2."),
            (r"(\.decoder\..*)\.encoder_attn_layer_norm\.", r"\1.norm1."),
            *detr.HUGGINGFACE,
        ],
        complete=untie,
        options=lambda theirs: (
            {"queries.count": theirs.get("two_stage_num_proposals", 300)} if theirs.get("two_stage") else {}
        ),
    ),
)
