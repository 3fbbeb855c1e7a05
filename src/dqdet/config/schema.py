"""What can be set, and its default: the paper's and the families' published ones."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


Task = Literal["detection", "instance", "panoptic", "video"]
Context = Literal["backbone", "projected", "memory", "none"]
Classification = Literal["focal", "cross_entropy", "iou_aware"]


class BackboneConfig(Section):
    name: str = "resnet50"  # a timm model, or one of the short names of nn/backbone.py
    pretrained: bool = True  # ImageNet weights, fetched by timm
    weights: str | None = None  # a local weights file (.safetensors, .pth or .pkl) instead of the fetched ones
    # Of ResNets: batch norms, stem and first stage, as published for detectors; or batch norms alone; or nothing.
    freeze: bool | Literal["norms"] = True
    drop_path: float | None = Field(default=None, ge=0, lt=1)  # stochastic depth; None: the backbone's own


class WindowedVitConfig(BackboneConfig):
    """A plain vision transformer (``nn/vit.py``). Blocks are counted from 0."""

    name: str = "vit_small_patch14_dinov2"
    pretrained: bool = False  # weights of the transformer alone; published detectors are the usual start
    freeze: Literal[False] = False
    patch: PositiveInt = 16  # pixels along the side of a token
    positions: PositiveInt = (
        24  # along the side of the learned table of positions, which images of other sizes resample
    )
    windows: PositiveInt = 2  # along the side of an image; sides are multiples of patch times windows
    global_blocks: list[int] = [3, 6, 9]  # that see the whole image; all others see a window
    taps: list[PositiveInt] = [3, 6, 9, 12]  # maps are taken after so many blocks; those after the last do not run


class TransformerConfig(Section):
    """What all families have."""

    tasks: ClassVar[tuple[Task, ...]] = ("detection",)  # that the family can learn
    loss: ClassVar[str] = "boxes"  # kind of its set loss
    published_context: ClassVar[Context] = "backbone"  # of the code that dynamic queries were published with
    no_object: ClassVar[bool] = False  # whether its class head has one output more, the last, for "no object"
    starts_from: ClassVar[str | None] = None  # a family with the same parameters, which learned first what it learns

    family: str
    backbone: BackboneConfig = BackboneConfig()
    hidden: PositiveInt = 256  # channels of queries and memory
    heads: PositiveInt = 8
    encoder_layers: PositiveInt = 6
    decoder_layers: PositiveInt = 6
    feedforward: PositiveInt = 2048
    dropout: NonNegativeFloat = 0.1


class DetrConfig(TransformerConfig):
    """DETR (Carion et al., 2020)."""

    no_object: ClassVar[bool] = True

    family: Literal["detr"] = "detr"


class ConditionalDetrConfig(TransformerConfig):
    """Conditional-DETR (Meng et al., 2021)."""

    family: Literal["conditional_detr"] = "conditional_detr"


class SmcaDetrConfig(TransformerConfig):
    """SMCA-DETR (Gao et al., 2021), with one feature map."""

    no_object: ClassVar[bool] = True

    family: Literal["smca_detr"] = "smca_detr"


class DabDetrConfig(TransformerConfig):
    """DAB-DETR (Liu et al., 2022)."""

    family: Literal["dab_detr"] = "dab_detr"
    dropout: NonNegativeFloat = 0.0
    temperature: PositiveFloat = 20.0  # of the feature map's position encoding
    activation: Literal["prelu", "relu"] = "prelu"
    patterns: int = Field(default=0, ge=0)  # learned contents that each anchor is tried with; 0: one, of zeros


class DeformableDetrConfig(TransformerConfig):
    """Deformable-DETR (Zhu et al., 2021)."""

    published_context: ClassVar[Context] = "projected"

    family: Literal["deformable_detr"] = "deformable_detr"
    feedforward: PositiveInt = 1024
    levels: PositiveInt = 4  # feature maps; those beyond the backbone's are strided convolutions
    points: PositiveInt = 4  # sampling points a head and level
    refine: bool = False  # iterative box refinement
    two_stage: bool = False  # encoder proposals replace the learned queries


class DabDeformableDetrConfig(DeformableDetrConfig):
    """DAB-Deformable-DETR (Liu et al., 2022): anchors are refined by every layer, never proposed by the encoder."""

    family: Literal["dab_deformable_detr"] = "dab_deformable_detr"  # type: ignore[assignment]
    feedforward: PositiveInt = 2048
    dropout: NonNegativeFloat = 0.0
    refine: Literal[True] = True
    two_stage: Literal[False] = False


class Mask2FormerConfig(TransformerConfig):
    """Mask2Former (Cheng et al., 2022), with its multi-scale deformable pixel decoder."""

    tasks: ClassVar[tuple[Task, ...]] = ("instance", "panoptic")
    loss: ClassVar[str] = "masks"
    published_context: ClassVar[Context] = "memory"
    no_object: ClassVar[bool] = True

    family: Literal["mask2former"] = "mask2former"
    decoder_layers: PositiveInt = 9
    encoder_feedforward: PositiveInt = 1024  # of the pixel decoder
    dropout: NonNegativeFloat = 0.0
    points: PositiveInt = 4  # sampling points a head and level of the pixel decoder
    see_padding: bool = False  # treat padding as image, as the published code does


class VideoMask2FormerConfig(Mask2FormerConfig):
    """Mask2Former for video (Cheng et al., 2021): queries read all frames of a clip."""

    tasks: ClassVar[tuple[Task, ...]] = ("video",)
    starts_from: ClassVar[str | None] = "mask2former"

    family: Literal["video_mask2former"] = "video_mask2former"  # type: ignore[assignment]


class SeqFormerConfig(DeformableDetrConfig):
    """SeqFormer (Wu et al., 2022): a query is one object of a clip and has a box in each of its frames."""

    tasks: ClassVar[tuple[Task, ...]] = ("video",)
    loss: ClassVar[str] = "sequences"

    family: Literal["seqformer"] = "seqformer"  # type: ignore[assignment]
    levels: int = Field(default=4, ge=3)  # masks are made from the three of the backbone
    refine: Literal[True] = True
    two_stage: Literal[False] = False
    see_padding: bool = False  # let the masks' convolutions read padded cells, as the published code does


class LwDetrConfig(TransformerConfig):
    """LW-DETR (Chen et al., 2024): a plain vision transformer is the encoder."""

    family: Literal["lw_detr"] = "lw_detr"
    backbone: WindowedVitConfig = WindowedVitConfig()
    encoder_layers: Literal[0] = 0
    cross_heads: PositiveInt = 16  # of the attention to the image; ``heads`` are of that between queries
    decoder_layers: PositiveInt = 3
    dropout: NonNegativeFloat = 0.0
    points: PositiveInt = 2  # sampling points a head and level
    scales: list[float] = [1.0]  # of the levels that queries read, relative to the backbone's maps: 0.5, 1 or 2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.scales or set(self.scales) - {0.5, 1.0, 2.0}:
            raise ValueError(f"model.scales={self.scales}: scales are 0.5, 1 and 2")
        return self


class RfDetrConfig(LwDetrConfig):
    """RF-DETR (Robinson et al., 2025): LW-DETR on DINOv2."""

    family: Literal["rf_detr"] = "rf_detr"  # type: ignore[assignment]
    norm_epsilon: PositiveFloat = 1e-6  # of the projector's norms


class RfDetrSegConfig(RfDetrConfig):
    """RF-DETR with a mask for every query."""

    tasks: ClassVar[tuple[Task, ...]] = ("instance",)
    loss: ClassVar[str] = "instances"

    family: Literal["rf_detr_seg"] = "rf_detr_seg"  # type: ignore[assignment]

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        patch, windows = self.backbone.patch, self.backbone.windows
        if patch * windows % 4:
            raise ValueError(
                f"model.backbone.patch={patch} times model.backbone.windows={windows} is not divisible by 4, the "
                "pixels along a cell of a mask"
            )
        return self


ModelConfig = Annotated[
    DetrConfig
    | ConditionalDetrConfig
    | SmcaDetrConfig
    | DabDetrConfig
    | DeformableDetrConfig
    | DabDeformableDetrConfig
    | Mask2FormerConfig
    | VideoMask2FormerConfig
    | SeqFormerConfig
    | LwDetrConfig
    | RfDetrConfig
    | RfDetrSegConfig,
    Field(discriminator="family"),
]


class QueriesConfig(Section):
    """Where the decoder's queries come from (``queries.py``)."""

    kind: Literal["static", "modulated", "generated", "grouped", "shared"] = "modulated"
    count: PositiveInt = 300  # m: queries used at inference
    ratio: PositiveInt = 4  # r: basic queries behind each modulated one
    # How basic (or unrelated) queries train: all as one group, as r groups of m, or one of these groups a step.
    basic: Literal["whole", "groups", "one"] = "whole"
    patterns: PositiveInt = 100  # K: shared ones, behind all queries together
    hidden: PositiveInt = 512  # hidden size of the MLP that predicts the coefficients
    # The coarsest map that tells what is in the image: the backbone's (the paper's F); that after the projection to the
    # model's width and its norm; or what the encoder makes of it. None: coefficients are learned constants.
    context: Context = "backbone"
    pool: Literal["mean", "max"] = "mean"
    pool_padding: bool = False  # let padded positions take part in the pooling, as the published code does
    coefficients: Literal["softmax", "raw"] = "softmax"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "generated" and self.context == "none":
            raise ValueError("queries.kind=generated makes queries of the context; set queries.context to one of a map")
        return self


