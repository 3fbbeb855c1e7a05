"""What can be set, and its default: the paper's and the families' published ones."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dqdet.errors import listed


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


def _no_flag(value: object) -> object:
    if isinstance(value, bool):  # pydantic would take true for 1
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _writable(text: str) -> str:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise PydanticCustomError("text_characters", "Input should be text without zero bytes and lone surrogates")
    return text


# Bounds are wide, but what lies beyond them cannot be meant: it would fill the memory, or overflow where it is used.
Whole = Annotated[int, BeforeValidator(_no_flag)]
Real = Annotated[float, BeforeValidator(_no_flag)]
Count = Annotated[Whole, Field(gt=0, lt=2**31)]  # of steps, images and the like
CountOrZero = Annotated[Whole, Field(ge=0, lt=2**31)]
Layers = Annotated[Whole, Field(gt=0, le=100)]  # or heads, levels, points: what a model has few of
Width = Annotated[Whole, Field(gt=0, le=2**17)]  # channels, or queries
Pixels = Annotated[Whole, Field(gt=0, le=2**14)]  # side of an image in training
Frames = Annotated[Whole, Field(gt=0, le=10_000)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Id = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]
Positive = Annotated[Real, Field(gt=0)]
NonNegative = Annotated[Real, Field(ge=0)]
Scale = Annotated[Real, Field(gt=0, le=16)]
Share = Annotated[Real, Field(ge=0, le=1)]
Rate = Annotated[Real, Field(ge=0, lt=1)]  # of dropout: never everything
Text = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_writable)]


Task = Literal["detection", "instance", "panoptic", "video"]
Context = Literal["backbone", "projected", "memory", "none"]


class BackboneConfig(Section):
    name: Text = "resnet50"  # a timm model, or one of the short names of nn/backbone.py
    pretrained: bool = True  # ImageNet weights, fetched by timm
    weights: Text | None = None  # a local weights file (.safetensors, .pth or .pkl) instead of the fetched ones
    # Of ResNets: batch norms, stem and first stage, as published for detectors; or batch norms alone; or nothing.
    freeze: bool | Literal["norms"] = True
    drop_path: Rate | None = None  # stochastic depth; None: the backbone's own


class TransformerConfig(Section):
    """What all families have."""

    tasks: ClassVar[tuple[Task, ...]] = ("detection",)  # that the family can learn
    loss: ClassVar[str] = "boxes"  # kind of its set loss
    published_context: ClassVar[Context] = "backbone"  # of the code that dynamic queries were published with
    no_object: ClassVar[bool] = False  # whether its class head has one output more, the last, for "no object"
    starts_from: ClassVar[str | None] = None  # a family with the same parameters, which learned first what it learns

    family: str
    backbone: BackboneConfig = BackboneConfig()
    hidden: Width = 256  # channels of queries and memory
    heads: Layers = 8
    encoder_layers: Layers = 6
    decoder_layers: Layers = 6
    feedforward: Width = 2048
    dropout: Rate = 0.1


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
    dropout: Rate = 0.0
    temperature: Positive = 20.0  # of the feature map's position encoding
    activation: Literal["prelu", "relu"] = "prelu"
    # Learned contents that each anchor is tried with; 0: one, of zeros.
    patterns: Annotated[Whole, Field(ge=0, le=1000)] = 0


class DeformableDetrConfig(TransformerConfig):
    """Deformable-DETR (Zhu et al., 2021)."""

    published_context: ClassVar[Context] = "projected"

    family: Literal["deformable_detr"] = "deformable_detr"
    feedforward: Width = 1024
    levels: Layers = 4  # feature maps; those beyond the backbone's are strided convolutions
    points: Layers = 4  # sampling points a head and level
    refine: bool = False  # iterative box refinement
    two_stage: bool = False  # encoder proposals replace the learned queries


class DabDeformableDetrConfig(DeformableDetrConfig):
    """DAB-Deformable-DETR (Liu et al., 2022): anchors are refined by every layer, never proposed by the encoder."""

    family: Literal["dab_deformable_detr"] = "dab_deformable_detr"  # type: ignore[assignment]
    feedforward: Width = 2048
    dropout: Rate = 0.0
    refine: Literal[True] = True
    two_stage: Literal[False] = False


class Mask2FormerConfig(TransformerConfig):
    """Mask2Former (Cheng et al., 2022), with its multi-scale deformable pixel decoder."""

    tasks: ClassVar[tuple[Task, ...]] = ("instance", "panoptic")
    loss: ClassVar[str] = "masks"
    published_context: ClassVar[Context] = "memory"
    no_object: ClassVar[bool] = True

    family: Literal["mask2former"] = "mask2former"
    decoder_layers: Layers = 9
    encoder_feedforward: Width = 1024  # of the pixel decoder
    dropout: Rate = 0.0
    points: Layers = 4  # sampling points a head and level of the pixel decoder
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
    levels: Annotated[Layers, Field(ge=3)] = 4  # masks are made from the three of the backbone
    refine: Literal[True] = True
    two_stage: Literal[False] = False
    see_padding: bool = False  # let the masks' convolutions read padded cells, as the published code does


ModelConfig = Annotated[
    DetrConfig
    | ConditionalDetrConfig
    | SmcaDetrConfig
    | DabDetrConfig
    | DeformableDetrConfig
    | DabDeformableDetrConfig
    | Mask2FormerConfig
    | VideoMask2FormerConfig
    | SeqFormerConfig,
    Field(discriminator="family"),
]


class QueriesConfig(Section):
    """Where the decoder's queries come from (``queries.py``)."""

    kind: Literal["static", "modulated", "generated", "grouped", "shared"] = "modulated"
    count: Width = 300  # m: queries used at inference
    ratio: Width = 4  # r: basic queries behind each modulated one
    # How basic (or unrelated) queries train: all as one group, as r groups of m, or one of these groups a step.
    basic: Literal["whole", "groups", "one"] = "whole"
    patterns: Width = 100  # K: shared ones, behind all queries together
    hidden: Width = 512  # hidden size of the MLP that predicts the coefficients
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
    classification: Literal["focal", "cross_entropy"] = "focal"
    class_cost: NonNegative = 2.0
    box_cost: NonNegative = 5.0
    giou_cost: NonNegative = 2.0
    class_weight: NonNegative = 2.0
    box_weight: NonNegative = 5.0
    giou_weight: NonNegative = 2.0
    no_object_weight: NonNegative = 0.1  # cross_entropy only
    box_epsilon: NonNegative = 0.0  # added to the denominators of IoU and GIoU
    beta: NonNegative = 1.0  # weight of the basic queries' loss, Eq. 7


