"""Parameter names of the Hugging Face ``transformers`` implementations, as saved by its older and newer versions."""

from __future__ import annotations

from dqdet.checkpoints.conversion import Rule, State, fold_norms, merge_projections, rename, split_columns
from dqdet.checkpoints.official import SHARED_HEADS

COMMON: list[Rule] = [
    (r"^model\.", ""),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.([qkv])_proj\.(weight|bias)$", r".in_proj_\2.\1"),
    (r"\.(self|cross)_attn\.o_proj\.", r".\1_attn.out_proj."),
    (r"\.(?:mlp\.)?fc([12])\.", r".feedforward.linear\1."),
    (r"\.final_layer_norm\.", ".feedforward.norm."),
    (r"^(encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
]

DETR: list[Rule] = [
    *COMMON,
    (r"^(decoder\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"^decoder\.layernorm\.", "norm."),
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.weight$", "queries.table.position"),
    (r"^class_labels_classifier\.", "class_head."),
    (r"^bbox_predictor\.", "box_head."),
]

DEFORMABLE_DETR: list[Rule] = [
    *COMMON,
    (r"^(decoder\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
    (r"^level_embed$", "encoder.level_embed"),
    (r"^(?:decoder\.)?class_embed\.", "class_head."),
    (r"^(?:decoder\.)?bbox_embed\.", "box_head."),
    (r"^enc_output\.", "proposal_proj.0."),
    (r"^enc_output_norm\.", "proposal_proj.1."),
    (r"^pos_trans\.", "proposal_query.0."),
    (r"^pos_trans_norm\.", "proposal_query.1."),
]

# The backbone is timm's own or transformers' ResNet; older files nest both once more.
BACKBONE: list[Rule] = [
    (r"^backbone\.conv_encoder\.model\.", "backbone.model."),
    (r"^backbone\.(?:model\.)?_backbone\.", "backbone.body."),
    (r"^backbone\.model\.(?=conv1|bn1|layer\d)", "backbone.body."),
    (r"^backbone\.model\.embedder\.embedder\.convolution\.", "backbone.body.conv1."),
    (r"^backbone\.model\.embedder\.embedder\.normalization\.", "backbone.body.bn1."),
    (r"^backbone\.model\.encoder\.stages\.0\.layers\.", "backbone.body.layer1."),
    (r"^backbone\.model\.encoder\.stages\.1\.layers\.", "backbone.body.layer2."),
    (r"^backbone\.model\.encoder\.stages\.2\.layers\.", "backbone.body.layer3."),
    (r"^backbone\.model\.encoder\.stages\.3\.layers\.", "backbone.body.layer4."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^(backbone\..*)\.layer\.0\.convolution\.", r"\1.conv1."),
    (r"^(backbone\..*)\.layer\.1\.convolution\.", r"\1.conv2."),
    (r"^(backbone\..*)\.layer\.2\.convolution\.", r"\1.conv3."),
    (r"^(backbone\..*)\.layer\.0\.normalization\.", r"\1.bn1."),
    (r"^(backbone\..*)\.layer\.1\.normalization\.", r"\1.bn2."),
    (r"^(backbone\..*)\.layer\.2\.normalization\.", r"\1.bn3."),
]


def from_huggingface(state: State, family: str) -> State:
    """Our parameters from the state dict of a ``...ForObjectDetection`` model of the given family.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    if family == "detr":
        state = rename(state, DETR + BACKBONE)
    else:
        refined = any(name.startswith("model.decoder.bbox_embed.") for name in state)
        state = rename(state, DEFORMABLE_DETR + BACKBONE + ([] if refined else SHARED_HEADS))
        state = split_columns(
            state, "query_position_embeddings.weight", ["queries.table.position", "queries.table.content"]
        )
    return fold_norms(merge_projections(state))