class LossConfig(Section):
    """Set loss of boxes: matching costs, weights and normalisation (``losses/set_loss.py``)."""

    kind: Literal["boxes"] = "boxes"
    classification: Classification = "focal"  # iou_aware: LW-DETR's
    class_cost: NonNegativeFloat = 2.0
    box_cost: NonNegativeFloat = 5.0
    giou_cost: NonNegativeFloat = 2.0
    class_weight: NonNegativeFloat = 2.0
    box_weight: NonNegativeFloat = 5.0
    giou_weight: NonNegativeFloat = 2.0
    no_object_weight: NonNegativeFloat = 0.1  # cross_entropy only
    box_epsilon: NonNegativeFloat = 0.0  # added to the denominators of IoU and GIoU
    beta: NonNegativeFloat | None = 1.0  # weight of the basic queries' loss, Eq. 7; None: the mean over all groups


class MaskLossConfig(Section):
    """Set loss of masks, compared at points (``losses/masks.py``). Costs of the matching have the same weights."""

    kind: Literal["masks"] = "masks"
    class_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0  # binary cross-entropy
    dice_weight: NonNegativeFloat = 5.0
    no_object_weight: NonNegativeFloat = 0.1
    points: PositiveInt = 12544  # a mask
    oversample: float = Field(default=3.0, ge=1)  # candidates of the loss's points, times the points
    important: float = Field(default=0.75, ge=0, le=1)  # share of points that are the candidates of least certainty
    beta: NonNegativeFloat = 1.0  # weight of the basic queries' loss, Eq. 7


