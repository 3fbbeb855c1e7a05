"""RF-DETR: the ``rfdetr`` package, and ``transformers``."""

from __future__ import annotations

from dqdet.config import RfDetrConfig
from dqdet.weights.huggingface import HuggingFace
from dqdet.weights.lw_detr import FIXED, FIXED_VIT, HUGGINGFACE, RULES, PublishedVit, split_groups, vit_options
from dqdet.weights.renaming import Rule, State

# Both have the DINOv2 of ``transformers``; it becomes timm's.
DINOV2: list[Rule] = [
    (r"^backbone\.0\.encoder\.encoder\.embeddings\.mask_token$", ""),  # of its pre-training
    (r"^backbone\.0\.encoder\.encoder\.embeddings\.cls_token$", "backbone.body.cls_token"),
    (r"^backbone\.0\.encoder\.encoder\.embeddings\.position_embeddings$", "backbone.body.pos_embed"),
    (r"^backbone\.0\.encoder\.encoder\.embeddings\.patch_embeddings\.projection\.", "backbone.body.patch_embed.proj."),
    (r"^backbone\.0\.encoder\.encoder\.layernorm\.", "backbone.body.norm."),
    (r"^backbone\.0\.encoder\.encoder\.encoder\.layer\.", "backbone.body.blocks."),
    (r"\.attention\.attention\.([qkv])(?:uery|ey|alue)\.(\w+)$", r".attn.qkv.\2.\1"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
]

SEGMENTATION: list[Rule] = [
    (r"^segmentation_head\.bias$", "mask_head.bias"),
    (r"^segmentation_head\.blocks\.(\d+)\.dwconv\.", r"mask_head.blocks.\1.conv."),
    (r"^segmentation_head\.blocks\.(\d+)\.pwconv1\.", r"mask_head.blocks.\1.linear."),
    (r"^segmentation_head\.spatial_features_proj\.", "mask_head.feature_proj."),
    (r"^segmentation_head\.query_features_block\.norm_in\.", "mask_head.query_norm."),
    (r"^segmentation_head\.query_features_block\.layers\.0\.", "mask_head.query_mlp.0."),
    (r"^segmentation_head\.query_features_block\.layers\.2\.", "mask_head.query_mlp.2."),
    (r"^segmentation_head\.query_features_proj\.", "mask_head.query_proj."),
    (r"^segmentation_head\.", "mask_head."),
]

HUGGINGFACE_SEGMENTATION: list[Rule] = [
    (r"^segmentation_bias$", "segmentation_head.bias"),
    (r"^(?=blocks\.|spatial_features|query_features)", "segmentation_head."),
    (r"^(segmentation_head\.blocks\.\d+)\.layernorm\.", r"\1.norm."),
    (r"^(segmentation_head\.blocks\.\d+)\.depthwise_conv\.", r"\1.dwconv."),
    (r"^(segmentation_head\.blocks\.\d+)\.pointwise_conv\.", r"\1.pwconv1."),
    (r"^(segmentation_head\.query_features_block)\.norm\.", r"\1.norm_in."),
    (r"^(segmentation_head\.query_features_block)\.mlp\.fc1\.", r"\1.layers.0."),
    (r"^(segmentation_head\.query_features_block)\.mlp\.fc2\.", r"\1.layers.2."),
]


def prepare(state: State) -> State:
    """Without the buffers of keypoints, which no model here has."""
    return split_groups({name: tensor for name, tensor in state.items() if name != "_kp_active_mask"})


RF_DETR = PublishedVit(
    config=RfDetrConfig,
    sign="backbone.0.encoder.encoder.embeddings.cls_token",
    rules=[*DINOV2, *SEGMENTATION, *RULES],
    prepare=prepare,
    backbones={384: "vit_small_patch14_dinov2", 768: "vit_base_patch14_dinov2"},
    huggingface=HuggingFace(
        "rf_detr",
        rules=[
            (r"^(?:model\.)*backbone\.backbone\.", "backbone.0.encoder.encoder."),
            *HUGGINGFACE,
            *HUGGINGFACE_SEGMENTATION,
        ],
        fixed=lambda theirs: {
            **FIXED,
            "mask_downsample_ratio": 4,
            "segmentation_head_activation_function": "gelu",
        },
        fixed_backbone={**FIXED_VIT, "use_swiglu_ffn": False, "apply_layernorm": True},
        options=lambda theirs: {
            **vit_options(theirs),
            "model.backbone.windows": theirs["backbone_config"].get("num_windows", 4),
            "model.norm_epsilon": theirs.get("layer_norm_eps", 1e-5),
        },
    ),
)
