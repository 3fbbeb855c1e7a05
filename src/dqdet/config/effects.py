"""What is legal and has no effect: one line each, which is said before a training starts.

What cannot be meant, such as options that contradict each other, is refused by the schema. Here is what can be meant
but rarely is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from dqdet.config.data import DataConfig
from dqdet.config.length import drop_places, total_steps
from dqdet.config.losses import LossConfig, SequenceLossConfig
from dqdet.config.presets import changes, for_trained_weights
from dqdet.config.schema import Config, QueriesConfig
from dqdet.errors import DqdetError

DIVIDED = ("coco", "yolo", "voc", "labelme")  # formats of detection that may come without splits
DETECTION_FILES = (*DIVIDED, "webdataset")  # formats of detection, whose images are listed one by one
FILLED = ("classes", "category_ids", "stuff")  # from the data set
TRAINED = ("modulated", "grouped", "own")  # kinds of queries with groups that train beside those of inference
DYNAMIC = ("modulated", "generated", "shared", "own")  # those that look at a map; own ones may do anything


@dataclass(frozen=True)
class Unused:
    """Options, or groups of them, that nothing reads where another option has a certain value."""

    options: tuple[str, ...]
    because: str  # the other option
    where: Callable[[Config], bool]


UNUSED = (
    Unused(("queries.ratio", "queries.basic"), "queries.kind", lambda c: c.queries.kind not in TRAINED),
    Unused(("queries.patterns",), "queries.kind", lambda c: c.queries.kind not in ("shared", "own")),
    Unused(
        ("queries.hidden", "queries.context", "queries.pool", "queries.pool_padding"),
        "queries.kind",
        lambda c: c.queries.kind not in DYNAMIC,
    ),
    Unused(
        ("queries.coefficients",),
        "queries.kind",
        lambda c: c.queries.kind not in ("modulated", "shared", "own"),
    ),
    Unused(
        ("queries.hidden", "queries.pool", "queries.pool_padding"),
        "queries.context",
        lambda c: c.queries.kind in ("modulated", "shared") and c.queries.context == "none",
    ),
    Unused(("queries.label_noise", "queries.box_noise"), "queries.denoising", lambda c: c.queries.denoising == 0),
    Unused(("loss.beta",), "queries.kind", lambda c: c.queries.kind not in TRAINED),
    Unused(
        ("loss.no_object_weight",),
        "loss.classification",
        lambda c: isinstance(c.loss, LossConfig) and c.loss.classification != "cross_entropy",
    ),
    Unused(("model.backbone.pretrained", "model.backbone.weights"), "init", lambda c: c.init is not None),
    Unused(("model.backbone.pretrained",), "model.backbone.weights", lambda c: c.model.backbone.weights is not None),
    Unused(("model.backbone.freeze",), "model.backbone.name", lambda c: "swin" in c.model.backbone.name),
    Unused(("model.backbone.drop_path",), "train.backbone_lr", lambda c: c.train.backbone_lr == 0),
    Unused(("data.scenes",), "data.kind", lambda c: c.data.kind != "scenes"),
    Unused(("data.root", "data.train", "data.val"), "data.kind", lambda c: c.data.kind == "scenes"),
    Unused(("data.scenes.frames", "data.clips", "inference.window"), "data.task", lambda c: c.data.task != "video"),
    Unused(
        ("inference.object_threshold", "inference.overlap_threshold"),
        "data.task",
        lambda c: c.data.task != "panoptic",
    ),
    # The images that become clips are COCO's.
    Unused(("data.skip_empty",), "data.kind", lambda c: c.data.kind not in DETECTION_FILES and not c.data.clips.images),
    Unused(("data.shrink",), "data.kind", lambda c: c.data.kind not in DETECTION_FILES),
    Unused(("data.shrink",), "data.task", lambda c: c.data.task != "detection"),
    Unused(("data.val_share",), "data.kind", lambda c: c.data.kind not in DIVIDED),
    Unused(("data.cache",), "data.kind", lambda c: c.data.kind != "webdataset"),
    Unused(("data.skip_empty",), "data.task", lambda c: c.data.kind == "coco" and c.data.task == "panoptic"),
    Unused(("data.hue", "data.permute_channels"), "data.colour", lambda c: not c.data.colour),
    Unused(("data.resize", "data.crop"), "data.jitter", lambda c: c.data.jitter is not None),
    Unused(("data.square",), "data.jitter", lambda c: c.data.jitter is not None and c.data.val_fit != "shorter"),
    Unused(
        ("data.max_size",),
        "data.square",
        lambda c: c.data.square and not (_keeps_proportions(c.data) and c.data.val_max_size is None),
    ),
    Unused(("data.val_max_size",), "data.square", lambda c: c.data.square and c.data.val_fit == "shorter"),
    Unused(
        ("data.val_resize", "data.val_max_size"),
        "data.val_fit",
        lambda c: c.data.val_fit in ("inside", "stretch", "original"),
    ),
    Unused(("train.drop", "train.drop_steps"), "train.schedule", lambda c: c.train.schedule == "poly"),
    Unused(("train.power",), "train.schedule", lambda c: c.train.schedule != "poly"),
    Unused(("train.pictures",), "data.task", lambda c: c.data.task in ("panoptic", "video")),
    Unused(("train.offsets_lr",), "model.family", lambda c: "points" not in type(c.model).model_fields),
    Unused(("train.decay_norms",), "train.weight_decay", lambda c: c.train.weight_decay == 0),
)


def _keeps_proportions(data: DataConfig) -> bool:
    """Whether the resize in validation goes by ``data.val_resize`` and a longest side."""
    return data.val_fit == "exact" or (data.val_fit == "shorter" and not data.square)


def unread(queries: QueriesConfig, given: Collection[str]) -> list[str]:
    """The same of options of queries alone, by their names."""
    rules = [rule for rule in UNUSED if rule.options[0].startswith("queries.") and rule.because.startswith("queries.")]
    return _lines(rules, SimpleNamespace(queries=queries), [f"queries.{option}" for option in given])


def unused(config: Config, given: Collection[str]) -> list[str]:
    """A line for each of the ``given`` options, by their dotted paths, that nothing reads."""
    return _lines(UNUSED, config, given)


def check_used(config: Config, given: Collection[str]) -> None:
    """Raise DqdetError where nothing reads one of the ``given`` options."""
    if lines := unused(config, given):
        raise DqdetError(f"{lines[0]}; leave it out")


def _lines(rules: Sequence[Unused], config: Any, given: Collection[str]) -> list[str]:
    lines: dict[str, str] = {}
    for rule in rules:
        if not rule.where(config):
            continue
        for path in given:
            if any(path == option or path.startswith(f"{option}.") for option in rule.options):
                because = f"{rule.because}={_value(config, rule.because)}"
                lines.setdefault(path, f"{path}={_value(config, path)} has no effect with {because}")
    return list(lines.values())


def _value(config: Any, path: str) -> Any:
    value = config
    for part in path.split("."):
        value = getattr(value, part)
    return value


def without_effect(config: Config, steps_per_epoch: int, learnable: bool, measurable: bool) -> list[str]:
    """A line for everything in a training that has no effect.

    Args:
        config: of the run, before it is filled from the data set.
        steps_per_epoch: optimiser steps.
        learnable: whether the training split has objects.
        measurable: whether the validation split has.
    """
    filled = [f"{name}: those of the data set take its place" for name in FILLED if getattr(config, name)]
    return [
        *unused(config, changes(config)),
        *filled,
        *beyond_the_end(config, steps_per_epoch),
        *_sizes(config),
        *_weights(config),
        *([] if learnable else ["the training split has no objects: nothing but their absence can be learned"]),
        *([] if measurable else ["the validation split has no objects: nothing is measured, the last model is kept"]),
    ]


def without_weights(config: Config) -> Iterator[str]:
    """A line where a preset for trained weights begins without any."""
    if config.init is None and for_trained_weights(config.preset):
        yield (
            f"{config.preset} is meant to start from trained weights: give init=RUN_OR_CHECKPOINT, or train "
            f"{config.preset.removesuffix('_finetune')} from scratch"
        )


def beyond_the_end(config: Config, steps_per_epoch: int) -> Iterator[str]:
    """A line for everything that would happen after the end of the training."""
    train = config.train
    end = total_steps(train, steps_per_epoch)
    late = [place for place in drop_places(train, steps_per_epoch) if place >= end]
    if late:
        given = f"train.drop={train.drop}" if train.drop else f"train.drop_steps={train.drop_steps}"
        yield (
            f"{given}: the learning rates do not drop after step {', '.join(map(str, late))}, since the training ends "
            f"after step {end}"
        )
    if train.warmup > end:
        yield f"train.warmup={train.warmup} is beyond the end: the learning rates still rise in step {end}, the last"
    if train.validate_every > 1 and train.validate_every * steps_per_epoch > end:
        yield (
            f"train.validate_every={train.validate_every} epochs is beyond the end (step {end} of {steps_per_epoch} an "
            "epoch): the last model alone is measured"
        )
    if train.patience is not None and train.patience * train.validate_every * steps_per_epoch >= end:
        yield f"train.patience={train.patience} is beyond the end: the training has no more validations"


def _sizes(config: Config) -> Iterator[str]:
    data = config.data
    if data.jitter is None and not data.square and max(data.resize) > data.max_size:
        sides = ", ".join(str(side) for side in data.resize if side > data.max_size)
        yield f"data.resize has {sides}: no image becomes so large, since data.max_size={data.max_size}"
    longest = data.max_size if data.val_max_size is None else data.val_max_size
    if _keeps_proportions(data) and longest and data.val_resize > longest:
        option = "data.max_size" if data.val_max_size is None else "data.val_max_size"
        yield f"data.val_resize={data.val_resize}: no image becomes so large, since {option}={longest}"


def _weights(config: Config) -> Iterator[str]:
    """Losses without a weight. Masks are matched by the same weights."""
    loss = config.loss
    names = ["class_weight"]
    names += ["box_weight", "giou_weight"] if isinstance(loss, LossConfig) else ["mask_weight", "dice_weight"]
    names += ["mask_weight", "dice_weight"] if isinstance(loss, SequenceLossConfig) else []
    if not any(getattr(loss, name) for name in names):
        yield f"{', '.join(f'loss.{name}' for name in names)} are all 0: nothing is learned"
    if isinstance(loss, LossConfig) and not (loss.class_cost or loss.box_cost or loss.giou_cost):
        yield "loss.class_cost, loss.box_cost, loss.giou_cost are all 0: objects are matched to any query"