class MaskLossConfig(Section):
    """Set loss of masks, compared at points (``losses/masks.py``). Costs of the matching have the same weights."""

    kind: Literal["masks"] = "masks"
    class_weight: NonNegative = 2.0
    mask_weight: NonNegative = 5.0  # binary cross-entropy
    dice_weight: NonNegative = 5.0
    no_object_weight: NonNegative = 0.1
    points: Annotated[Whole, Field(gt=0, le=2**24)] = 12544  # a mask
    oversample: Annotated[Real, Field(ge=1, le=100)] = 3.0  # candidates of the loss's points, times the points
    important: Share = 0.75  # share of points that are the candidates of least certainty
    beta: NonNegative = 1.0  # weight of the basic queries' loss, Eq. 7


class SequenceLossConfig(LossConfig):
    """Set loss of sequences of boxes, with the masks of matched queries (``losses/sequences.py``)."""

    kind: Literal["sequences"] = "sequences"  # type: ignore[assignment]
    classification: Literal["focal"] = "focal"
    mask_weight: NonNegative = 2.0  # focal
    dice_weight: NonNegative = 5.0


def _loss_kind(options: Any) -> str:
    kind = options.get("kind", "boxes") if isinstance(options, dict) else getattr(options, "kind", None)
    return kind if isinstance(kind, str) else ""


AnyLossConfig = Annotated[
    Annotated[LossConfig, Tag("boxes")]
    | Annotated[MaskLossConfig, Tag("masks")]
    | Annotated[SequenceLossConfig, Tag("sequences")],
    Discriminator(_loss_kind),
]


class InferenceConfig(Section):
    """Which predictions are reported (``inference/``)."""

    limit: Count = 100  # detections an image, or tracks a video
    object_threshold: Share = 0.8  # least score of a segment of a panoptic map
    overlap_threshold: Share = 0.8  # share of its mask that such a segment must keep
    window: Annotated[Frames, Field(ge=2)] = 36  # frames of a video that go through the model together


class ScenesConfig(Section):
    """The built-in generated data set (``data/scenes/``)."""

    size: Pixels = 128  # height and width, pixels
    train_images: Count = 2000  # or videos
    val_images: Count = 200
    frames: Frames = 8  # of each video
    seed: Seed = 0


