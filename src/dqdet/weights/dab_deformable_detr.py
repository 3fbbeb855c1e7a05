"""DAB-Deformable-DETR: the code of its authors."""

from dqdet.config import DabDeformableDetrConfig
from dqdet.weights import deformable_detr
from dqdet.weights.published import Published

DAB_DEFORMABLE_DETR = Published(
    config=DabDeformableDetrConfig,
    sign="tgt_embed.weight",
    rules=[
        *deformable_detr.RULES,
        (r"^tgt_embed\.weight$", "queries.table.content"),
        (r"^refpoint_embed\.weight$", "queries.table.anchor"),
        (r"^decoder\.query_scale\.", "position_scale."),
        (r"^decoder\.ref_point_head\.", "position_head."),
    ],
    options=deformable_detr.levels_and_points,
    dynamic={"loss.beta": 0.5},
)
