"""Models of the Hugging Face ``transformers`` library, in the names of its older and newer versions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dqdet.checkpoints.conversion import Rule, State, rename
from dqdet.checkpoints.official import from_official
from dqdet.checkpoints.shapes import UNUSED, class_options
from dqdet.errors import DqdetError

THEIR_CONFIG = "config.json"

MODEL_TYPES = {
    "detr": "detr",
    "conditional_detr": "conditional_detr",
    "dab-detr": "dab_detr",
    "deformable_detr": "deformable_detr",
}

# Options that change what a model computes, and the only value that dqdet has.
FIXED: dict[str, Any] = {
    "position_embedding_type": "sine",
    "dilation": False,
    "keep_query_pos": False,
    "normalize_before": False,
    "sine_position_embedding_scale": None,
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

RULES: dict[str, list[Rule]] = {
    "detr": [*COMMON, *DENSE_NORMS, *STACKED, *BACKBONE],
    "conditional_detr": [*COMMON, *CONDITIONAL, *DENSE_NORMS, *STACKED, *BACKBONE],
    "dab_detr": [*COMMON, *DAB, *STACKED, *BACKBONE],
    "deformable_detr": [*COMMON, *DEFORMABLE_NORMS, *STACKED, *BACKBONE],
}


def from_huggingface(state: State, theirs: Mapping[str, Any]) -> State:
    """Our parameters from the state dict of a ``...ForObjectDetection`` model with the given configuration.

    Raises:
        DqdetError: if two different parameters become one of ours.
    """
    family = MODEL_TYPES[theirs["model_type"]]
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
    equal = {"decoder_attention_heads": "encoder_attention_heads", "temperature_width": "temperature_height"}
    fixed = FIXED | {option: theirs.get(other) for option, other in equal.items()}
    for option, value in fixed.items():
        if theirs.get(option, value) != value:
            raise DqdetError(f"{THEIR_CONFIG} has {option}={theirs[option]}; supported is {value} only")
    return theirs


def their_options(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model that its parameters do not tell, as overrides."""
    names = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # their default, which they leave out
    classes = [names.get(str(label), UNUSED) for label in range(len(names))]
    official = class_options(len(classes))
    options = {
        "model.dropout": theirs.get("dropout", 0.1),
        "classes": classes,
        "category_ids": official["category_ids"] if classes == official["classes"] else [],
    }
    if theirs["model_type"] == "dab-detr":
        options["model.temperature"] = theirs.get("temperature_height", 20)
    if theirs.get("two_stage"):
        options["queries.count"] = theirs.get("two_stage_num_proposals", 300)
    return options
