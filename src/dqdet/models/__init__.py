"""The families, by name."""

from __future__ import annotations

from pathlib import Path

from dqdet.config import Config
from dqdet.models.conditional_detr import ConditionalDetr
from dqdet.models.dab_deformable_detr import DabDeformableDetr
from dqdet.models.dab_detr import DabDetr
from dqdet.models.deformable_detr import DeformableDetr
from dqdet.models.detector import Detector
from dqdet.models.detr import Detr
from dqdet.models.dino import Dino
from dqdet.models.lw_detr import LwDetr
from dqdet.models.mask2former import Mask2Former
from dqdet.models.rf_detr import RfDetr
from dqdet.models.seqformer import SeqFormer
from dqdet.models.smca_detr import SmcaDetr
from dqdet.models.video_mask2former import VideoMask2Former
from dqdet.weights.backbones import read_backbone

FAMILIES: dict[str, type[Detector]] = {
    "detr": Detr,
    "conditional_detr": ConditionalDetr,
    "smca_detr": SmcaDetr,
    "dab_detr": DabDetr,
    "deformable_detr": DeformableDetr,
    "dab_deformable_detr": DabDeformableDetr,
    "dino": Dino,
    "mask2former": Mask2Former,
    "seqformer": SeqFormer,
    "video_mask2former": VideoMask2Former,
    "lw_detr": LwDetr,
    "rf_detr": RfDetr,
    "rf_detr_seg": RfDetr,
}


def create_model(config: Config) -> Detector:
    """The model that a configuration describes, with its backbone.

    Raises:
        DqdetError: if the backbone's weights cannot be had or the options contradict each other.
    """
    family = FAMILIES[config.model.family]
    options = config.model.backbone
    weights = None if options.weights is None else read_backbone(Path(options.weights), options.name)
    backbone = family.make_backbone(config.model, weights)
    model = family(config.model, config.queries, len(config.classes), backbone.channels)
    model.backbone = backbone
    model.mean, model.std = config.data.mean, config.data.std
    return model
