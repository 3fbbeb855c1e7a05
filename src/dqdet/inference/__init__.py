"""Predictions of a model -> what was found in each image or video, in the way of the task that it has learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from dqdet.config import Config, InstanceLossConfig
from dqdet.inference.boxes import detections, located
from dqdet.inference.masks import boxed_instances, instances, segmentation, tracks
from dqdet.types import Candidates, Outcome, Predictions

Sizes: TypeAlias = Sequence[tuple[int, int]]

OF_MASKS: dict[str, Callable[..., Outcome]] = {
    "instance": instances,
    "panoptic": segmentation,
    "video": tracks,
}


def infer(found: Predictions | Candidates, sizes: Sizes, original_sizes: Sizes, config: Config) -> list[Outcome]:
    """What the last layer's queries found, at most ``config.inference.limit`` objects an image.

    Args:
        found: of B images or videos, by a network or an exported model.
        sizes: height and width of each image within the padded batch.
        original_sizes: height and width of each image's file, in which results are given.
        config: of the model.

    Returns:
        for each image: boxes in pixels (``data.task`` detection), these with masks (instance), or a panoptic map,
        its things and a semantic map (panoptic); for each video: tracks (video).
    """
    final = found.final if isinstance(found, Predictions) else found
    if config.data.task == "detection":
        limit, classes = config.inference.limit, len(config.classes)
        if isinstance(final, Candidates):
            return [*located(final, original_sizes, limit)]
        assert config.loss.kind == "boxes"
        return [*detections(final, original_sizes, config.loss.classification, classes, limit)]
    of_masks = boxed_instances if isinstance(config.loss, InstanceLossConfig) else OF_MASKS[config.data.task]
    return [
        of_masks(final, image, size, original_size, config)
        for image, (size, original_size) in enumerate(zip(sizes, original_sizes, strict=True))
    ]
