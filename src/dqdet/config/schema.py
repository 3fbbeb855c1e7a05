"""What can be set, and its default: the paper's and the families' published ones.

The text below an option is its explanation, which ``dqdet presets NAME`` prints. Options of the network stand in
``families.py``, of the loss in ``losses.py``, of the data in ``data.py``; here are the others, and what must fit
together.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dqdet.config.data import TASKS_OF_DATA, DataConfig
from dqdet.config.families import DeformableDetrConfig, DinoConfig, LwDetrConfig, Mask2FormerConfig, ModelConfig
from dqdet.config.losses import AnyLossConfig, LossConfig
from dqdet.config.section import (
    Context,
    Count,
    CountOrZero,
    Frames,
    Id,
    NonNegative,
    Positive,
    Real,
    Section,
    Seed,
    Share,
    Text,
    Width,
)
from dqdet.errors import listed


class QueriesConfig(Section):
    """Where the decoder's queries come from (``queries.py``)."""

    kind: Literal["static", "modulated", "generated", "grouped", "shared", "own"] = "modulated"
    """Where queries come from. static: learned; modulated: combinations of basic queries that depend on the image;
    generated: made by an MLP; grouped: learned, with unrelated training groups; shared: combinations of patterns that
    all queries share; own: a source given from Python.
    """
    count: Width = 300
    """m: queries used at inference, the most objects that can be found."""
    ratio: Width = 4
    """r: basic queries behind each modulated one."""
    basic: Literal["whole", "groups", "one"] = "whole"
    """How basic (or unrelated) queries train: all as one group (whole), as r groups of m (groups), or one of these
    groups a batch (one).
    """
    patterns: Width = 100
    """K: patterns behind all queries of kind shared together."""
    hidden: Width = 512
    """Hidden channels of the MLP that predicts the coefficients."""
    context: Context = "backbone"
    """Map that the coefficients are computed from. backbone: its coarsest (the paper's F); projected: the same after
    its projection; memory: after the encoder; none: the coefficients are learned constants.
    """
    pool: Literal["mean", "max"] = "mean"
    """How the context map is pooled."""
    pool_padding: bool = False
    """Pool over padded positions, too, as the published code does."""
    coefficients: Literal["softmax", "raw"] = "softmax"
    """softmax: convex combinations; raw: any combinations, as in parts of the published code."""
    denoising: CountOrZero = 0
    """Positive denoising queries (DINO) for the image with the most objects; as many negative ones are added. For
    families with anchors; 0: none.
    """
    label_noise: Share = 0.25
    """Share of the denoising queries that get a random class."""
    box_noise: NonNegative = 1.0
    """Greatest shift of a corner of a positive denoising query, in half sides; negative ones move up to twice that."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "generated" and self.context == "none":
            raise ValueError("queries.kind=generated makes queries of the context; set queries.context to one of a map")
        return self


class InferenceConfig(Section):
    """Which predictions are reported (``inference/``)."""

    limit: Count = 100
    """Most objects reported in an image, or tracks in a video."""
    object_threshold: Share = 0.8
    """Least score of a segment of a panoptic map, 0..1; `predict --threshold` sets it."""
    overlap_threshold: Share = 0.8
    """Share of its mask, 0..1, that a segment of a panoptic map must keep beside better ones."""
    window: Annotated[Frames, Field(ge=2)] = 36
    """Frames of a video that go through the model together; more need more memory."""


class TrainConfig(Section):
    epochs: Count | None = 50
    """Passes over the training split; setting steps alone unsets it. With both, the one that comes first ends it."""
    steps: Count | None = None
    """Optimiser steps; with epochs, at most so many."""
    batch: Count = 16
    """Images a step, over all processes and accumulated batches together. `dqdet train` also takes auto: the preset's
    batch, in the largest parts that fit into memory.
    """
    accumulate: Count = 1
    """Batches whose gradients each process adds up for a step, where a whole batch does not fit into memory."""
    lr: Positive = 2e-4
    """Learning rate of everything but the backbone and the offsets."""
    backbone_lr: NonNegative = 2e-5
    """Learning rate of the backbone; 0 freezes it, with the statistics of its norms and without stochastic depth."""
    offsets_lr: Positive = 2e-5
    """Learning rate of sampling offsets and reference points, in deformable families."""
    decoder_lr: Positive | None = None
    """Learning rate of the decoder's layers, norm and positions, in LW-DETR and RF-DETR; null: lr."""
    layer_decay: Annotated[Real, Field(gt=0, le=1)] | None = None
    """Factor on the learning rate from each block of a plain vision transformer to the block before it; its norms,
    biases and positions then have no weight decay. null: one rate for the whole backbone.
    """
    weight_decay: NonNegative = 1e-4
    """Weight decay of AdamW."""
    schedule: Literal["steps", "poly"] = "steps"
    """How learning rates fall. steps: at drop or drop_steps; poly: steadily, by a power."""
    drop: list[Positive] = [40.0]
    """Epochs after which the learning rates are divided by ten, with schedule=steps. Where only the length is changed,
    they move with it: 40 of 50 epochs become 9.6 of 12.
    """
    drop_steps: list[Count] = []
    """Optimiser steps after which the learning rates are divided by ten, where drop is empty; they move like drop."""
    power: Positive = 0.9
    """Exponent of the share of steps that are left, with schedule=poly."""
    decay_norms: bool = True
    """Apply weight decay to norms and embeddings, too."""
    warmup: CountOrZero = 0
    """Steps in which the learning rates rise from zero, whatever the length of training; 0: none."""
    clip: NonNegative = 0.1
    """Gradients with a greater norm are scaled down to it; 0: never."""
    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"
    """Numeric precision of training; 16-mixed needs a GPU, and falls back to 32 without one."""
    tf32: bool = True
    """Round float32 products to TF32 (11 bits) on NVIDIA GPUs, which is much faster; false: exact float32."""
    ema: Annotated[Real, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the weights with this decay a step; it is what is validated and saved. null: none."""
    validate_every: Count = 1
    """Epochs between validations."""
    patience: Count | None = None
    """Stop early after so many validations without a better result; null: never."""
    pictures: CountOrZero = 0
    """Validation images, always the same ones, that are drawn with the model's detections about ten times during
    training; for boxes and instance masks. 0: none.
    """
    recompute: bool = False
    """Gradient checkpointing: compute the layers of backbone, encoder and decoder again in the backward pass. Less
    memory, more time, equal gradients.
    """
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """How several processes train. ddp: each has the whole model; fsdp: weights, gradients and optimiser state are
    sharded over them.
    """
    timeout: Count = 600
    """Seconds that processes wait for one another before training ends with an error."""
    logger: list[Literal["tensorboard", "csv", "wandb", "mlflow"]] = ["tensorboard", "csv"]
    """Where losses, learning rates and metrics are logged; csv always is. wandb and mlflow need the extra `loggers`."""
    seed: Seed = 0
    """Seed of initial weights, order, augmentation and dropout; with the same one, training repeats exactly."""

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
    """Length, optimiser and precision of training."""
    inference: InferenceConfig = InferenceConfig()
    """Which predictions are reported."""
    classes: list[Text] = []
    """Names of the classes in label order; filled from the data set."""
    category_ids: list[Id] = []
    """The data set's id of each class, with which results are written; filled from it."""
    stuff: list[Text] = []
    """Classes of panoptic maps that are regions, not objects; filled from the data set."""
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
        validated = [self.data.val_resize] if self.data.val_fit == "shorter" else []  # others need not be squares
        for option, sides in ("resize", self.data.resize), ("val_resize", validated):
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
