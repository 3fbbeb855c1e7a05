"""What a training or a measurement begins with: its data, opened and checked, and the configuration filled from it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from zlib import crc32

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dqdet.config import Config, DataConfig
from dqdet.config.effects import without_effect, without_weights
from dqdet.config.presets import changes
from dqdet.data import check_files, open_dataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.loader import check_parts
from dqdet.errors import DqdetError, listed, value_text
from dqdet.nn.backbone import other_colours
from dqdet.runs.folder import check_classes
from dqdet.runs.processes import this_process
from dqdet.training.data_module import DataModule
from dqdet.training.loggers import check_loggers
from dqdet.training.module import DetectionModule

# Options that may differ between them.
OF_HOSTS = ("data.root", "data.cache", "data.workers", "data.check", "model.backbone.weights")

logger = logging.getLogger(__name__)


def ready(config: Config) -> tuple[DataModule, Config]:
    """The data of a training and its configuration, filled from it; says what has no effect."""
    warn(without_weights(config))
    if config.init is None:
        warn(other_colours(config.model.backbone, config.data.mean, config.data.std))
    data = open_data(config)
    objects = [split.has_objects() for split in (data.train_set, data.val_set)]
    warn(without_effect(config, data.steps_per_epoch, *objects))
    filled = {
        "classes": data.val_set.classes,
        "category_ids": data.val_set.category_ids,
        "stuff": list(data.val_set.stuff),
    }
    return data, config.model_copy(update=filled)


def open_data(config: Config) -> DataModule:
    """Both splits, whose classes and files are checked."""
    check_loggers(config.train.logger)
    check_parts(config.train.batch, this_process().world, config.train.accumulate)  # before the data is read
    train, val = (open_dataset(config.data, split, config.train.seed) for split in ("train", "val"))
    place = f"{place_of(config.data)}, validation split"
    check_classes(config.model_copy(update={"classes": train.classes}), val.classes, place)
    if differing := sorted(set(train.stuff) ^ set(val.stuff)):
        raise DqdetError(f"{place}: {listed(differing)}: stuff in this or the training split, but not in both")
    check_images(config, train, val)
    return DataModule(config, train, val)


def check_images(config: Config, *datasets: DetectionDataset) -> None:
    """That every file can be read, unless ``data.check`` is off."""
    if config.data.check and this_process().local_rank == 0:  # once on every machine
        check_files(datasets)


def place_of(data: DataConfig) -> str:
    """What messages call the data."""
    return f"data.kind={data.kind}" if data.root is None else f"data.root={data.root}"


def described(config: Config, module: DetectionModule, data: DataModule) -> str:
    """A training, in one line."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    items = "videos" if config.data.task == "video" else "images"
    return (
        f"{config.preset} with {config.queries.kind} queries, {parameters / 1e6:.1f} M parameters, "
        f"{len(data.train_set)} training and {len(data.val_set)} validation {items}, {len(config.classes)} classes"
    )


def described_for_others(config: Config, data: DataModule) -> dict[str, str]:
    """What must be the same in all processes of a training; where its files lie may differ between hosts."""
    splits = {"the training split": data.train_set, "the validation split": data.val_set}
    return {
        **{option: value_text(value) for option, value in changes(config).items() if option not in OF_HOSTS},
        **{
            name: f"{len(split)} images with checksum {crc32(np.asarray(split.image_ids).tobytes()):08x}"
            for name, split in splits.items()
        },
    }


def warn(lines: Iterable[str]) -> None:
    """Of each of these, once for all processes."""
    for line in lines:
        rank_zero_only(logger.warning)(line)
