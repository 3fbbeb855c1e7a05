"""SeqFormer: the code of its authors."""

from functools import partial

from dqdet.config import SeqFormerConfig
from dqdet.formats.categories import YOUTUBE_VIS_CATEGORIES
from dqdet.weights import deformable_detr
from dqdet.weights.backbones import DETECTRON2_SWIN
from dqdet.weights.classes import COCO, Classes, every_id
from dqdet.weights.published import Published
from dqdet.weights.renaming import split_queries

CONVS = ("lay3", "lay4", "dcn", "lay1", "lay2")  # of the mask features, in order

SEQFORMER = Published(
    config=SeqFormerConfig,
    sign="detr.transformer.level_embed",
    rules=[
        (r".*\.encoder\.layers\.\d+\.self_attn\.output_proj_box\..*", ""),  # of boxes, which the encoder has not
        (r".*\.body\.norm0\..*", ""),  # of Swin transformers, whose first map is not read
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
        *((rf"^mask_head\.{conv}\.", f"mask_features.convs.{i}.") for i, conv in enumerate(CONVS)),
    ],
    prepare=partial(split_queries, name="detr.query_embed.weight"),
    # The published masks' convolutions read padded cells.
    options=lambda state, heads: deformable_detr.levels_and_points(state, heads) | {"model.see_padding": True},
    classes={42: Classes(every_id(YOUTUBE_VIS_CATEGORIES, 42)), **COCO},
)
