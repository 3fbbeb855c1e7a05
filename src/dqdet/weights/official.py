"""Parameter names of the official implementations."""

from __future__ import annotations

from dqdet.weights.renaming import Rule, State, fold_norms, merge_projections, rename, split_columns

COMMON: list[Rule] = [
    (r"^backbone\.0\.body\.", "backbone.body."),
    (r"^transformer\.", ""),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.(linear[12]|activation)\.", r".feedforward.\1."),
    (r"^(encoder\.layers\.\d+)\.norm2\.", r"\1.feedforward.norm."),
    (r"^(decoder\.\d+)\.norm3\.", r"\1.feedforward.norm."),
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"^decoder\.norm\.", "norm."),
    (r"^(decoder\.)?class_embed\.", "class_head."),
    (r"^(decoder\.)?bbox_embed\.", "box_head."),
    (r"^query_weight\.", "queries.coefficients."),
    (r"^query_embed\.weight$", "queries.table.position"),
    (r"^tgt_embed\.weight$", "queries.table.content"),
    (r"^refpoint_embed\.weight$", "queries.table.anchor"),
]

CONDITIONAL_LAYER: list[Rule] = [
    (r"\.sa_([qk])content_proj\.(\w+)$", r".self_attn.content_proj.\2.\1"),
    (r"\.sa_v_proj\.(\w+)$", r".self_attn.content_proj.\1.v"),
    (r"\.sa_([qk])pos_proj\.(\w+)$", r".self_attn.position_proj.\2.\1"),
    (r"\.ca_qcontent_proj\.", ".cross_attn.query_proj."),
    (r"\.ca_qpos_proj\.", ".cross_attn.query_position_proj."),
    (r"\.ca_qpos_sine_proj\.", ".cross_attn.spatial_query_proj."),
    (r"\.ca_kcontent_proj\.(\w+)$", r".cross_attn.memory_proj.\1.k"),
    (r"\.ca_v_proj\.(\w+)$", r".cross_attn.memory_proj.\1.v"),
    (r"\.ca_kpos_proj\.", ".cross_attn.spatial_key_proj."),
]

DEFORMABLE_DETR: list[Rule] = [
    *COMMON,
    (r"^level_embed$", "encoder.level_embed"),
    (r"^enc_output\.", "proposal_proj.0."),
    (r"^enc_output_norm\.", "proposal_proj.1."),
    (r"^pos_trans\.", "proposal_query.0."),
    (r"^pos_trans_norm\.", "proposal_query.1."),
]

RULES: dict[str, list[Rule]] = {
    "detr": COMMON,
    "conditional_detr": [
        *COMMON,
        *CONDITIONAL_LAYER,
        (r"^decoder\.query_scale\.", "spatial_scale."),
        (r"^decoder\.ref_point_head\.", "reference_head."),
    ],
    "smca_detr": [
        *COMMON,
        (r"^decoder\.0\.point1\.", "centre_head."),
        (r"\.point2\.", ".offset_head."),
        (r"\.point3\.", ".scale_head."),
        (r"\.norm4\.", ".spatial_norm."),
    ],
    "dab_detr": [
        *COMMON,
        *CONDITIONAL_LAYER,
        (r"^patterns\.weight$", "patterns"),
        (r"^encoder\.query_scale\.", "encoder.position_scale."),
        (r"^decoder\.query_scale\.", "spatial_scale."),
        (r"^decoder\.ref_point_head\.", "position_head."),
        (r"^decoder\.ref_anchor_head\.", "size_head."),
    ],
    "deformable_detr": DEFORMABLE_DETR,
    "dab_deformable_detr": [
        *DEFORMABLE_DETR,
        (r"^decoder\.query_scale\.", "position_scale."),
        (r"^decoder\.ref_point_head\.", "position_head."),
    ],
}

# Without refinement all layers share one pair of heads, which the official state dict repeats.
SHARED_HEADS: list[Rule] = [(r"^(class|box)_head\.\d+\.", r"\1_head.0.")]

# Where queries are combined, the same tables hold the basic queries.
DYNAMIC: list[Rule] = [(r"^queries\.table\.", "queries.basic.")]


def from_official(state: State, family: str) -> State:
    """Our parameters from an official state dict (the ``model`` entry of a checkpoint) of the given family.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    rules = list(RULES[family])
    if family == "deformable_detr":
        state = split_columns(state, "query_embed.weight", ["queries.table.position", "queries.table.content"])
        if not any(name.startswith("transformer.decoder.bbox_embed.") for name in state):
            rules += SHARED_HEADS
    if "query_weight.0.weight" in state:
        rules += DYNAMIC
    return fold_norms(merge_projections(rename(state, rules)))
