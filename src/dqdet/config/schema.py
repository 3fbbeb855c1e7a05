"""What can be set, and its default: the paper's and the families' published ones.

The text below an option is its explanation, which ``dqdet presets NAME`` prints.
"""

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

    model_config = ConfigDict(
        extra="forbid", validate_assignment=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def explanation(cls, option: str) -> str:
        """What an option is, in one line; of one whose default a family changes, the text where it is first."""
        sections = (section for section in cls.__mro__ if issubclass(section, Section))
        texts = (section.model_fields[option].description for section in sections if option in section.model_fields)
        return " ".join(next(filter(None, texts), "").split())


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
Precision = Literal["fp32", "bf16", "fp16"]  # of a trained model in use
Context = Literal["backbone", "projected", "memory", "none"]
Classification = Literal["focal", "cross_entropy", "iou_aware"]


class BackboneConfig(Section):
    name: Text = "resnet50"
    """A timm model, or a short name (resnet50, swin_b, ...); what makes the feature maps."""
    pretrained: bool = True
    """Start from ImageNet weights, which timm fetches; false: random ones."""
    weights: Text | None = None
    """Local file of weights (.safetensors, .pth or .pkl) instead of the fetched ones; null: none."""
    freeze: bool | Literal["norms"] = True
    """Of ResNets: true holds batch norms, stem and first stage, as published for detectors; norms: batch norms
    alone; false: nothing.
    """
    drop_path: Rate | None = None
    """Stochastic depth, the greatest chance that a block is skipped in training; null: the backbone's own."""


class WindowedVitConfig(BackboneConfig):
    """A plain vision transformer (``nn/vit.py``). Blocks are counted from 0."""

    name: Text = "vit_small_patch14_dinov2"
    pretrained: bool = False
    """Start from weights of the transformer alone; published detectors are the usual start."""
    freeze: Literal[False] = False
    """Nothing is held."""
    patch: Pixels = 16
    """Pixels along the side of a token."""
    positions: Layers = 24
    """Side of the learned table of positions, in tokens; images of other sizes resample it."""
    windows: Layers = 2
    """Windows along the side of an image; sides are multiples of patch times windows."""
    global_blocks: list[Annotated[Whole, Field(ge=0, le=100)]] = [3, 6, 9]
    """Blocks that see the whole image, counted from 0; all others see a window."""
    taps: Annotated[list[Layers], Field(min_length=1)] = [3, 6, 9, 12]
    """Maps are taken after so many blocks; those after the last do not run."""


class TransformerConfig(Section):
    """What all families have."""

    tasks: ClassVar[tuple[Task, ...]] = ("detection",)  # that the family can learn
    loss: ClassVar[str] = "boxes"  # kind of its set loss
    published_context: ClassVar[Context] = "backbone"  # of the code that dynamic queries were published with
    anchors: ClassVar[bool] = False  # whether its queries have anchor boxes, which objects with noise can be
    no_object: ClassVar[bool] = False  # whether its class head has one output more, the last, for "no object"
    starts_from: ClassVar[str | None] = None  # a family with the same parameters, which learned first what it learns

    family: str
    """Kind of model; a preset's own, chosen by the name of a preset."""
    backbone: BackboneConfig = BackboneConfig()
    """What makes feature maps of the image."""
    hidden: Width = 256
    """Channels of queries and memory; divisible by heads."""
    heads: Layers = 8
    """Heads of each attention."""
    encoder_layers: Layers = 6
    """Layers of the encoder."""
    decoder_layers: Layers = 6
    """Layers of the decoder; each predicts, the last one's predictions are used."""
    feedforward: Width = 2048
    """Hidden channels of the feed-forward networks."""
    dropout: Rate = 0.1
    """Share of activations that training drops; 0: none."""


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

    anchors: ClassVar[bool] = True

    family: Literal["dab_detr"] = "dab_detr"
    dropout: Rate = 0.0
    temperature: Positive = 20.0
    """Of the feature map's position encoding; higher: longer waves."""
    activation: Literal["prelu", "relu"] = "prelu"
    """Of the feed-forward networks."""
    patterns: Annotated[Whole, Field(ge=0, le=1000)] = 0
    """Learned contents that each anchor is tried with; 0: one, of zeros."""


class DeformableDetrConfig(TransformerConfig):
    """Deformable-DETR (Zhu et al., 2021)."""

    published_context: ClassVar[Context] = "projected"

    family: Literal["deformable_detr"] = "deformable_detr"
    feedforward: Width = 1024
    levels: Layers = 4
    """Feature maps; those beyond the backbone's are strided convolutions."""
    points: Layers = 4
    """Sampling points a head and level."""
    refine: bool = False
    """Every layer refines the boxes of the one before."""
    two_stage: bool = False
    """Encoder proposals replace the learned queries; needs queries.kind=static."""


class DabDeformableDetrConfig(DeformableDetrConfig):
    """DAB-Deformable-DETR (Liu et al., 2022): anchors are refined by every layer, never proposed by the encoder."""

    anchors: ClassVar[bool] = True

    family: Literal["dab_deformable_detr"] = "dab_deformable_detr"  # type: ignore[assignment]
    feedforward: Width = 2048
    dropout: Rate = 0.0
    refine: Literal[True] = True
    two_stage: Literal[False] = False


class DinoConfig(TransformerConfig):
    """DINO (Zhang et al., 2023): learned contents at the encoder's best proposals."""

    published_context: ClassVar[Context] = "projected"
    anchors: ClassVar[bool] = True

    family: Literal["dino"] = "dino"
    dropout: Rate = 0.0
    finest: Literal[4, 8] = 8
    """Stride of the finest map of the backbone that is read."""
    levels: Layers = 4
    """Feature maps; those beyond the backbone's are strided convolutions."""
    points: Layers = 4
    """Sampling points a head and level."""


class Mask2FormerConfig(TransformerConfig):
    """Mask2Former (Cheng et al., 2022), with its multi-scale deformable pixel decoder."""

    tasks: ClassVar[tuple[Task, ...]] = ("instance", "panoptic")
    loss: ClassVar[str] = "masks"
    published_context: ClassVar[Context] = "memory"
    no_object: ClassVar[bool] = True

    family: Literal["mask2former"] = "mask2former"
    decoder_layers: Layers = 9
    encoder_feedforward: Width = 1024
    """Hidden channels of the feed-forward networks of the pixel decoder."""
    mask_channels: Width | None = None
    """Channels of the features that masks are products with; null: those of model.hidden."""
    dropout: Rate = 0.0
    points: Layers = 4
    """Sampling points a head and level of the pixel decoder."""
    see_padding: bool = False
    """Treat padding as image, as the published code does."""


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
    levels: Annotated[Layers, Field(ge=3)] = 4
    """Feature maps, 3 or more; masks are made from the three of the backbone."""
    refine: Literal[True] = True
    two_stage: Literal[False] = False
    see_padding: bool = False
    """Let the masks' convolutions read padded cells, as the published code does."""


class LwDetrConfig(TransformerConfig):
    """LW-DETR (Chen et al., 2024): a plain vision transformer is the encoder."""

    family: Literal["lw_detr"] = "lw_detr"
    backbone: WindowedVitConfig = WindowedVitConfig()
    encoder_layers: Literal[0] = 0
    cross_heads: Layers = 16
    """Heads of the attention to the image; model.heads are those of the attention between queries."""
    decoder_layers: Layers = 3
    dropout: Rate = 0.0
    points: Layers = 2
    """Sampling points a head and level."""
    scales: Annotated[list[Positive], Field(min_length=1)] = [1.0]
    """Scales of the levels that queries read, relative to the backbone's maps: 0.5, 1 or 2."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if set(self.scales) - {0.5, 1.0, 2.0}:
            raise ValueError(f"model.scales={self.scales}: scales are 0.5, 1 and 2")
        return self


class RfDetrConfig(LwDetrConfig):
    """RF-DETR (Robinson et al., 2025): LW-DETR on DINOv2."""

    family: Literal["rf_detr"] = "rf_detr"  # type: ignore[assignment]
    norm_epsilon: Positive = 1e-6
    """Added to the variance in the norms of the projector."""


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
    | DinoConfig
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

    kind: Literal["static", "modulated", "generated", "grouped", "shared", "own"] = "modulated"
    """Where queries come from: learned (static), combined by the image (modulated), made by an MLP (generated), with
    unrelated training groups (grouped), from shared patterns (shared), of a Python program (own).
    """
    count: Width = 300
    """m: queries used at inference, the most objects that can be found."""
    ratio: Width = 4
    """r: basic queries behind each modulated one."""
    basic: Literal["whole", "groups", "one"] = "whole"
    """How basic (or unrelated) queries train: all as one group (whole), as r groups of m (groups), or one of these
    groups a step (one).
    """
    patterns: Width = 100
    """K: patterns behind all queries of kind shared together."""
    hidden: Width = 512
    """Hidden channels of the MLP that predicts the coefficients."""
    context: Context = "backbone"
    """Map that tells what is in the image: the backbone's coarsest (the paper's F), that after its projection
    (projected), or what the encoder makes of it (memory); none: coefficients are learned constants.
    """
    pool: Literal["mean", "max"] = "mean"
    """How the context map is pooled."""
    pool_padding: bool = False
    """Let padded positions take part in the pooling, as the published code does."""
    coefficients: Literal["softmax", "raw"] = "softmax"
    """softmax: convex combinations; raw: any, as parts of the published code do."""
    denoising: CountOrZero = 0
    """Queries in training that are objects with noise: so many of the image with most objects, and as many again with
    more noise that are background; of families with anchors; 0: none.
    """
    label_noise: Share = 0.25
    """Share of the denoising queries whose class is drawn anew."""
    box_noise: NonNegative = 1.0
    """Most that a corner of a denoising query moves, in half sides; of those that are background, up to twice that."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "generated" and self.context == "none":
            raise ValueError("queries.kind=generated makes queries of the context; set queries.context to one of a map")
        return self