class ClipsConfig(Section):
    """How videos are cut into clips for training."""

    frames: Frames = 2  # of a clip
    reach: Frames = 20  # frames from the first chosen one within which the others lie, on both sides
    # SeqFormer's clips: one frame before and one after the first chosen one, at most so many away, and the others from
    # beyond these two. 0: all are drawn evenly.
    neighbours: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    every_frame: bool = False  # an epoch has a clip around every frame, not one of every video
    images: Text | None = None  # folder of COCO, whose images become clips of their own (pseudo-videos); None: no

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
    root: Text | None = None  # folder of the data set
    train: Text | None = None  # name of the training split; None: found (train2017 or train)
    val: Text | None = None  # likewise (val2017, val, valid or test)
    resize: Annotated[list[Pixels], Field(min_length=1)] = list(range(480, 801, 32))  # shorter side, one drawn an image
    max_size: Pixels = 1333  # longer side never exceeds it
    val_resize: Pixels = 800
    val_max_size: Annotated[Whole, Field(ge=0, le=2**14)] | None = None  # of the longer side; None: max_size; 0: any
    crop: bool = True  # DETR's second branch: resize to 400-600, crop 384-600, resize again
    jitter: tuple[Scale, Scale] | None = None  # large-scale jitter: least and greatest factor
    # Height, width of a random crop at the end. With jitter, smaller images are padded to it, and the model sees that.
    window: tuple[Pixels, Pixels] | None = None
    flip: bool = True
    colour: bool = False  # SSD's photometric distortion, of every frame on its own
    hue: Annotated[Real, Field(ge=0, le=0.5)] = 0.05  # its greatest shift of the hue, in turns of the colour circle
    permute_channels: bool = False  # with it, the colour channels change places in half of all images
    # coco, but not panoptic: training images without objects are left out, those with crowds alone, too.
    skip_empty: bool = False
    redraw_empty: bool = False  # a training item that the augmentation leaves without objects becomes another one
    clips: ClipsConfig = ClipsConfig()
    # Look at the headers of all images before a training or evaluation: is each there, an image, and of its size?
    check: bool = True
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2
    scenes: ScenesConfig = ScenesConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.jitter is not None and self.window is None:
            raise ValueError("data.jitter is relative to data.window, which is not set; set data.window=[1024, 1024]")
        if self.jitter is not None and self.jitter[0] > self.jitter[1]:
            least, greatest = self.jitter
            raise ValueError(f"data.jitter=[{least}, {greatest}]: the least factor is above the greatest; swap them")
        return self


class TrainConfig(Section):
    epochs: Count = 50
    steps: Count | None = None  # stop after so many optimiser steps, whatever the epoch
    batch: Count = 16  # images a step, over all processes and accumulated batches together
    accumulate: Count = 1  # batches a step and process, to fit a large batch into a small memory
    lr: Positive = 2e-4
    backbone_lr: NonNegative = 2e-5  # 0 freezes the backbone
    offsets_lr: Positive = 2e-5  # sampling offsets and reference points (deformable families)
    weight_decay: NonNegative = 1e-4
    schedule: Literal["steps", "poly"] = "steps"
    drop: list[Positive] = [40.0]  # steps: epochs after which the learning rates are divided by ten
    drop_steps: list[Count] = []  # the same in optimiser steps, where drop is empty
    power: Positive = 0.9  # poly: of the share of steps that are left
    decay_norms: bool = True  # weight decay of norms and embeddings too
    warmup: CountOrZero = 0  # steps of linear warm-up
    clip: NonNegative = 0.1  # gradient norm; 0: no clipping
    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"  # 16-mixed is of GPUs; without one it becomes 32
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = None  # decay of the averaged weights; None: no averaging
    validate_every: Count = 1  # epochs
    seed: Seed = 0

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

    preset: Annotated[str, Field(max_length=4096), AfterValidator(_writable)]
    model: ModelConfig
    queries: QueriesConfig = QueriesConfig()
    loss: AnyLossConfig = LossConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    inference: InferenceConfig = InferenceConfig()
    classes: list[Text] = []  # class names in label order; filled from the data set
    category_ids: list[Id] = []  # likewise, the data set's id of each class: results are written with them
    stuff: list[Text] = []  # the classes among them that are regions, not objects (panoptic)
    init: Text | None = None  # what the weights start from: a run, a checkpoint or a name on the hub; None: ImageNet

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        model = self.model
        if repeated := sorted({number for number, count in Counter(self.category_ids).items() if count > 1}):
            raise ValueError(f"category_ids has {listed(repeated)} more than once; every class needs an id of its own")
        if self.classes and self.category_ids and len(self.classes) != len(self.category_ids):
            raise ValueError(
                f"category_ids has {len(self.category_ids)} ids for {len(self.classes)} classes; list one of each class"
            )
        if unknown := [name for name in self.stuff if name not in self.classes]:
            raise ValueError(f"stuff has names that are no classes: {listed(unknown)}; correct them")
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
        if isinstance(model, DeformableDetrConfig) and model.two_stage and self.queries.kind != "static":
            raise ValueError(
                f"model.two_stage takes the queries from the encoder's proposals, so queries.kind="
                f"{self.queries.kind} has nothing to combine; set queries.kind=static"
            )
        return self
