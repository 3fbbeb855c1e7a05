"""What the outputs of published models mean, which their parameters do not tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dqdet.formats import cityscapes
from dqdet.formats.categories import COCO_CATEGORIES, COCO_STUFF, YOUTUBE_VIS_CATEGORIES

UNUSED = "N/A"  # an output for an id that no category has


class Classes(NamedTuple):
    """The classes that models were published with."""

    categories: dict[int, str]  # id -> name, in the order of the outputs
    presets: str  # of models that learned them, with {} for the backbone
    stuff: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return list(self.categories.values())


def _every_id(categories: dict[int, str], outputs: int) -> dict[int, str]:
    return {number: categories.get(number, UNUSED) for number in range(outputs)}


CITYSCAPES = {label.id: label.name for label in cityscapes.CLASSES}
COCO_WITH_GAPS = _every_id(COCO_CATEGORIES, max(COCO_CATEGORIES) + 1)

# By the number of outputs, without the one for "no object".
MASK2FORMER: dict[int, Classes] = {
    80: Classes(COCO_CATEGORIES, "mask2former_{}_coco_instance"),
    133: Classes(COCO_CATEGORIES | COCO_STUFF, "mask2former_{}_coco_panoptic", tuple(COCO_STUFF.values())),
    8: Classes(cityscapes.THINGS, "mask2former_{}_cityscapes_instance"),
    19: Classes(
        CITYSCAPES,
        "mask2former_{}_cityscapes_panoptic",
        tuple(name for number, name in CITYSCAPES.items() if number not in cityscapes.THINGS),
    ),
    40: Classes(YOUTUBE_VIS_CATEGORIES, "video_mask2former_{}"),
}
SEQFORMER: dict[int, Classes] = {
    42: Classes(_every_id(YOUTUBE_VIS_CATEGORIES, 42), "seqformer_{}"),
    91: Classes(COCO_WITH_GAPS, "seqformer_{}"),
}


def published_classes(family: str, count: int, names: Sequence[str] | None = None) -> Classes | None:
    """The classes of the data set that a model of so many outputs learned, if it is a known one.

    Args:
        family: of the model, as its official parameters tell it: ``mask2former`` for videos too.
        count: of the outputs, without "no object".
        names: of the classes, where they are known; they must be the data set's.
    """
    match family:
        case "mask2former":
            known = MASK2FORMER
        case "seqformer":
            known = SEQFORMER
        case _:
            known = {len(COCO_WITH_GAPS): Classes(COCO_WITH_GAPS, family + "_{}")}
    classes = known.get(count)
    return classes if classes is not None and (names is None or list(names) == classes.names) else None


def class_options(classes: Classes | None, count: int, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The options that say what ``count`` outputs mean: known classes, or names without ids, or else numbers."""
    if classes is not None:
        names, ids, stuff = classes.names, list(classes.categories), list(classes.stuff)
        return {"classes": names, "category_ids": ids, "stuff": stuff}
    names = [f"class {label}" for label in range(count)] if names is None else list(names)
    return {"classes": names, "category_ids": [], "stuff": []}