class InstanceLossConfig(LossConfig):
    """Set loss of boxes with masks (``losses/instances.py``). Costs of the masks have the same weights."""

    kind: Literal["instances"] = "instances"  # type: ignore[assignment]
    mask_weight: NonNegativeFloat = 5.0  # binary cross-entropy
    dice_weight: NonNegativeFloat = 5.0
    cells_a_point: PositiveInt = 16  # masks are compared at one point for so many of their cells


class SequenceLossConfig(LossConfig):
    """Set loss of sequences of boxes, with the masks of matched queries (``losses/sequences.py``)."""

    kind: Literal["sequences"] = "sequences"  # type: ignore[assignment]
    classification: Literal["focal"] = "focal"
    mask_weight: NonNegativeFloat = 2.0  # focal
    dice_weight: NonNegativeFloat = 5.0


def _loss_kind(options: Any) -> str:
    return options.get("kind", "boxes") if isinstance(options, dict) else options.kind


AnyLossConfig = Annotated[
    Annotated[LossConfig, Tag("boxes")]
    | Annotated[MaskLossConfig, Tag("masks")]
    | Annotated[InstanceLossConfig, Tag("instances")]
    | Annotated[SequenceLossConfig, Tag("sequences")],
    Discriminator(_loss_kind),
]


class InferenceConfig(Section):
    """Which predictions are reported (``inference/``)."""

    limit: PositiveInt = 100  # detections an image, or tracks a video
    object_threshold: float = Field(default=0.8, ge=0, le=1)  # least score of a segment of a panoptic map
    overlap_threshold: float = Field(default=0.8, ge=0, le=1)  # share of its mask that such a segment must keep
    window: int = Field(default=36, ge=2)  # frames of a video that go through the model together