class LossConfig(Section):
    """Set loss of boxes: matching costs, weights and normalisation (``losses/set_loss.py``)."""

    kind: Literal["boxes"] = "boxes"
    """Kind of loss; the family's own."""
    classification: Classification = "focal"
    """Loss of the class scores: cross_entropy needs an output for no object; iou_aware is LW-DETR's."""
    class_cost: NonNegative = 2.0
    """Weight of the class scores in the matching."""
    box_cost: NonNegative = 5.0
    """Weight of the L1 distance of boxes in the matching."""
    giou_cost: NonNegative = 2.0
    """Weight of the generalised IoU of boxes in the matching."""
    class_weight: NonNegative = 2.0
    """Weight of the classification loss."""
    box_weight: NonNegative = 5.0
    """Weight of the L1 loss of boxes."""
    giou_weight: NonNegative = 2.0
    """Weight of the generalised IoU loss of boxes."""
    no_object_weight: NonNegative = 0.1
    """Weight of unmatched queries in the cross-entropy; no effect on focal."""
    box_epsilon: NonNegative = 0.0
    """Added to the denominators of IoU and GIoU."""
    beta: NonNegative | None = 1.0
    """Weight of the basic queries' loss (Eq. 7); 0: they do not train by themselves; null: the mean over all groups."""


