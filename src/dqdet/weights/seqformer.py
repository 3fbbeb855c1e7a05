"""SeqFormer: the code of its authors."""

from __future__ import annotations

from functools import partial

from dqdet.config import SeqFormerConfig
from dqdet.formats.categories import YOUTUBE_VIS_CATEGORIES
from dqdet.weights import deformable_detr
from dqdet.weights.backbones import DETECTRON2_SWIN
from dqdet.weights.classes import COCO, Classes, every_id
from dqdet.weights.published import Published

SEQFORMER = Published(
    config=SeqFormerConfig,
    sign="detr.transformer.level_embed",
    rules=[
        # The encoder's attention has a projection for boxes, as the decoder's has, but no boxes.
        (r".*\.encoder\.layers\.\d+\.self_attn\.output_proj_box\..*", ""),
        # Swin transformers have a norm for each stage, but no map of the first is read.
        (r".*\.body\.norm0\..*", ""),
        *((rf"^detr\.backbone\.0\.body\.norm{stage + 1}\.", f"backbone.norms.{stage}.") for stage in range(3)),
        (r"^detr\.backbone\.0\.body\.(?=layers\.|patch_embed\.)", "backbone."),
        *DETECTRON2_SWIN,
        (r"^detr\.", ""),
        *deformable_detr.RULES,
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
    ],
    prepare=partial(deformable_detr.split_queries, name="detr.query_embed.weight"),
    options=lambda state, heads: {
        **deformable_detr.levels_and_points(state, heads),
        "model.see_padding": True,  # as published
    },
    classes={42: Classes(every_id(YOUTUBE_VIS_CATEGORIES, 42)), **COCO},
)
