"""Mask2Former, for images and video: the code of its authors on detectron2, and ``transformers`` (images)."""

from __future__ import annotations

from typing import Any

from dqdet.config import Mask2FormerConfig
from dqdet.formats import cityscapes
from dqdet.formats.categories import COCO_CATEGORIES, COCO_STUFF, YOUTUBE_VIS_CATEGORIES
from dqdet.weights.backbones import DETECTRON2_RESNET, DETECTRON2_SWIN, HUGGINGFACE_RESNET, HUGGINGFACE_SWIN
from dqdet.weights.classes import Classes
from dqdet.weights.huggingface import HuggingFace
from dqdet.weights.published import Published
from dqdet.weights.renaming import Rule, State, count_modules

RULES: list[Rule] = [
    (r"^criterion\.empty_weight$", ""),  # class weights of the loss are a part of its configuration here
    *DETECTRON2_RESNET,
    *DETECTRON2_SWIN,
    # Older files have the pixel decoder directly in the head.
    (r"^sem_seg_head\.(?!predictor\.)(?:pixel_decoder\.)?", "pixel_decoder."),
    (r"^pixel_decoder\.transformer\.(?:encoder\.)?", "pixel_decoder.encoder."),
    (r"^(pixel_decoder\.encoder\..*)\.(linear[12])\.", r"\1.feedforward.\2."),
    (r"^(pixel_decoder\.encoder\..*)\.norm2\.", r"\1.feedforward.norm."),
    (r"^pixel_decoder\.adapter_1\.", "pixel_decoder.lateral.0."),
    (r"^pixel_decoder\.layer_1\.", "pixel_decoder.output.0."),
    (r"^(pixel_decoder\.(?:lateral|output))\.0\.norm\.", r"\1.1."),
    (r"^pixel_decoder\.mask_features\.", "pixel_decoder.mask_proj."),
    (r"^sem_seg_head\.predictor\.", ""),
    (r"^transformer_cross_attention_layers\.(\d+)\.norm\.", r"decoder.\1.norm1."),
    (r"^transformer_self_attention_layers\.(\d+)\.norm\.", r"decoder.\1.norm2."),
    (r"^transformer_(cross|self)_attention_layers\.(\d+)\.(?:multihead|self)_attn\.", r"decoder.\2.\1_attn."),
    (r"^transformer_ffn_layers\.(\d+)\.", r"decoder.\1.feedforward."),
    (r"^decoder_norm\.", "norm."),
    (r"^class_embed\.", "class_head."),
    (r"^mask_embed\.", "mask_head."),
    (r"^level_embed\.weight$", "level_embed"),
    (r"^(?:query_feat|static_query)\.weight$", "queries.table.content"),
    (r"^query_embed\.weight$", "queries.table.position"),
    (r"^query_weight\.", "queries.coefficients."),
]

HUGGINGFACE: list[Rule] = [
    (r"^criterion\..*", ""),
    (r"^model\.pixel_level_module\.encoder\.", "backbone.model."),
    *HUGGINGFACE_SWIN,
    *HUGGINGFACE_RESNET,
    (r"^backbone\.0\.", "backbone."),
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.level_embed$", "pixel_decoder.encoder.level_embed"),
    (r"^pixel_decoder\.(input|mask)_projections?\.", r"pixel_decoder.\1_proj."),
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
    (r"^(pixel_decoder\..*)\.fc([12])\.", r"\1.linear\2."),
    (r"^(decoder\..*)\.fc([12])\.", r"\1.feedforward.linear\2."),
    (r"\.final_layer_norm\.", ".feedforward.norm."),
]

# Options of the loss in ``transformers``, and ours for them; they have the same defaults.
LOSS = {option: option for option in ("class_weight", "mask_weight", "dice_weight", "no_object_weight")}
LOSS |= {"train_num_points": "points", "oversample_ratio": "oversample", "importance_sample_ratio": "important"}

CITYSCAPES = {label.id: label.name for label in cityscapes.CLASSES}

# By the number of outputs, without the one for "no object". The parameters are the same for images and video, so those
# with the 40 classes of YouTube-VIS are taken to be for video.
CLASSES: dict[int, Classes] = {
    80: Classes(COCO_CATEGORIES, "mask2former_{}_coco_instance"),
    133: Classes(COCO_CATEGORIES | COCO_STUFF, "mask2former_{}_coco_panoptic", things=COCO_CATEGORIES),
    8: Classes(cityscapes.THINGS, "mask2former_{}_cityscapes_instance"),
    19: Classes(CITYSCAPES, "mask2former_{}_cityscapes_panoptic", things=cityscapes.THINGS),
    40: Classes(YOUTUBE_VIS_CATEGORIES, "video_mask2former_{}"),
}


def options(state: State, heads: int) -> dict[str, Any]:
    width, hidden = len(state["pixel_decoder.mask_proj.bias"]), len(state["level_embed"][0])
    first, levels = "pixel_decoder.encoder.layers.0", len(state["level_embed"])
    # The norms of a ResNet are folded in conversion; nothing else is frozen.
    frozen = {"model.backbone.freeze": "norms"} if "backbone.body.conv1.weight" in state else {}
    return frozen | {
        "model.encoder_layers": count_modules(state, "pixel_decoder.encoder.layers."),
        "model.points": len(state[f"{first}.self_attn.attention_weights.bias"]) // (heads * levels),
        "model.encoder_feedforward": len(state[f"{first}.feedforward.linear1.bias"]),
        "model.mask_channels": None if width == hidden else width,
        "model.see_padding": True,  # as published
    }


MASK2FORMER = Published(
    config=Mask2FormerConfig,
    sign="sem_seg_head.predictor.decoder_norm.weight",
    rules=RULES,
    options=options,
    classes=CLASSES,
    presets="mask2former_{}_coco_instance",
    ratios={"instance": 6, "panoptic": 6},
    huggingface=HuggingFace(
        "mask2former",
        HUGGINGFACE,
        fixed=lambda theirs: {
            "pre_norm": False,
            "enforce_input_projection": False,
            "common_stride": 4,
            "feature_strides": [4, 8, 16, 32],
            "feature_size": theirs.get("hidden_dim", 256),
        },
        options=lambda theirs: {
            "model.dropout": theirs.get("dropout", 0.0),
            **{f"loss.{ours}": theirs[option] for option, ours in LOSS.items() if option in theirs},
        },
        heads="num_attention_heads",
        processor="Mask2FormerImageProcessor",
        divisor=32,
    ),
)