class MaskLossConfig(Section):
    """Set loss of masks, compared at points (``losses/masks.py``). Costs of the matching have the same weights."""

    kind: Literal["masks"] = "masks"
    """Kind of loss; the family's own."""
    class_weight: NonNegative = 2.0
    """Weight of the classification loss, and of the class scores in the matching."""
    mask_weight: NonNegative = 5.0
    """Weight of the binary cross-entropy of masks, and of it in the matching."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice loss of masks, and of it in the matching."""
    no_object_weight: NonNegative = 0.1
    """Weight of unmatched queries in the classification loss."""
    points: Annotated[Whole, Field(gt=0, le=2**24)] = 12544
    """Points of a mask at which it is compared."""
    oversample: Annotated[Real, Field(ge=1, le=100)] = 3.0
    """Candidates of the loss's points, times the points."""
    important: Share = 0.75
    """Share of points that are the candidates of least certainty; the others are drawn evenly."""
    beta: NonNegative = 1.0
    """Weight of the basic queries' loss (Eq. 7); 0: they do not train by themselves."""


class InstanceLossConfig(LossConfig):
    """Set loss of boxes with masks (``losses/instances.py``). Costs of the masks have the same weights."""

    kind: Literal["instances"] = "instances"  # type: ignore[assignment]
    mask_weight: NonNegative = 5.0
    """Weight of the binary cross-entropy of masks."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice loss of masks."""
    cells_a_point: Count = 16
    """Cells of a mask for each point at which it is compared."""


