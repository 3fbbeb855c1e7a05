"""DAB-DETR: the code of its authors, and ``transformers``."""

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
        (r"^refpoint_embed\.weight$", "queries.table.anchor"),
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
            (r"^model\.query_refpoint_embeddings\.", "refpoint_embed."),
            (r"\.([sc])\w+_attn\.\w+_attn_([qk])\w+?_(content|pos|pos_sine)_proj\.", r".\1a_\2\3_proj."),
            (r"\.([sc])\w+_attn\.\w+_attn_value_proj\.", r".\1a_v_proj."),
            (r"\.(self|cross)_attn\.\1_attn\.output_proj\.", r".\1_attn.out_proj."),
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