class ScenesConfig(Section):
    """The built-in generated data set (``data/scenes/``)."""

    size: PositiveInt = 128  # height and width, pixels
    train_images: PositiveInt = 2000  # or videos
    val_images: PositiveInt = 200
    frames: PositiveInt = 8  # of each video
    seed: int = Field(default=0, ge=0)


class ClipsConfig(Section):
    """How videos are cut into clips for training."""

    frames: PositiveInt = 2  # of a clip
    reach: PositiveInt = 20  # frames from the first chosen one within which the others lie, on both sides
    # SeqFormer's clips: one frame before and one after the first chosen one, at most so many away, and the others from
    # beyond these two. 0: all are drawn evenly.
    neighbours: int = Field(default=0, ge=0)
    every_frame: bool = False  # an epoch has a clip around every frame, not one of every video
    images: str | None = None  # folder of COCO, whose images become clips of their own (pseudo-videos); None: no

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.neighbours and self.frames < 3:
            raise ValueError(
                f"data.clips.neighbours={self.neighbours} needs clips of 3 frames or more, not data.clips.frames="
                f"{self.frames}; set data.clips.neighbours=0"
            )
        return self


TASKS_OF_DATA: dict[str, tuple[Task, ...]] = {
    "coco": ("detection", "instance", "panoptic"),
    "cityscapes": ("instance", "panoptic"),
    "youtube_vis": ("video",),
    "scenes": ("detection", "instance", "panoptic", "video"),
}


class DataConfig(Section):
    kind: Literal["coco", "cityscapes", "youtube_vis", "scenes"] = "coco"
    task: Task = "detection"  # what is annotated, learned and measured: boxes, masks, panoptic maps, tracks
    root: str | None = None  # folder of the data set
    train: str | None = None  # name of the training split; None: found (train2017 or train)
    val: str | None = None  # likewise (val2017, val, valid or test)
    resize: list[PositiveInt] = list(range(480, 801, 32))  # shorter side, one drawn an image
    max_size: PositiveInt = 1333  # longer side never exceeds it
    square: bool = False  # resize to squares of these sides instead, without keeping proportions
    val_resize: PositiveInt = 800
    val_max_size: int | None = Field(default=None, ge=0)  # of the longer side; None: max_size; 0: any
    crop: bool = True  # DETR's second branch: resize to 400-600, crop 384-600, resize again
    jitter: tuple[PositiveFloat, PositiveFloat] | None = None  # large-scale jitter: least and greatest factor
    # Height, width of a random crop at the end. With jitter, smaller images are padded to it, and the model sees that.
    window: tuple[PositiveInt, PositiveInt] | None = None
    flip: bool = True
    colour: bool = False  # SSD's photometric distortion, of every frame on its own
    hue: float = Field(default=0.05, ge=0, le=0.5)  # its greatest shift of the hue, in turns of the colour circle
    permute_channels: bool = False  # with it, the colour channels change places in half of all images
    # coco, but not panoptic: training images without objects are left out, those with crowds alone, too.
    skip_empty: bool = False
    redraw_empty: bool = False  # a training item that the augmentation leaves without objects becomes another one
    clips: ClipsConfig = ClipsConfig()
    workers: int = Field(default=2, ge=0)
    scenes: ScenesConfig = ScenesConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.jitter is not None and self.window is None:
            raise ValueError("data.jitter is relative to data.window, which is not set; set data.window=[1024, 1024]")
        return self


