"""What the outputs of published models mean, which their parameters do not tell."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from dqdet.config import UNUSED
from dqdet.formats.categories import COCO_CATEGORIES


class Classes(NamedTuple):
    """The classes that models were published with."""

    categories: dict[int, str]  # id -> name, in the order of the outputs
    presets: str | None = None  # of models that learned them, with {} for the backbone; None: the family's
    things: Collection[int] | None = None  # ids of those that are objects; None: all

    def are(self, names: Sequence[str]) -> bool:
        """Whether these are the names of a model that learned them.

        Outputs for ids that no category has are not all named `UNUSED`: some have what COCO was going to annotate
        (street sign, hat, shoe).
        """
        known = self.categories.values()
        return len(names) == len(known) and all(own in (name, UNUSED) for own, name in zip(known, names, strict=True))

    @property
    def options(self) -> dict[str, Any]:
        stuff = [name for number, name in self.categories.items() if number not in (self.things or self.categories)]
        return {"classes": list(self.categories.values()), "category_ids": list(self.categories), "stuff": stuff}


def every_id(categories: dict[int, str], outputs: int) -> dict[int, str]:
    """One output for each id from 0 on."""
    return {number: categories.get(number, UNUSED) for number in range(outputs)}


COCO = {91: Classes(every_id(COCO_CATEGORIES, 91))}  # by the number of outputs, without the one for "no object"
