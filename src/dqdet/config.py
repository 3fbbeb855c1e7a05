"""Typed configuration: what can be set, its default, and how presets and ``key=value`` overrides combine.

A configuration is complete and self-describing: ``dqdet presets NAME`` prints it, a run folder keeps it, and
``dqdet.load`` builds the model from it alone. Defaults are the paper's and the families' published ones;
``presets/*.yaml`` hold only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from dqdet.errors import DqdetError


class Section(BaseModel):
    """A group of options. Unknown keys are refused, and values are checked on assignment too."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class BackboneConfig(Section):
    name: str = "resnet50"  # a timm model, or one of the short names of nn/backbone.py
    pretrained: bool = True  # ImageNet weights, fetched by timm
    weights: str | None = None  # a local weights file (.safetensors or .pth) instead of the fetched ones
    freeze: bool = True  # batch norms, stem and first stage of ResNets, as published for pretrained ones


class TransformerConfig(Section):
    """What all families have."""

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

    family: Literal["detr"] = "detr"


class ConditionalDetrConfig(TransformerConfig):
    """Conditional-DETR (Meng et al., 2021)."""

    family: Literal["conditional_detr"] = "conditional_detr"


class SmcaDetrConfig(TransformerConfig):
    """SMCA-DETR (Gao et al., 2021), with one feature map."""

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

    family: Literal["mask2former"] = "mask2former"
    decoder_layers: PositiveInt = 9
    encoder_feedforward: PositiveInt = 1024  # of the pixel decoder
    dropout: NonNegativeFloat = 0.0
    points: PositiveInt = 4  # sampling points a head and level of the pixel decoder
    see_padding: bool = False  # treat padding as image, as the published code does


ModelConfig = Annotated[
    DetrConfig
    | ConditionalDetrConfig
    | SmcaDetrConfig
    | DabDetrConfig
    | DeformableDetrConfig
    | DabDeformableDetrConfig,
    Field(discriminator="family"),
]


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


class MaskLossConfig(Section):
    """Set loss of masks, compared at points (``losses/masks.py``). Costs of the matching have the same weights."""

    class_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0  # binary cross-entropy
    dice_weight: NonNegativeFloat = 5.0
    no_object_weight: NonNegativeFloat = 0.1
    points: PositiveInt = 12544  # a mask
    oversample: float = Field(default=3.0, ge=1)  # candidates of the loss's points, times the points
    important: float = Field(default=0.75, ge=0, le=1)  # share of points that are the candidates of least certainty
    beta: NonNegativeFloat = 1.0  # weight of the basic queries' loss, Eq. 7


class ScenesConfig(Section):
    """The built-in generated data set (``data/scenes.py``)."""

    size: PositiveInt = 128  # height and width, pixels
    train_images: PositiveInt = 2000
    val_images: PositiveInt = 200
    seed: int = Field(default=0, ge=0)


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
    seed: int = Field(default=0, ge=0)


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
    init: str | None = None  # what the weights start from: a run, a checkpoint or a name on the hub; None: ImageNet

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        model = self.model
        if model.hidden % model.heads:
            raise ValueError(f"model.hidden={model.hidden} is not divisible by model.heads={model.heads}")
        if isinstance(model, DeformableDetrConfig) and model.hidden % 32:
            raise ValueError(f"model.hidden={model.hidden} is not divisible by 32, the groups of the group norms")
        if isinstance(model, DeformableDetrConfig) and model.two_stage and self.queries.kind != "static":
            raise ValueError(
                f"model.two_stage takes the queries from the encoder's proposals, so queries.kind="
                f"{self.queries.kind} has nothing to combine; set queries.kind=static"
            )
        return self


Overrides = Iterable[str] | Mapping[str, Any]  # ["train.epochs=12"], or {"train.epochs": 12}, nested or not

FIXED = ("preset", "model.family")  # what a preset is; another one is chosen by its name


def preset_names() -> list[str]:
    return sorted(file.name.removesuffix(".yaml") for file in files("dqdet").joinpath("presets").iterdir())


def describe(name: str) -> str:
    """What a preset is, in one line."""
    return _read_preset(name)["description"]


