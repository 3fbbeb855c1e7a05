"""Conditional-DETR: the code of its authors, and ``transformers``."""

from dqdet.config import ConditionalDetrConfig
from dqdet.weights import detr
from dqdet.weights.huggingface import HuggingFace
from dqdet.weights.published import Published
from dqdet.weights.renaming import Rule

LAYER: list[Rule] = [
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

CONDITIONAL_DETR = Published(
    config=ConditionalDetrConfig,
    sign="transformer.decoder.ref_point_head.layers.0.weight",
    rules=[
        *detr.RULES,
        *LAYER,
        (r"^decoder\.query_scale\.", "spatial_scale."),
        (r"^decoder\.ref_point_head\.", "reference_head."),
    ],
    huggingface=HuggingFace(
        "conditional_detr",
        rules=[  # of newer versions; older ones have the official names of a layer's projections
            (r"(\.decoder\..*)\.self_attn\.(?:([qk])_(content|pos)|(v))_proj\.", r"\1.sa_\2\3\4_proj."),
            (r"(\.decoder\..*)\.encoder_attn\.(?:([qk])_(content|pos|pos_sine)|(v))_proj\.", r"\1.ca_\2\3\4_proj."),
            *detr.HUGGINGFACE,
        ],
    ),
)
