"""Options of each family's network, by default the published ones."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dqdet.config.section import Context, Layers, Pixels, Positive, Rate, Section, Task, Text, Whole, Width


class BackboneConfig(Section):
    name: Text = "resnet50"
    """Network that makes the feature maps: a timm model, or a short name (resnet50, swin_b, ...)."""
    pretrained: bool = True
    """Start from ImageNet weights, which timm fetches; false: random ones."""
    weights: Text | None = None
    """Local file of weights (.safetensors, .pth or .pkl) instead of the fetched ones; null: none."""
    freeze: bool | Literal["norms"] = True
    """What is frozen in ResNets. true: batch norms, stem and first stage, as published for detectors; norms: batch
    norms only; false: nothing.
    """
    dilation: bool = False
    """Dilate the last stage of a ResNet instead of striding it, so that its map has stride 16 (DETR's DC5)."""
    drop_path: Rate | None = None
    """Stochastic depth: greatest chance that a block is skipped in training; null: the backbone's default."""


class WindowedVitConfig(BackboneConfig):
    """A plain vision transformer (``nn/vit.py``). Blocks are counted from 0."""

    name: Text = "vit_small_patch14_dinov2"
    pretrained: bool = False
    """Start from weights of the transformer alone; published detectors are the usual start."""
    freeze: Literal[False] = False
    """Nothing is frozen."""
    dilation: Literal[False] = False
    """No stage is dilated: tokens have one stride."""
    patch: Pixels = 16
    """Pixels along the side of a token."""
    positions: Layers = 24
    """Side of the learned table of positions, in tokens; images of other sizes resample it."""
    windows: Layers = 2
    """Windows along the side of an image; sides are multiples of patch times windows."""
    global_blocks: list[Annotated[Whole, Field(ge=0, le=100)]] = [3, 6, 9]
    """Blocks that see the whole image, counted from 0; all others see a window."""
    taps: Annotated[list[Layers], Field(min_length=1)] = [3, 6, 9, 12]
    """Numbers of blocks after which maps are taken; blocks after the last one do not run."""


class TransformerConfig(Section):
    """What all families have."""

    tasks: ClassVar[tuple[Task, ...]] = ("detection",)  # that the family can learn
    loss: ClassVar[str] = "boxes"  # kind of its set loss
    published_context: ClassVar[Context] = "backbone"  # of the code that dynamic queries were published with
    anchors: ClassVar[bool] = False  # whether its queries have anchor boxes, which objects with noise can be
    no_object: ClassVar[bool] = False  # whether its class head has one output more, the last, for "no object"
    starts_from: ClassVar[str | None] = None  # a family with the same parameters, which learned first what it learns

    family: str
    """Kind of model; set by the choice of a preset."""
    backbone: BackboneConfig = BackboneConfig()
    """Network that makes feature maps of the image."""
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
    """Temperature of the feature map's position encoding; higher: longer waves."""
    activation: Literal["prelu", "relu"] = "prelu"
    """Activation of the feed-forward networks."""
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
    """Sampling points per head and level."""
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
    """Stride of the finest backbone map that is read."""
    levels: Layers = 4
    """Feature maps; those beyond the backbone's are strided convolutions."""
    points: Layers = 4
    """Sampling points per head and level."""


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
    """Channels of the features that masks are products with; null: model.hidden."""
    dropout: Rate = 0.0
    points: Layers = 4
    """Sampling points per head and level of the pixel decoder."""
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
    """Sampling points per head and level."""
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
