"""Typed configuration: what can be set, its default, and how presets and ``key=value`` overrides combine.

A configuration is complete and self-describing: ``dqdet presets NAME`` prints it, a run folder keeps it, and
``dqdet.load`` builds the model from it alone. Defaults are the paper's and the families' published ones;
``presets/*.yaml`` hold only what differs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class BackboneConfig(Section):
    name: str = "resnet50"  # a timm model, or one of the short names of nn/backbone.py
    pretrained: bool = True  # ImageNet weights, fetched by timm
    weights: str | None = None  # a local weights file (.safetensors or .pth) instead of the fetched ones


class DetrConfig(Section):
    """DETR (Carion et al., 2020)."""

    family: Literal["detr"] = "detr"
    backbone: BackboneConfig = BackboneConfig()
    hidden: PositiveInt = 256  # channels of queries and memory
    heads: PositiveInt = 8
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    feedforward: PositiveInt = 2048
    dropout: NonNegativeFloat = 0.1


class DeformableDetrConfig(Section):
    """Deformable-DETR (Zhu et al., 2021)."""

    family: Literal["deformable_detr"] = "deformable_detr"
    backbone: BackboneConfig = BackboneConfig()
    hidden: PositiveInt = 256
    heads: PositiveInt = 8
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    feedforward: PositiveInt = 1024
    dropout: NonNegativeFloat = 0.1
    levels: PositiveInt = 4  # feature maps; those beyond the backbone's are strided convolutions
    points: PositiveInt = 4  # sampling points a head and level
    refine: bool = False  # iterative box refinement
    two_stage: bool = False  # encoder proposals replace the learned queries


ModelConfig = Annotated[DetrConfig | DeformableDetrConfig, Field(discriminator="family")]


class QueriesConfig(Section):
    """Where the decoder's queries come from (``queries.py``)."""

    kind: Literal["static", "modulated", "generated", "grouped"] = "modulated"
    count: PositiveInt = 300  # m: queries used at inference
    ratio: PositiveInt = 4  # r: basic queries behind each modulated one
    hidden: PositiveInt = 512  # hidden size of the MLP that predicts the coefficients
    pool: Literal["mean", "max"] = "mean"
    pool_padding: bool = False  # let padded positions take part in the pooling, as the published code does
    coefficients: Literal["softmax", "raw"] = "softmax"


class LossConfig(Section):
    """Set loss: matching costs, weights and normalisation (``losses/set_loss.py``)."""

    classification: Literal["focal", "cross_entropy"] = "focal"
    class_cost: NonNegativeFloat = 2.0
    box_cost: NonNegativeFloat = 5.0
    giou_cost: NonNegativeFloat = 2.0
    class_weight: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 5.0
    giou_weight: NonNegativeFloat = 2.0
    no_object_weight: NonNegativeFloat = 0.1  # cross_entropy only
    box_epsilon: NonNegativeFloat = 0.0  # added to the denominators of IoU and GIoU
    beta: NonNegativeFloat = 1.0  # weight of the basic queries' loss, Eq. 7


class ScenesConfig(Section):
    """The built-in generated data set (``data/scenes.py``)."""

    size: PositiveInt = 128  # height and width, pixels
    train_images: PositiveInt = 2000
    val_images: PositiveInt = 200
    seed: int = 0


class DataConfig(Section):
    kind: Literal["coco", "scenes"] = "coco"
    root: str | None = None  # folder of the data set
    train: str | None = None  # name of the training split; None: found (train2017 or train)
    val: str | None = None  # likewise (val2017, val, valid or test)
    resize: list[PositiveInt] = list(range(480, 801, 32))  # shorter side, one drawn an image
    max_size: PositiveInt = 1333  # longer side never exceeds it
    val_resize: PositiveInt = 800
    crop: bool = True  # DETR's second branch: resize to 400-600, crop 384-600, resize again
    flip: bool = True
    workers: int = Field(default=2, ge=0)
    scenes: ScenesConfig = ScenesConfig()


class TrainConfig(Section):
    epochs: PositiveInt = 50
    steps: PositiveInt | None = None  # stop after so many optimiser steps, whatever the epoch
    batch: PositiveInt = 16  # images a step, over all processes and accumulated batches together
    accumulate: PositiveInt = 1  # batches a step and process, to fit a large batch into a small memory
    lr: PositiveFloat = 2e-4
    backbone_lr: NonNegativeFloat = 2e-5  # 0 freezes the backbone
    offsets_lr: PositiveFloat = 2e-5  # sampling offsets and reference points (deformable families)
    weight_decay: NonNegativeFloat = 1e-4
    drop: list[PositiveFloat] = [40.0]  # epochs at which the learning rates are divided by ten
    warmup: int = Field(default=0, ge=0)  # steps of linear warm-up
    clip: NonNegativeFloat = 0.1  # gradient norm; 0: no clipping
    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay of the averaged weights; None: no averaging
    validate_every: PositiveInt = 1  # epochs
    seed: int = 0


class Config(Section):
    """Everything that makes a model, its training and its use reproducible."""

    preset: str
    model: ModelConfig
    queries: QueriesConfig = QueriesConfig()
    loss: LossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    classes: list[str] = []  # class names in label order; filled from the data set
    category_ids: list[int] = []  # likewise, the data set's id of each class: results are written with them