class SequenceLossConfig(LossConfig):
    """Set loss of sequences of boxes, with the masks of matched queries (``losses/sequences.py``)."""

    kind: Literal["sequences"] = "sequences"  # type: ignore[assignment]
    classification: Literal["focal"] = "focal"
    mask_weight: NonNegative = 2.0
    """Weight of the focal loss of masks."""
    dice_weight: NonNegative = 5.0
    """Weight of the dice loss of masks."""


def _loss_kind(options: Any) -> str:
    kind = options.get("kind", "boxes") if isinstance(options, dict) else getattr(options, "kind", None)
    return kind if isinstance(kind, str) else ""


AnyLossConfig = Annotated[
    Annotated[LossConfig, Tag("boxes")]
    | Annotated[MaskLossConfig, Tag("masks")]
    | Annotated[InstanceLossConfig, Tag("instances")]
    | Annotated[SequenceLossConfig, Tag("sequences")],
    Discriminator(_loss_kind),
]


class InferenceConfig(Section):
    """Which predictions are reported (``inference/``)."""

    limit: Count = 100
    """Most objects that are reported of an image, or tracks of a video."""
    object_threshold: Share = 0.8
    """Least score of a segment of a panoptic map, 0..1; `predict --threshold` sets it."""
    overlap_threshold: Share = 0.8
    """Share of its mask, 0..1, that a segment of a panoptic map must keep beside better ones."""
    window: Annotated[Frames, Field(ge=2)] = 36
    """Frames of a video that go through the model together; more need more memory."""


class ScenesConfig(Section):
    """The built-in generated data set (``data/scenes/``)."""

    size: Pixels = 128
    """Height and width of pictures, in pixels."""
    train_images: Count = 2000
    """Images, or videos, of the training split."""
    val_images: Count = 200
    """Images, or videos, of the validation split."""
    frames: Frames = 8
    """Frames of each video."""
    seed: Seed = 0
    """What the pictures are drawn from; another one gives another data set."""


class ClipsConfig(Section):
    """How videos are cut into clips for training."""

    frames: Frames = 2
    """Frames of a clip."""
    reach: Frames = 20
    """Frames from the first chosen one within which the others lie, on both sides."""
    neighbours: Annotated[Whole, Field(ge=0, le=10_000)] = 0
    """SeqFormer's clips: one frame before and one after the first chosen one, at most so many away, the others from
    beyond these two; 0: all are drawn evenly.
    """
    every_frame: bool = False
    """An epoch has a clip around every frame; false: one of every video."""
    images: Text | None = None
    """Folder of COCO, whose images become clips of their own (pseudo-videos); null: none."""

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
    "yolo": ("detection", "instance"),
    "voc": ("detection", "instance"),
    "labelme": ("detection", "instance"),
    "webdataset": ("detection", "instance"),
    "cityscapes": ("instance", "panoptic"),
    "youtube_vis": ("video",),
    "scenes": ("detection", "instance", "panoptic", "video"),
}


class AugmentConfig(Section):
    """Augmentation beyond the published recipes, each kind off at 0 (``data/combining.py``, ``data/transforms.py``)."""

    mosaic: Share = 0.0
    """Chance that a training image becomes a mosaic of four, of detection and instance."""
    mixup: Share = 0.0
    """Chance that another image shines through, with its objects, of detection and instance."""
    copy_paste: Share = 0.0
    """Chance that objects of another image are copied into it, by their masks, of instance."""
    rotate: Annotated[Real, Field(ge=0, le=180)] = 0.0
    """Greatest turn in degrees, to both sides, of detection and instance."""
    translate: Share = 0.0
    """Greatest shift in shares of height and width, of detection and instance."""
    scale: Rate = 0.0
    """Greatest change of scale: 0.5 gives 0.5 to 1.5 of the size, of detection and instance."""
    shear: Annotated[Real, Field(ge=0, le=60)] = 0.0
    """Greatest shear in degrees, of detection and instance."""
    colour: Annotated[Real, Field(ge=0, le=2)] = 0.0
    """Strength of changes of brightness, contrast, saturation (by up to 0.4 at 1) and hue (0.05 turns at 1)."""
    blur: Share = 0.0
    """Chance of a Gaussian blur of 0.3 to 2 pixels."""
    jpeg: Share = 0.0
    """Chance of JPEG compression with a quality of 30 to 90."""

    @property
    def combines(self) -> bool:
        """Whether images are made of several."""
        return bool(self.mosaic or self.mixup or self.copy_paste)

    @property
    def moves(self) -> bool:
        """Whether images go through an affine map."""
        return bool(self.rotate or self.translate or self.scale or self.shear)


