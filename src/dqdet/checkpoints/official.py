"""Parameter names of the official implementations."""

from __future__ import annotations

from dqdet.checkpoints.conversion import Rule, State, fold_norms, rename, split_columns

COMMON: list[Rule] = [
    (r"^backbone\.0\.body\.", "backbone.body."),
    (r"^transformer\.", ""),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.(linear[12])\.", r".feedforward.\1."),
    (r"^query_weight\.", "queries.coefficients."),
    (r"^(decoder\.)?class_embed\.", "class_head."),
    (r"^(decoder\.)?bbox_embed\.", "box_head."),
]

DENSE_ENCODER: list[Rule] = [
    (r"^encoder\.layers\.", "encoder."),
    (r"^(encoder\.\d+)\.norm2\.", r"\1.feedforward.norm."),
]

DETR: list[Rule] = [
    *COMMON,
    *DENSE_ENCODER,
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"^(decoder\.\d+)\.norm3\.", r"\1.feedforward.norm."),
    (r"^decoder\.norm\.", "norm."),
    (r"^query_embed\.weight$", "queries.table.position"),
]

DEFORMABLE_DETR: list[Rule] = [
    *COMMON,
    (r"^level_embed$", "encoder.level_embed"),
    (r"^(encoder\.layers\.\d+)\.norm2\.", r"\1.feedforward.norm."),
    (r"^(decoder\.\d+)\.norm3\.", r"\1.feedforward.norm."),
    (r"^enc_output\.", "proposal_proj.0."),
    (r"^enc_output_norm\.", "proposal_proj.1."),
    (r"^pos_trans\.", "proposal_query.0."),
    (r"^pos_trans_norm\.", "proposal_query.1."),
]

# Without refinement all layers share one pair of heads, which the official state dict repeats.
SHARED_HEADS: list[Rule] = [(r"^(class|box)_head\.\d+\.", r"\1_head.0.")]


def from_official(state: State, family: str) -> State:
    """Our parameters from an official state dict (the ``model`` entry of a checkpoint) of the given family.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    dynamic = "query_weight.0.weight" in state
    if family == "detr":
        state = rename(state, DETR)
    else:
        refined = any(name.startswith("transformer.decoder.bbox_embed.") for name in state)
        state = rename(state, DEFORMABLE_DETR + ([] if refined else SHARED_HEADS))
        table = "queries.basic" if dynamic else "queries.table"
        state = split_columns(state, "query_embed.weight", [f"{table}.position", f"{table}.content"])
    return fold_norms(state)
