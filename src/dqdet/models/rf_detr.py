"""RF-DETR: Robinson et al., "RF-DETR: Neural Architecture Search for Real-Time Detection Transformers", 2025."""

from __future__ import annotations

from functools import partial

from dqdet.config import LwDetrConfig, RfDetrConfig
from dqdet.models.lw_detr import LwDetr
from dqdet.nn.projector import ChannelNorm, Norm


class RfDetr(LwDetr):
    """RF-DETR: LW-DETR on DINOv2, with layer norms in place of batch norms. Queries as there."""

    def projector_norm(self, config: LwDetrConfig) -> Norm:
        assert isinstance(config, RfDetrConfig)
        return partial(ChannelNorm, eps=config.norm_epsilon)
