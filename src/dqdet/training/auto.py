"""``dqdet train auto``: a preset and its options from the data and the machine, each with its reason.

The rules are thumbs: they make a first training that is worth its time. What is measured of them is in
``benchmarks/small_data.py``. Every option that is given takes the place of the choice.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dqdet.config import Config, Overrides, changes, preset_names, resolve
from dqdet.data import open_dataset
from dqdet.data.kinds import kind_of
from dqdet.data.overview import overview
from dqdet.errors import DqdetError, listed
from dqdet.runs.processes import this_process
from dqdet.runs.sources import load_model
from dqdet.training.batch_size import without_auto

AUTO = "auto"

SMALL_MODELS = {"detection": "scenes_tiny", "instance": "scenes_tiny_panoptic"}  # for CPUs
LARGE_MODELS = {"detection": "dab_deformable_detr_r50", "instance": "mask2former_r50_coco_instance"}
SIDES = range(96, 353, 32)  # pixels of the shorter side on a CPU
SEEN = 16  # pixels that a small object shall have on a CPU
SMALL = 5  # percentile of the objects, by size, that is called a small one
QUERIES_AN_OBJECT = 2  # of the image with most objects, on a CPU
STEPS = {"small": 1500, "large": 20_000, "weights": 2000}  # of a training, at least
MOST_EPOCHS = 300
# Options that weights belong to: what a model is, and how large and in which colours it has seen images.
SIZES = ("resize", "square", "max_size", "jitter", "window", "mean", "std")
SIZES_OF_VALIDATION = ("val_resize", "val_max_size", "val_fit", "val_size", "val_divisor", "val_pad")
OF_WEIGHTS = {f"data.{option}" for option in (*SIZES, *SIZES_OF_VALIDATION)}
STEPS_AN_EPOCH = 4  # at least, or the batch becomes smaller


@dataclass(frozen=True)
class Found:
    """What matters of the training split."""

    task: str  # detection, or instance where objects have outlines
    images: int
    shorter: float  # pixels, the median of the images' shorter sides
    aspect: float  # the longer side by the shorter one, of all but the longest images
    small: float  # pixels in the files, side of a square as large as a small object
    most: int  # objects of an image


@dataclass(frozen=True)
class Machine:
    """What a training runs on."""

    gpu: str | None  # name; None: there is none
    cores: int

    @classmethod
    def this(cls) -> Machine:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        return cls(gpu, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


@dataclass(frozen=True)
class Choice:
    """Options that belong together, and why they have these values."""

    options: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Plan:
    """A preset, and what is changed of it."""

    preset: str
    reason: str
    choices: Sequence[Choice]

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of all choices, and what is given."""
        return {name: value for choice in self.choices for name, value in choice.options.items()} | dict(given)

    def lines(self, given: Mapping[str, Any]) -> list[str]:
        """The choices that nothing takes the place of, with their reasons."""
        lines = [f"preset {self.preset}: {self.reason}"]
        for choice in self.choices:
            left = [f"{name}={_text(value)}" for name, value in choice.options.items() if name not in given]
            if left:
                lines.append(f"{' '.join(left)}: {choice.reason}")
        return lines


def configured(name: str | Path, overrides: Overrides) -> tuple[Config, bool]:
    """The configuration of a training, and whether its batch shall be fitted into the memory.

    Args:
        name: as of `resolve`, or auto.
        overrides: of its options; ``train.batch`` may be auto.

    Raises:
        DqdetError: as `resolve`, or there is nothing to choose by.
    """
    given, fit_memory = without_auto(overrides)
    if str(name) != AUTO:
        return resolve(name, given), fit_memory
    plan = planned(given)
    for line in plan.lines(given):
        rank_zero_only(print)(f"auto: {line}", file=sys.stderr)
    free = not {"train.batch", "train.accumulate"} & given.keys() and this_process().world == 1
    return resolve(plan.preset, plan.options(given)), fit_memory or free


def planned(given: Mapping[str, Any]) -> Plan:
    """The plan for the data and this machine.

    Args:
        given: options, by their dotted paths; ``data.root`` is needed.
    """
    root = given.get("data.root")
    if root is None:
        raise DqdetError("`train auto` chooses by the data: give data.root=FOLDER")
    kind = given.get("data.kind") or kind_of(root)
    data = {name: value for name, value in given.items() if name.startswith("data.")} | {"data.kind": kind}
    found = look(data)
    init = given.get("init")
    start = None if init is None else load_model(str(init))[1]
    plan = choose(found, Machine.this(), start)
    return Plan(plan.preset, plan.reason, [Choice({"data.kind": kind}, f"what {root} looks like"), *plan.choices])


