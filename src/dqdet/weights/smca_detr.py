"""SMCA-DETR: the code of its authors."""

from dqdet.config import SmcaDetrConfig
from dqdet.weights import detr
from dqdet.weights.published import Published

SMCA_DETR = Published(
    config=SmcaDetrConfig,
    sign="transformer.decoder.layers.0.point1.layers.0.weight",
    rules=[
        *detr.RULES,
        (r"^decoder\.0\.point1\.", "centre_head."),
        (r"\.point2\.", ".offset_head."),
        (r"\.point3\.", ".scale_head."),
        (r"\.norm4\.", ".spatial_norm."),
    ],
)