class DataConfig(Section):
    kind: Literal["coco", "yolo", "voc", "labelme", "webdataset", "cityscapes", "youtube_vis", "scenes"] = "coco"
    """Format of the data set; scenes is generated."""
    task: Task = "detection"
    """What is annotated, learned and measured: boxes, masks, panoptic maps or tracks."""
    root: Text | None = None
    """Folder of the data set, of webdataset also its http address; scenes need none."""
    train: Text | None = None
    """Name of the training split; null: train2017 or train, whichever there is."""
    val: Text | None = None
    """Name of the validation split; null: val2017, val, valid or test, whichever there is."""
    val_share: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    """Share of the images, drawn by their names, that are for validation where a data set has no splits."""
    cache: Annotated[Real, Field(ge=0)] = 10.0
    """Most GiB of the images of a split behind an http address that are kept in the user's cache; 0: none."""
    resize: Annotated[list[Pixels], Field(min_length=1)] = list(range(480, 801, 32))
    """Shorter sides of training images in pixels, one drawn an image."""
    square: bool = False
    """Resize to squares of these sides, and of val_resize, without keeping proportions."""
    max_size: Pixels = 1333
    """Most pixels of the longer side; where it would be more, the image becomes smaller."""
    val_resize: Pixels = 800
    """Shorter side of images in validation and prediction, in pixels."""
    val_max_size: Annotated[Whole, Field(ge=0, le=2**14)] | None = None
    """Most pixels of the longer side in validation and prediction; null: max_size; 0: any."""
    val_fit: Literal["shorter", "exact", "inside", "stretch", "original"] = "shorter"
    """Resize in validation and prediction: shorter: to val_resize, rounded as in official DETR; exact: the same,
    rounded as in transformers; inside: as large as fits into val_size; stretch: to val_size; original: not at all.
    """
    val_size: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels of val_fit=inside and stretch; null: none."""
    val_divisor: Pixels = 1
    """In validation and prediction, sides are stretched up to multiples of it after the resize; 1: they are not."""
    val_pad: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels of padded batches in validation and prediction; null: those of the largest image."""
    mean: tuple[Real, Real, Real] = (0.485, 0.456, 0.406)
    """Of red, green and blue in 0..1, subtracted from images; ImageNet's."""
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)
    """Of red, green and blue in 0..1, by which images are divided; ImageNet's."""
    crop: bool = True
    """DETR's second branch in half of all images: resize to 400-600, crop 384-600, resize again."""
    jitter: tuple[Scale, Scale] | None = None
    """Large-scale jitter, least and greatest factor of the window; replaces resize; null: none."""
    window: tuple[Pixels, Pixels] | None = None
    """Height, width of a random crop at the end; with jitter, smaller images are padded to it, and the model sees
    that; null: none.
    """
    flip: bool = True
    """Mirror half of all training images."""
    colour: bool = False
    """SSD's photometric distortion, of every frame on its own."""
    hue: Annotated[Real, Field(ge=0, le=0.5)] = 0.05
    """Greatest shift of the hue by colour=true, in turns of the colour circle."""
    permute_channels: bool = False
    """With colour=true, the colour channels change places in half of all images."""
    augment: AugmentConfig = AugmentConfig()
    """Further augmentation, none of it in a published recipe."""
    shrink: bool = False
    """Decode training JPEGs at a half, a quarter or an eighth of their size, where no resize needs more: faster, with
    slightly other pixels; of detection.
    """
    skip_empty: bool = False
    """Leave out training images without objects, those with crowds alone, too; of coco, but not panoptic."""
    redraw_empty: bool = False
    """A training item that the augmentation leaves without objects becomes another one."""
    clips: ClipsConfig = ClipsConfig()
    """How videos are cut into clips."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 2
    """Processes that read images, for each process of the training; 0: it reads them itself."""
    scenes: ScenesConfig = ScenesConfig()
    """The generated data set."""
    check: bool = True
    """Read the headers of all images before a training or evaluation: each is there, an image, and of its size."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.jitter is not None and self.window is None:
            raise ValueError("data.jitter is relative to data.window, which is not set; set data.window=[1024, 1024]")
        if self.jitter is not None and self.jitter[0] > self.jitter[1]:
            least, greatest = self.jitter
            raise ValueError(f"data.jitter=[{least}, {greatest}]: the least factor is above the greatest; swap them")
        sized = self.val_fit in ("inside", "stretch")
        if sized and self.val_size is None:
            raise ValueError(f"data.val_fit={self.val_fit} needs a size; set data.val_size=[640, 640]")
        if self.val_size is not None and not sized:
            raise ValueError(
                f"data.val_size has no effect on data.val_fit={self.val_fit}; set data.val_fit=stretch, or inside"
            )
        of_boxes = ("mosaic", "mixup", "copy_paste", "rotate", "translate", "scale", "shear")
        used = [f"data.augment.{name}" for name in of_boxes if getattr(self.augment, name)]
        if used and self.task not in ("detection", "instance"):
            raise ValueError(
                f"{listed(used)}: of data.task=detection and instance alone, not {self.task}; leave it out"
            )
        if self.augment.copy_paste and self.task != "instance":
            raise ValueError(
                "data.augment.copy_paste copies objects by their masks, which data.task=detection has not; set "
                "data.task=instance, or leave it out"
            )
        return self


