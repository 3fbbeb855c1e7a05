"""What the outputs of published models mean, which their parameters do not tell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from dqdet.formats.categories import COCO_CATEGORIES

UNUSED = "N/A"  # an output for an id that no category has


class Classes(NamedTuple):
    """The classes that models were published with."""

    categories: dict[int, str]  # id -> name, in the order of the outputs
    presets: str | None = None  # of models that learned them, with {} for the backbone; None: the family's
    things: Collection[int] | None = None  # ids of those that are objects; None: all

    @property
    def options(self) -> dict[str, Any]:
        stuff = [name for number, name in self.categories.items() if number not in (self.things or self.categories)]
        return {"classes": list(self.categories.values()), "category_ids": list(self.categories), "stuff": stuff}


def every_id(categories: dict[int, str], outputs: int) -> dict[int, str]:
    """One output for each id from 0 on."""
    return {number: categories.get(number, UNUSED) for number in range(outputs)}


COCO = {91: Classes(every_id(COCO_CATEGORIES, 91))}  # by the number of outputs, without the one for "no object"