def look(data: Mapping[str, Any]) -> Found:
    """The statistics of a training split, from its annotations.

    Args:
        data: options of the data, by their dotted paths.
    """
    task = data.get("data.task")
    if task not in (None, "detection", "instance"):
        raise DqdetError(f"`train auto` is for boxes and instance masks, not data.task={task}; give a preset")
    boxes = {name: value for name, value in data.items() if not name.startswith("data.augment.")}
    config = resolve("deformable_detr_r50", boxes | {"data.task": "detection"}).data
    document = open_dataset(config, "train").ground_truth()
    seen = overview(document, config)
    if not len(seen.boxes):
        raise DqdetError(
            f"data.root={config.root}: the training split has no objects, so there is nothing to choose by"
        )
    objects = [one for one in document["annotations"] if not one.get("iscrowd")]
    outlined = all(one.get("segmentation") for one in objects) and any(map(_is_outline, objects))
    shorter, longer = seen.sizes.min(1), seen.sizes.max(1)
    return Found(
        task=task or ("instance" if outlined else "detection"),
        images=seen.images,
        shorter=float(np.median(shorter)),
        aspect=float(np.percentile(longer / shorter, 95)),
        small=float(np.percentile(np.sqrt(seen.boxes.prod(1)), SMALL)),
        most=int(seen.counts.max()),
    )


def choose(found: Found, machine: Machine, start: Config | None) -> Plan:
    """The plan for what is known. It depends on nothing else.

    Args:
        found: in the training split.
        machine: to train on.
        start: the configuration of the weights that ``init`` names; None: it names none.

    Raises:
        DqdetError: the weights are of another task.
    """
    what = "boxes" if found.task == "detection" else "boxes and outlines"
    task = Choice({"data.task": found.task}, f"objects have {what}")
    if start is not None:
        if found.task not in start.model.tasks:
            raise DqdetError(
                f"init is a model of {listed(start.model.tasks)}, but the objects have {what}; set "
                f"data.task={start.model.tasks[0]}, or take other weights"
            )
        name = f"{start.preset}_finetune"
        preset = name if name in preset_names() else start.preset
        own = {
            path: value
            for path, value in changes(start).items()
            if path.startswith(("model.", "queries.")) or path in OF_WEIGHTS
        }
        same = [Choice(own, "those of init")] if own else []
        choices = [task, *same, *_length(found, preset, "weights")]
        return Plan(preset, f"init has the weights of {start.preset}", choices)
    where = f"{machine.cores} CPU cores and no GPU" if machine.gpu is None else machine.gpu
    if machine.gpu is not None:
        preset = LARGE_MODELS[found.task]
        reason = f"{what} from the backbone's weights alone on {where}; init=CHECKPOINT would need a shorter training"
        return Plan(preset, reason, [task, *_length(found, preset, "large")])
    preset = SMALL_MODELS[found.task]
    choices = [task, _size(found), _queries(found), *_length(found, preset, "small")]
    return Plan(preset, f"{what} on {where}: a small model", choices)


def _size(found: Found) -> Choice:
    wanted = SEEN * found.shorter / found.small
    side = next((side for side in SIDES if side >= wanted), SIDES[-1])
    longest = math.ceil(side * found.aspect)
    return Choice(
        {"data.resize": [side], "data.val_resize": side, "data.max_size": longest},
        f"a small object has {found.small:.0f} of {found.shorter:.0f} pixels in the files and "
        f"{found.small * side / found.shorter:.0f} then; from {SIDES[0]} to {SIDES[-1]} is for CPUs",
    )


def _queries(found: Found) -> Choice:
    count = min(300, max(20, 10 * math.ceil(QUERIES_AN_OBJECT * found.most / 10)))
    return Choice({"queries.count": count}, f"an image has up to {found.most} objects")


def _length(found: Found, preset: str, kind: str) -> list[Choice]:
    """Batch, and epochs for as many steps as a training of that kind needs."""
    recipe = resolve(preset).train
    largest = max(1, found.images // STEPS_AN_EPOCH)
    batch = min(recipe.batch, 2 ** int(math.log2(largest)))
    fewer = f"so that {found.images} images are {STEPS_AN_EPOCH} steps or more"
    why = "as the preset has it" if batch == recipe.batch else fewer
    needed = math.ceil(STEPS[kind] * batch / found.images)
    least = recipe.epochs or 1
    epochs = min(MOST_EPOCHS, max(needed, least))
    steps = epochs * (found.images // batch)
    return [
        Choice({"train.batch": batch}, why),
        Choice({"train.epochs": epochs}, f"{steps} steps of {batch} of {found.images} images"),
    ]


def _is_outline(annotation: Mapping[str, Any]) -> bool:
    """Whether a mask is more than a rectangle written as a polygon."""
    shape = annotation["segmentation"]
    return isinstance(shape, dict) or len(shape) > 1 or any(len(polygon) > 8 for polygon in shape)


def _text(value: Any) -> str:
    return str(value).replace(" ", "")