class TrainConfig(Section):
    epochs: Count | None = 50
    """Passes over the training split; setting steps unsets it, and of both, what comes first is the end."""
    steps: Count | None = None
    """Optimiser steps, the length of the training where epochs is null, or its end."""
    batch: Count = 16
    """Images a step, over all processes and accumulated batches together; auto, of `dqdet train`: as the preset has
    it, in the largest parts that fit into the memory.
    """
    accumulate: Count = 1
    """Batches a step and process, to fit a large batch into a small memory; the gradient stays the same."""
    lr: Positive = 2e-4
    """Learning rate of everything but the backbone and the offsets."""
    backbone_lr: NonNegative = 2e-5
    """Learning rate of the backbone; 0 freezes it."""
    offsets_lr: Positive = 2e-5
    """Learning rate of sampling offsets and reference points; of deformable families."""
    decoder_lr: Positive | None = None
    """Learning rate of the decoder's layers, norm and positions, of LW-DETR and RF-DETR; null: lr."""
    layer_decay: Annotated[Real, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate from each block of a plain transformer to the one before it, with no weight decay of
    its norms, biases and positions; null: one rate for the backbone.
    """
    weight_decay: NonNegative = 1e-4
    """Weight decay of AdamW."""
    schedule: Literal["steps", "poly"] = "steps"
    """Learning rates fall in steps, at drop or drop_steps, or evenly (poly)."""
    drop: list[Positive] = [40.0]
    """Epochs after which the learning rates are divided by ten, of schedule=steps; unless set, they move with the
    length: 40 of 50 epochs are 9.6 of 12.
    """
    drop_steps: list[Count] = []
    """Optimiser steps after which they are, where drop is empty; they move like drop."""
    power: Positive = 0.9
    """Exponent of the share of steps that are left; of schedule=poly."""
    decay_norms: bool = True
    """Weight decay of norms and embeddings too."""
    warmup: CountOrZero = 0
    """Steps in which the learning rates rise from zero, whatever the length; 0: none."""
    clip: NonNegative = 0.1
    """Greatest norm of the gradient; 0: any."""
    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"
    """Of the computations; 16-mixed is of GPUs, without one it becomes 32."""
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Decay a step of averaged weights, which are validated and kept; null: no averaging."""
    validate_every: Count = 1
    """Epochs between validations."""
    patience: Count | None = None
    """Validations without a better one after which the training ends; null: it has its whole length."""
    pictures: CountOrZero = 0
    """Validation images, the same ones each time, that are drawn with what the model finds, some ten times in a
    training; of boxes and instance masks; 0: none.
    """
    recompute: bool = False
    """Compute the layers of backbone, encoder and decoder anew in the backward pass, to keep less in memory; the
    gradient stays the same.
    """
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """Whether each process of several has the whole model, or they divide weights, gradients and the optimiser's state
    (fsdp).
    """
    timeout: Count = 600
    """Seconds for which processes that train together wait for one another, before the training ends."""
    logger: list[Literal["tensorboard", "csv", "wandb", "mlflow"]] = ["tensorboard", "csv"]
    """Where losses, rates and metrics are logged; csv always is; wandb and mlflow are of the extra loggers."""
    seed: Seed = 0
    """Of initial weights, order, augmentation and dropout; the same one gives the same training."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.epochs is None and self.steps is None:
            raise ValueError("the training has no length: set train.epochs or train.steps")
        if self.strategy == "fsdp" and self.ema is not None:
            raise ValueError(
                f"train.ema={self.ema} averages whole weights, which train.strategy=fsdp divides; set train.ema=null, "
                "or train.strategy=ddp"
            )
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError(
                "train.precision=16-mixed scales the loss by whole gradients, which train.strategy=fsdp divides; set "
                "train.precision=bf16-mixed"
            )
        if self.drop and self.drop_steps:
            raise ValueError(
                f"train.drop={self.drop} (epochs) and train.drop_steps={self.drop_steps} are both set; empty one of "
                "them: train.drop_steps=[] or train.drop=[]"
            )
        return self


UNUSED = "N/A"  # the class of an output for an id that no category has


class Config(Section):
    """Everything that makes a model, its training and its use reproducible."""

    preset: Annotated[str, Field(max_length=200, pattern=r"^\w*$")]
    """Name of the preset that this is made from."""
    model: ModelConfig
    """The network."""
    queries: QueriesConfig = QueriesConfig()
    """Where the decoder's queries come from."""
    loss: AnyLossConfig = LossConfig()
    """Matching and set loss."""
    data: DataConfig = DataConfig()
    """The data set, and how images are prepared."""
    train: TrainConfig = TrainConfig()
    """Length, optimiser and precision of a training."""
    inference: InferenceConfig = InferenceConfig()
    """Which predictions are reported."""
    classes: list[Text] = []
    """Names of the classes in label order; filled from the data set."""
    category_ids: list[Id] = []
    """The data set's id of each class, with which results are written; filled from it."""
    stuff: list[Text] = []
    """Classes that are regions, not objects, of panoptic maps; filled from the data set."""
    init: Text | None = None
    """What the weights start from: a run, a checkpoint or a name on the hub; null: ImageNet alone."""

    @property
    def ids(self) -> list[int]:
        """The category id of each class. Where they are not known, classes are numbered from 1; those of models with an
        output for each id are their own ids: 0 is one that no category has."""
        first = 0 if self.classes[:1] == [UNUSED] else 1
        return self.category_ids or list(range(first, first + len(self.classes)))

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
        if isinstance(model, DeformableDetrConfig | DinoConfig | Mask2FormerConfig) and model.hidden % 32:
            raise ValueError(f"model.hidden={model.hidden} is not divisible by 32, the groups of the group norms")
        if self.data.task not in TASKS_OF_DATA[self.data.kind]:
            raise ValueError(
                f"data.kind={self.data.kind} has no data.task={self.data.task}, only "
                f"{', '.join(TASKS_OF_DATA[self.data.kind])}"
            )
        if self.data.task == "video" and self.data.val_pad is not None:
            raise ValueError(
                "data.val_pad has no effect on data.task=video, whose clips are never padded; leave it out"
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
        if self.queries.denoising and not model.anchors:
            raise ValueError(
                f"queries.denoising={self.queries.denoising} needs anchor boxes, which objects with noise can be; "
                f"model.family={model.family} has none; set queries.denoising=0"
            )
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