def resolve(name: str, overrides: Overrides = ()) -> Config:
    """The configuration of a preset with overrides.

    Raises:
        DqdetError: unknown preset or option, value of a wrong type, or options that contradict each other.
    """
    options = _read_preset(name)
    del options["description"]
    if "extends" in options:
        config = override(resolve(options.pop("extends")), options).model_copy(update={"preset": name})
    else:
        config = _validated({"preset": name, **options})
    return override(config, overrides)


def override(config: Config, overrides: Overrides) -> Config:
    """A copy of a configuration with some options set.

    Raises:
        DqdetError: as `resolve`.
    """
    options = config.model_dump()
    known = _flat(options)
    for path, value in parse_overrides(overrides).items():
        if path in FIXED and value != known[path]:
            raise DqdetError(f"{path} cannot be set: choose another preset ({', '.join(preset_names())})")
        if path not in known:
            raise DqdetError(_unknown_option(path, list(known)))
        *sections, option = path.split(".")
        section = options
        for part in sections:
            section = section[part]
        section[option] = value
    return _validated(options)


def changes(config: Config) -> dict[str, Any]:
    """The overrides of its preset that make a configuration, without what is filled from the data set."""
    preset = _flat(resolve(config.preset).model_dump())
    options = _flat(config.model_dump(exclude={"classes", "category_ids"}))
    return {path: value for path, value in options.items() if value != preset[path]}


def parse_overrides(overrides: Overrides) -> dict[str, Any]:
    """Overrides by the dotted paths of their options.

    Of a ``key=value`` text, numbers and flags stay text: the option's own type says how to read them
    (``data.train=2017`` is a name, ``train.epochs=12`` a number).
    """
    if isinstance(overrides, Mapping):
        return _flat(overrides)
    parsed = {}
    for text in overrides:
        path, separator, value = text.partition("=")
        if not separator:
            raise DqdetError(f"'{text}' is not of the form option=value")
        try:
            parsed[path] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise DqdetError(f"{text}: not a value: {str(error).splitlines()[0]}") from error
        if isinstance(parsed[path], dict):
            parsed |= _flat({path: parsed.pop(path)})
        elif not isinstance(parsed[path], list | None):
            parsed[path] = value
    return parsed


def to_yaml(config: Config) -> str:
    """Every option, resolved, in the order of the schema; numbers and lists in one line."""
    return yaml.dump(config.model_dump(), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)


def from_yaml(text: str, source: str) -> Config:
    """The inverse of `to_yaml`. ``source``, the file, is named in errors."""
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DqdetError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise DqdetError(f"{source}: not a configuration of dqdet")
    try:
        return _validated(options)
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error


class _Dumper(yaml.SafeDumper):
    """Lists in one line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def _read_preset(name: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        nearest = get_close_matches(name, names, n=1, cutoff=0.5)
        raise DqdetError(f"unknown preset '{name}'{_suggestion(nearest)}; there are: {', '.join(names)}")
    return yaml.safe_load(files("dqdet").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8"))


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted paths."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _unknown_option(path: str, known: list[str]) -> str:
    inside = [option for option in known if option.startswith(f"{path}.")]
    if inside:
        return f"{path} is a group of options; set one of {', '.join(inside)}"
    same_name = [option for option in known if option.split(".")[-1] == path.split(".")[-1]]
    nearest = same_name or get_close_matches(path, known, n=1, cutoff=0.5)
    return f"unknown option '{path}'{_suggestion(nearest)}; `dqdet presets NAME` prints all options"


def _suggestion(nearest: list[str]) -> str:
    return f", did you mean {' or '.join(nearest)}?" if nearest else ""


def _validated(options: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(options)
    except ValidationError as error:
        raise DqdetError("; ".join(map(_problem, error.errors()))) from error


def _problem(error: Any) -> str:
    """One of pydantic's errors in the words of the command line: ``train.epochs=abc: should be ...``."""
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    location = [str(part) for part in error["loc"]]
    if location[0] == "model":
        del location[1:2]  # pydantic adds the family here
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"unknown option '{path}'"
    message = message.replace("Input should be", "should be").split(", unable")[0]
    return f"{path}={error['input']}: {message}"
