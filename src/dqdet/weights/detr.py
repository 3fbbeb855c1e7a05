"""DETR: the code of its authors, whose names the families after it keep, and ``transformers``."""

from dqdet.config import DetrConfig
from dqdet.weights.backbones import HUGGINGFACE_RESNET
from dqdet.weights.huggingface import HuggingFace
from dqdet.weights.published import Published
from dqdet.weights.renaming import Rule

RULES: list[Rule] = [
    (r"^backbone\.0\.body\.", "backbone.body."),
    (r"^transformer\.", ""),
    (r"^decoder\.layers\.", "decoder."),
    (r"\.(linear[12]|activation)\.", r".feedforward.\1."),
    (r"^(?:(encoder\.layers\.\d+)\.norm2|(decoder\.\d+)\.norm3)\.", r"\1\2.feedforward.norm."),
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"^decoder\.norm\.", "norm."),
    (r"^(decoder\.)?class_embed\.", "class_head."),
    (r"^(decoder\.)?bbox_embed\.", "box_head."),
    (r"^query_weight\.", "queries.coefficients."),
    (r"^query_embed\.weight$", "queries.table.position"),
]

# The library's names become the official ones, which stack queries, keys and values of an attention.
HUGGINGFACE: list[Rule] = [
    (r"^model\.(?=encoder|decoder)", "transformer."),
    (r"^model\.", ""),
    (r"^input_projection\.", "input_proj."),
    (r"^query_position_embeddings\.", "query_embed."),
    (r"^class_labels_classifier\.", "class_embed."),
    (r"^bbox_predictor\.", "bbox_embed."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.(self|cross)_attn\.o_proj\.", r".\1_attn.out_proj."),
    (r"\.(?:mlp\.)?fc([12])\.", r".linear\1."),
    (r"\.(?:mlp\.)?activation_fn\.", ".activation."),
    (r"(\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
    (r"(\.decoder\.layers\.\d+)\.(?:mlp\.)?final_layer_norm\.", r"\1.norm3."),
    (r"\.decoder\.layernorm\.", ".decoder.norm."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"\.([qkv])_proj\.(weight|bias)$", r".in_proj_\2.\1"),
    *HUGGINGFACE_RESNET,
]

DETR = Published(
    config=DetrConfig,
    sign="transformer.decoder.layers.0.multihead_attn.in_proj_weight",
    rules=RULES,
    huggingface=HuggingFace("detr", HUGGINGFACE),
)
