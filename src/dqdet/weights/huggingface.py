"""Models of the Hugging Face ``transformers`` library, in the names of its older and newer versions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqdet.errors import DqdetError
from dqdet.weights.classes import UNUSED
from dqdet.weights.official import from_official
from dqdet.weights.renaming import Rule, State, fold_norms, merge_projections, rename

THEIR_CONFIG = "config.json"

MODEL_TYPES = {
    "detr": "detr",
    "conditional_detr": "conditional_detr",
    "dab-detr": "dab_detr",
    "deformable_detr": "deformable_detr",
    "mask2former": "mask2former",
}

# Options that change what a model computes, and the only value that dqdet has.
FIXED: dict[str, Any] = {
    "position_embedding_type": "sine",
    "dilation": False,
    "keep_query_pos": False,
    "normalize_before": False,
    "sine_position_embedding_scale": None,
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
}

# The same of a backbone, where a model's configuration has one.
FIXED_BACKBONE: dict[str, Any] = {
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "qkv_bias": True,
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}

# Options of Mask2Former's loss, and ours for them; they have the same defaults.
MASK2FORMER_LOSS = {
    "class_weight": "class_weight",
    "mask_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object_weight": "no_object_weight",
    "train_num_points": "points",
    "oversample_ratio": "oversample",
    "importance_sample_ratio": "important",
}

# What must be equal to another option, or to its default.
EQUAL: dict[str, tuple[str, Any]] = {
    "decoder_attention_heads": ("encoder_attention_heads", 8),
    "temperature_width": ("temperature_height", 20),
    "feature_size": ("hidden_dim", 256),
    "mask_feature_size": ("hidden_dim", 256),
}

# The library's names become the official ones. Here is what all models have, or only one of them.
COMMON: list[Rule] = [
    (r"^model\.(?=encoder|decoder|level_embed|reference_points|enc_output|pos_trans)", "transformer."),
    (r"^model\.", ""),
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "query_embed."),
    (r"^query_refpoint_embeddings\.", "refpoint_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.(self|cross)_attn\.o_proj\.", r".\1_attn.out_proj."),
    (r"\.(?:mlp\.)?fc([12])\.", r".linear\1."),
    (r"\.(?:mlp\.)?activation_fn\.", ".activation."),
    (r"(\.encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"(\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(\.decoder\.layers\.\d+)\.(?:mlp\.)?final_layer_norm\.", r"\1.norm3."),
    (r"\.decoder\.layernorm\.", ".decoder.norm."),
]

# Projections of Conditional-DETR's decoder layers in newer versions; older ones have the official names.
CONDITIONAL: list[Rule] = [
    (r"(\.decoder\..*)\.self_attn\.([qk])_(content|pos)_proj\.", r"\1.sa_\2\3_proj."),
    (r"(\.decoder\..*)\.self_attn\.v_proj\.", r"\1.sa_v_proj."),
    (r"(\.decoder\..*)\.cross_attn\.([qk])_(content|pos|pos_sine)_proj\.", r"\1.ca_\2\3_proj."),
    (r"(\.decoder\..*)\.cross_attn\.v_proj\.", r"\1.ca_v_proj."),
]

DAB: list[Rule] = [
    (r"\.self_attn\.self_attn_([qk])(?:uery|ey)_(content|pos)_proj\.", r".sa_\1\2_proj."),
    (r"\.self_attn\.self_attn_value_proj\.", ".sa_v_proj."),
    (r"\.self_attn\.self_attn\.output_proj\.", ".self_attn.out_proj."),
    (r"\.self_attn\.self_attn_layer_norm\.", ".norm1."),
    (r"\.cross_attn\.cross_attn_([qk])(?:uery|ey)_(content|pos|pos_sine)_proj\.", r".ca_\1\2_proj."),
    (r"\.cross_attn\.cross_attn_value_proj\.", ".ca_v_proj."),
    (r"\.cross_attn\.cross_attn\.output_proj\.", ".cross_attn.out_proj."),
    (r"\.cross_attn\.cross_attn_layer_norm\.", ".norm2."),
]

# Queries, keys and values of the remaining attentions, which the official code stacks.
STACKED: list[Rule] = [(r"\.([qkv])_proj\.(weight|bias)$", r".in_proj_\2.\1")]

# Norms of the decoder layers, which attend to the memory second and, in Deformable-DETR, have it norm1.
DENSE_NORMS: list[Rule] = [(r"\.self_attn_layer_norm\.", ".norm1."), (r"\.encoder_attn_layer_norm\.", ".norm2.")]
DEFORMABLE_NORMS: list[Rule] = [(r"\.self_attn_layer_norm\.", ".norm2."), (r"\.encoder_attn_layer_norm\.", ".norm1.")]

# With refinement every layer has its own heads, which the decoder refers to.
REFINED: list[Rule] = [(r"^(?:transformer\.decoder\.)?(class|bbox)_embed\.", r"transformer.decoder.\1_embed.")]

# The backbone is timm's or the library's own ResNet, nested once more in older versions and in DAB-DETR.
BACKBONE: list[Rule] = [
    (r"^backbone\.(?:conv_encoder\.)?model\.(?:_backbone\.)?", "backbone.0.body."),
    (r"^(backbone\.0\.body)\.embedder\.embedder\.convolution\.", r"\1.conv1."),
    (r"^(backbone\.0\.body)\.embedder\.embedder\.normalization\.", r"\1.bn1."),
    (r"^(backbone\.0\.body)\.encoder\.stages\.0\.layers\.", r"\1.layer1."),
    (r"^(backbone\.0\.body)\.encoder\.stages\.1\.layers\.", r"\1.layer2."),
    (r"^(backbone\.0\.body)\.encoder\.stages\.2\.layers\.", r"\1.layer3."),
    (r"^(backbone\.0\.body)\.encoder\.stages\.3\.layers\.", r"\1.layer4."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^(backbone\..*)\.layer\.0\.convolution\.", r"\1.conv1."),
    (r"^(backbone\..*)\.layer\.1\.convolution\.", r"\1.conv2."),
    (r"^(backbone\..*)\.layer\.2\.convolution\.", r"\1.conv3."),
    (r"^(backbone\..*)\.layer\.0\.normalization\.", r"\1.bn1."),
    (r"^(backbone\..*)\.layer\.1\.normalization\.", r"\1.bn2."),
    (r"^(backbone\..*)\.layer\.2\.normalization\.", r"\1.bn3."),
]

# Swin transformers, in older and newer names, become timm's: each stage begins with the step down before it.
SWIN: list[Rule] = [
    (r"^backbone\.model\.hidden_states_norms\.stage1\.", "backbone.norms.0."),
    (r"^backbone\.model\.hidden_states_norms\.stage2\.", "backbone.norms.1."),
    (r"^backbone\.model\.hidden_states_norms\.stage3\.", "backbone.norms.2."),
    (r"^backbone\.model\.hidden_states_norms\.stage4\.", "backbone.norms.3."),
    (r"^backbone\.model\.(?:swin\.)?embeddings\.patch_embeddings\.projection\.", "backbone.0.body.patch_embed.proj."),
    (r"^backbone\.model\.(?:swin\.)?embeddings\.norm\.", "backbone.0.body.patch_embed.norm."),
    (r"^backbone\.model\.(?:swin\.)?encoder\.layers\.0\.downsample\.", "backbone.0.body.layers_1.downsample."),
    (r"^backbone\.model\.(?:swin\.)?encoder\.layers\.1\.downsample\.", "backbone.0.body.layers_2.downsample."),
    (r"^backbone\.model\.(?:swin\.)?encoder\.layers\.2\.downsample\.", "backbone.0.body.layers_3.downsample."),
    (r"^backbone\.model\.(?:swin\.)?encoder\.layers\.(\d)\.", r"backbone.0.body.layers_\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.(?:self\.)?([qkv])(?:uery|ey|alue|_proj)\.(\w+)$", r".attn.qkv.\2.\1"),
    (r"\.attention\.(?:o_proj|output\.dense)\.", ".attn.proj."),
    (r"\.attention\.(?:self|relative_position_bias)\.(?=relative_position)", ".attn."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(\.blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
]

MASK2FORMER: list[Rule] = [
    (r"^model\.pixel_level_module\.encoder\.", "backbone.model."),
    *SWIN,
    *BACKBONE,
    (r"^backbone\.0\.", "backbone."),
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.level_embed$", "pixel_decoder.encoder.level_embed"),
    (r"^pixel_decoder\.input_projections\.", "pixel_decoder.input_proj."),
    (r"^pixel_decoder\.mask_projection\.", "pixel_decoder.mask_proj."),
    (r"^pixel_decoder\.adapter_1\.", "pixel_decoder.lateral."),
    (r"^pixel_decoder\.layer_1\.", "pixel_decoder.output."),
    (r"^(pixel_decoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^model\.transformer_module\.queries_embedder\.weight$", "queries.table.position"),
    (r"^model\.transformer_module\.queries_features\.weight$", "queries.table.content"),
    (r"^model\.transformer_module\.level_embed\.weight$", "level_embed"),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "norm."),
    (r"^model\.transformer_module\.decoder\.layers\.", "decoder."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"mask_head.layers.\1."),
    (r"^class_predictor\.", "class_head."),
    (r"^(decoder\.\d+)\.cross_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)$", r"\1.in_proj_\3.\2"),
    (r"^((?:pixel_)?decoder\..*)\.fc([12])\.", r"\1.feedforward.linear\2."),
    (r"\.final_layer_norm\.", ".feedforward.norm."),
]

# Class weights of the loss, which are a part of its configuration here, a norm of Swin transformers that no feature
# map passes through, and indices that follow from the window.
UNREAD = re.compile(r"^criterion\.|\.encoder\.(?:swin\.)?layernorm\.|\.relative_position_index$")

RULES: dict[str, list[Rule]] = {
    "detr": [*COMMON, *DENSE_NORMS, *STACKED, *BACKBONE],
    "conditional_detr": [*COMMON, *CONDITIONAL, *DENSE_NORMS, *STACKED, *BACKBONE],
    "dab_detr": [*COMMON, *DAB, *STACKED, *BACKBONE],
    "deformable_detr": [*COMMON, *DEFORMABLE_NORMS, *STACKED, *BACKBONE],
}


def from_huggingface(state: State, theirs: Mapping[str, Any]) -> State:
    """Our parameters from a state dict of ``transformers``.

    Args:
        state: of a ``...ForObjectDetection`` model, or of ``Mask2FormerForUniversalSegmentation``.
        theirs: its configuration.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    family = MODEL_TYPES[theirs["model_type"]]
    if family == "mask2former":
        state = {name: tensor for name, tensor in state.items() if not UNREAD.search(name)}
        return fold_norms(merge_projections(rename(state, MASK2FORMER)))
    if not theirs.get("with_box_refine"):
        return from_official(rename(state, RULES[family]), family)
    state = rename(state, RULES[family] + REFINED)
    # The library ties the heads of all layers unless it has read different ones, and writes tied ones once.
    for name, tensor in list(state.items()):
        if first := re.fullmatch(r"(transformer\.decoder\.(?:class|bbox)_embed\.)0(\..+)", name):
            for layer in range(1, theirs.get("decoder_layers", 6) + theirs.get("two_stage", False)):
                state.setdefault(f"{first[1]}{layer}{first[2]}", tensor)
    return from_official(state, family)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a Hugging Face model.

    Raises:
        DqdetError: it cannot be read, or has a family or an option that dqdet does not have.
    """
    try:
        theirs = json.loads((folder / THEIR_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DqdetError(f"{THEIR_CONFIG} cannot be read ({error})") from error
    model_type = theirs.get("model_type") if isinstance(theirs, dict) else None
    if model_type not in MODEL_TYPES:
        raise DqdetError(f"model_type is {model_type!r}; supported are {', '.join(MODEL_TYPES)}")
    backbone = theirs.get("backbone_config") or {}
    fixed = [(theirs, FIXED), (backbone, FIXED_BACKBONE)]
    fixed += [(theirs, {option: theirs.get(other, default)}) for option, (other, default) in EQUAL.items()]
    for options, values in fixed:
        for option, value in values.items():
            if options.get(option, value) != value:
                raise DqdetError(f"{THEIR_CONFIG} has {option}={options[option]}; supported is {value} only")
    return theirs


def their_heads(theirs: Mapping[str, Any]) -> int:
    """The number of attention heads."""
    return theirs.get("num_attention_heads" if theirs["model_type"] == "mask2former" else "encoder_attention_heads", 8)


def their_classes(theirs: Mapping[str, Any]) -> list[str]:
    """The names of the classes, in label order."""
    names = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # their default, which they leave out
    return [names.get(str(label), UNUSED) for label in range(len(names))]


def their_options(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model that its parameters do not tell, as overrides."""
    if theirs["model_type"] == "mask2former":
        return {"model.dropout": theirs.get("dropout", 0.0)} | {
            f"loss.{ours}": theirs[option] for option, ours in MASK2FORMER_LOSS.items() if option in theirs
        }
    options = {"model.dropout": theirs.get("dropout", 0.1)}
    if theirs["model_type"] == "dab-detr":
        options["model.temperature"] = theirs.get("temperature_height", 20)
    if theirs.get("two_stage"):
        options["queries.count"] = theirs.get("two_stage_num_proposals", 300)
    return options
