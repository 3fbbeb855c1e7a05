"""What an exported file says of itself: all that is needed to use it, as pairs of text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from dqdet.config import Config, from_yaml, to_yaml
from dqdet.errors import DqdetError
from dqdet.exporting.formats import Resolution

PREFIX = "dqdet."

IMAGES = "uint8 RGB [batch, 3, height, width], neither normalised nor scaled"
CLIPS = "uint8 RGB [batch, frames, 3, height, width], neither normalised nor scaled"
SIZES = "int64 [batch, 2], height and width of each image in the batch; pixels beyond them are padding"

BOXES = "[batch, objects, 4] x1, y1, x2, y2 in pixels of the image within the batch"
SCORES = "[batch, objects] in 0..1, in falling order"
LABELS = "[batch, objects] indices of the classes"
MASKS = "[batch, objects, h, w] logits at a quarter of the resolution of the padded batch; above 0 is inside"
FULL_MASKS = "[batch, objects, height, width] logits of the pixels of the batch; above 0 is inside"

# By data.task and loss.kind: the outputs of the network in their order.
OUTPUTS: dict[tuple[str, str], dict[str, str]] = {
    ("detection", "boxes"): {"boxes": BOXES, "scores": SCORES, "labels": LABELS},
    ("instance", "instances"): {"boxes": BOXES, "scores": SCORES, "labels": LABELS, "masks": MASKS},
    ("instance", "masks"): {
        "boxes": f"{BOXES}, around the masks to a cell of them",
        "scores": "[batch, objects] in 0..1: class_scores times the mean certainty of the mask",
        "labels": LABELS,
        "masks": MASKS,
        "class_scores": SCORES,
    },
    **{
        (task, kind): {
            "logits": "[batch, queries, classes, and one for none where the model has it]",
            "masks": f"[batch, queries, {cells}] logits at a quarter of the resolution of the padded batch",
        }
        for task, kind, cells in (
            ("panoptic", "masks", "h, w"),
            ("video", "masks", "frames, h, w"),
            ("video", "sequences", "frames, h, w"),
        )
    },
}


def outputs(config: Config) -> dict[str, str]:
    """Names and meanings of what the network of a configuration gives, in order."""
    return OUTPUTS[config.data.task, config.loss.kind]


@dataclass(frozen=True)
class Meaning:
    """What an exported file is."""

    config: Config  # of the model; its ``data`` says how images are resized
    size: tuple[int, int] | None  # height and width of all images; None: any
    half: bool
    masks: Resolution = "quarter"  # of instances

    def to_text(self) -> dict[str, str]:
        """As pairs of text: ``config`` is what is read again, the others are for people and other programs."""
        config = self.config
        texts = {
            "version": version("dqdet"),
            "config": to_yaml(config),
            "size": json.dumps(self.size),
            "half": json.dumps(self.half),
            "resolution": json.dumps(self.masks),
            "family": config.model.family,
            "task": config.data.task,
            "classes": json.dumps(config.classes, ensure_ascii=False),
            "category_ids": json.dumps(config.ids),
            "stuff": json.dumps(config.stuff, ensure_ascii=False),
            "inputs": json.dumps({"images": CLIPS if config.data.task == "video" else IMAGES, "sizes": SIZES}),
            "outputs": json.dumps(outputs(config) | ({"masks": FULL_MASKS} if self.masks == "full" else {})),
        }
        return {PREFIX + name: text for name, text in texts.items()}

    @classmethod
    def from_text(cls, texts: Mapping[str, str], source: str) -> Meaning:
        """The same from what a file says.

        Raises:
            DqdetError: the file is not one of dqdet's, or of another version.
        """
        if f"{PREFIX}config" not in texts:
            raise DqdetError(f"{source}: was not exported by dqdet; write a file of a model with `dqdet export`")
        config = from_yaml(texts[f"{PREFIX}config"], source)
        try:
            size = json.loads(texts[f"{PREFIX}size"])
            half = bool(json.loads(texts[f"{PREFIX}half"]))
            masks: Resolution = "full" if json.loads(texts.get(f"{PREFIX}resolution", "null")) == "full" else "quarter"
            return cls(config, None if size is None else (int(size[0]), int(size[1])), half, masks)
        except (KeyError, ValueError, TypeError, LookupError) as error:
            raise DqdetError(f"{source}: does not say for which images it is; export the model again") from error
