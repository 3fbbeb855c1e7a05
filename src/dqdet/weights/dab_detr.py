"""DAB-DETR: the code of its authors, and ``transformers``."""

from __future__ import annotations

from dqdet.config import DabDetrConfig
from dqdet.weights import conditional_detr, detr
from dqdet.weights.huggingface import HuggingFace
from dqdet.weights.published import Published

DAB_DETR = Published(
    config=DabDetrConfig,
    sign="refpoint_embed.weight",
    rules=[
        *detr.RULES,
        *conditional_detr.LAYER,
        (r"^patterns\.weight$", "patterns"),
        (r"^encoder\.query_scale\.", "encoder.position_scale."),
        (r"^decoder\.query_scale\.", "spatial_scale."),
        (r"^decoder\.ref_point_head\.", "position_head."),
        (r"^decoder\.ref_anchor_head\.", "size_head."),
    ],
    options=lambda state, heads: {
        "model.activation": "prelu" if "decoder.0.feedforward.activation.weight" in state else "relu",
        "model.patterns": len(state.get("patterns", ())),
    },
    dynamic={"loss.beta": 0.5},
    huggingface=HuggingFace(
        "dab-detr",
        rules=[
            (r"\.self_attn\.self_attn_([qk])(?:uery|ey)_(content|pos)_proj\.", r".sa_\1\2_proj."),
            (r"\.cross_attn\.cross_attn_([qk])(?:uery|ey)_(content|pos|pos_sine)_proj\.", r".ca_\1\2_proj."),
            (r"\.(self|cross)_attn\.\1_attn\.output_proj\.", r".\1_attn.out_proj."),
            (r"\.self_attn\.self_attn_value_proj\.", ".sa_v_proj."),
            (r"\.cross_attn\.cross_attn_value_proj\.", ".ca_v_proj."),
            (r"\.self_attn\.self_attn_layer_norm\.", ".norm1."),
            (r"\.cross_attn\.cross_attn_layer_norm\.", ".norm2."),
            *detr.HUGGINGFACE,
        ],
        fixed=lambda theirs: {
            "keep_query_pos": False,
            "normalize_before": False,
            "sine_position_embedding_scale": None,
            "temperature_width": theirs.get("temperature_height", 20),
        },
        options=lambda theirs: {"model.temperature": theirs.get("temperature_height", 20)},
    ),
)