class TrainConfig(Section):
    epochs: PositiveInt = 50
    steps: PositiveInt | None = None  # stop after so many optimiser steps, whatever the epoch
    batch: PositiveInt = 16  # images a step, over all processes and accumulated batches together
    accumulate: PositiveInt = 1  # batches a step and process, to fit a large batch into a small memory
    lr: PositiveFloat = 2e-4
    backbone_lr: NonNegativeFloat = 2e-5  # 0 freezes the backbone
    offsets_lr: PositiveFloat = 2e-5  # sampling offsets and reference points (deformable families)
    decoder_lr: PositiveFloat | None = None  # layers, norm and positions of the decoder (LW-DETR); None: lr
    # Of plain transformers: factor on the learning rate from each block to the one before it, and no weight decay of
    # their norms, biases and positions. None: one rate for the backbone.
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    weight_decay: NonNegativeFloat = 1e-4
    schedule: Literal["steps", "poly"] = "steps"
    drop: list[PositiveFloat] = [40.0]  # steps: epochs after which the learning rates are divided by ten
    drop_steps: list[PositiveInt] = []  # the same in optimiser steps, where drop is empty
    power: PositiveFloat = 0.9  # poly: of the share of steps that are left
    decay_norms: bool = True  # weight decay of norms and embeddings too
    warmup: int = Field(default=0, ge=0)  # steps of linear warm-up
    clip: NonNegativeFloat = 0.1  # gradient norm; 0: no clipping
    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"  # 16-mixed is of GPUs; without one it becomes 32
    ema: float | None = Field(default=None, gt=0, lt=1)  # decay of the averaged weights; None: no averaging
    validate_every: PositiveInt = 1  # epochs
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.drop and self.drop_steps:
            raise ValueError(
                f"train.drop={self.drop} (epochs) and train.drop_steps={self.drop_steps} are both set; empty one of "
                "them: train.drop_steps=[] or train.drop=[]"
            )
        return self


class Config(Section):
    """Everything that makes a model, its training and its use reproducible."""

    preset: str
    model: ModelConfig
    queries: QueriesConfig = QueriesConfig()
    loss: AnyLossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    classes: list[str] = []  # class names in label order; filled from the data set
    category_ids: list[int] = []  # likewise, the data set's id of each class: results are written with them
    stuff: list[str] = []  # the classes among them that are regions, not objects (panoptic)
    init: str | None = None  # what the weights start from: a run, a checkpoint or a name on the hub; None: ImageNet

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        model = self.model
        if model.hidden % model.heads:
            raise ValueError(f"model.hidden={model.hidden} is not divisible by model.heads={model.heads}")
        if isinstance(model, DeformableDetrConfig | Mask2FormerConfig) and model.hidden % 32:
            raise ValueError(f"model.hidden={model.hidden} is not divisible by 32, the groups of the group norms")
        if self.data.task not in TASKS_OF_DATA[self.data.kind]:
            raise ValueError(
                f"data.kind={self.data.kind} has no data.task={self.data.task}, only "
                f"{', '.join(TASKS_OF_DATA[self.data.kind])}"
            )
        if self.data.task not in model.tasks:
            raise ValueError(
                f"model.family={model.family} cannot learn data.task={self.data.task}, only {', '.join(model.tasks)}"
            )
        if self.loss.kind != model.loss:
            raise ValueError(f"model.family={model.family} needs loss.kind={model.loss}, not {self.loss.kind}")
        if isinstance(self.loss, LossConfig) and self.loss.classification == "cross_entropy" and not model.no_object:
            raise ValueError(
                f"model.family={model.family} has no output for 'no object', which loss.classification=cross_entropy "
                "needs; set loss.classification=focal"
            )
        if isinstance(model, LwDetrConfig):
            self._check_sizes(model)
        elif self.train.layer_decay is not None:
            raise ValueError(f"train.layer_decay is for plain transformers, not model.family={model.family}")
        if isinstance(model, DeformableDetrConfig) and model.two_stage and self.queries.kind != "static":
            raise ValueError(
                f"model.two_stage takes the queries from the encoder's proposals, so queries.kind="
                f"{self.queries.kind} has nothing to combine; set queries.kind=static"
            )
        return self

    def _check_sizes(self, model: LwDetrConfig) -> None:
        """Squares must hold whole windows, and as many proposals as there are queries."""
        if not self.data.square:
            return  # images are padded, to sides of whole windows
        unit, patch = model.backbone.patch * model.backbone.windows, model.backbone.patch
        for option, sides in ("resize", self.data.resize), ("val_resize", [self.data.val_resize]):
            for side in sides:
                if side % unit:
                    raise ValueError(
                        f"data.{option}: {side} is not divisible by {unit}, patch times windows of the backbone "
                        f"({patch} x {model.backbone.windows}); the nearest sizes are {side // unit * unit} and "
                        f"{(side // unit + 1) * unit}"
                    )
                cells = sum(int(side // patch * scale) ** 2 for scale in model.scales)
                if self.queries.count > cells:
                    raise ValueError(
                        f"data.{option}: an image of {side} pixels has {cells} proposals, fewer than queries.count="
                        f"{self.queries.count}; lower it, or take larger images"
                    )
