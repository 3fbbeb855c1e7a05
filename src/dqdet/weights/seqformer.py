"""Parameter names of SeqFormer's implementation."""

from __future__ import annotations

import re

from dqdet.weights.detectron2 import SWIN
from dqdet.weights.official import DEFORMABLE_DETR, DYNAMIC
from dqdet.weights.renaming import Rule, State, fold_norms, rename, split_columns

# Swin transformers have a norm for each stage, but no map of the first is read.
BACKBONE: list[Rule] = [
    (r"^detr\.backbone\.0\.body\.norm1\.", "backbone.norms.0."),
    (r"^detr\.backbone\.0\.body\.norm2\.", "backbone.norms.1."),
    (r"^detr\.backbone\.0\.body\.norm3\.", "backbone.norms.2."),
    (r"^detr\.backbone\.0\.body\.(?=layers\.|patch_embed\.)", "backbone."),
    *SWIN,
]

RULES: list[Rule] = [
    *BACKBONE,
    (r"^detr\.", ""),
    *DEFORMABLE_DETR,
    (r"\.self_attn_box\.", ".box_self_attn."),
    (r"\.cross_attn\.output_proj_box\.", ".box_output_proj."),
    (r"\.norm([12])_box\.", r".box_norm\1."),
    (r"\.norm3_box\.", ".box_feedforward.norm."),
    (r"\.(linear[12])_box\.", r".box_feedforward.\1."),
    (r"\.time_attention_weights\.", ".frame_weights."),
    (r"^controller\.", "mask_parameters."),
    (r"^mask_head\.lay3\.", "mask_features.convs.0."),
    (r"^mask_head\.lay4\.", "mask_features.convs.1."),
    (r"^mask_head\.dcn\.", "mask_features.convs.2."),
    (r"^mask_head\.lay1\.", "mask_features.convs.3."),
    (r"^mask_head\.lay2\.", "mask_features.convs.4."),
]

# The encoder's attention has a projection for boxes, as the decoder's has, but no boxes. Indices follow from windows.
UNUSED = re.compile(r"\.encoder\.layers\.\d+\.self_attn\.output_proj_box\.|\.body\.norm0\.|\.relative_position_index$")


def from_seqformer(state: State) -> State:
    """Our parameters from the state dict (the ``model`` entry of a checkpoint) of SeqFormer.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    state = {name: tensor for name, tensor in state.items() if not UNUSED.search(name)}
    tables = ["queries.table.position", "queries.table.content"]
    state = split_columns(state, "detr.query_embed.weight", tables)
    rules = [*RULES, *DYNAMIC] if "detr.query_weight.0.weight" in state else RULES
    return fold_norms(rename(state, rules))
