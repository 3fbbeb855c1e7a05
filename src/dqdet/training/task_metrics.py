"""The official metric of each task, from what ``infer`` found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from dqdet.config import Config
from dqdet.data.cityscapes import CityscapesDataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.segments import SegmentsDataset
from dqdet.metrics.cityscapes import CityscapesInstanceMetric
from dqdet.metrics.detection import DetectionMetric
from dqdet.metrics.panoptic import PanopticMetric
from dqdet.metrics.semantic import SemanticMetric
from dqdet.metrics.video import VideoMetric
from dqdet.types import ImageDetections, PanopticMap, Segmentation

NO_LABEL = -1


class TaskMetric(Protocol):
    """Measures outcomes image by image (or video by video).

    Works over several processes: each updates with its own images, and ``compute`` gives every process the metrics
    of all of them; an image that several saw counts once.
    """

    best: str  # the metric that says which of two models is better

    def reset(self) -> None: ...
    def update(self, image_ids: Sequence[int], outcomes: Sequence[Any], /) -> None: ...
    def compute(self) -> dict[str, float]: ...


def make_metric(config: Config, dataset: DetectionDataset) -> TaskMetric:
    """The metric of ``config.data.task`` on a data set.

    Args:
        config: of the model; its ``category_ids`` are the data set's ids of the model's classes.
        dataset: with the ground truth.

    Raises:
        DqdetError: the ground truth cannot be read.
    """
    if config.data.task == "panoptic":
        assert isinstance(dataset, SegmentsDataset)
        return PanopticTaskMetric(config, dataset)
    if config.data.task == "video":
        return VideoMetric(dataset.ground_truth(), config.category_ids)
    if config.data.task == "instance":
        return instance_metric(config, dataset)
    return DetectionMetric(dataset.ground_truth(), config.category_ids)


def instance_metric(config: Config, dataset: DetectionDataset) -> TaskMetric:
    """Mask AP of the things, by the definition of the data set."""
    if isinstance(dataset, CityscapesDataset):
        return CityscapesTaskMetric(config, dataset)
    return DetectionMetric(dataset.ground_truth(), config.category_ids, "segm")


class CityscapesTaskMetric:
    """Instance AP and AP50 of Cityscapes; the ground truth is read image by image."""

    best = "AP"

    def __init__(self, config: Config, dataset: CityscapesDataset) -> None:
        self.dataset = dataset
        self.indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
        things = [label for label, name in enumerate(config.classes) if name not in config.stuff]
        self.numbers = torch.full((len(config.classes),), NO_LABEL)  # label -> its number among the things
        self.numbers[things] = torch.arange(len(things))
        self.metric = CityscapesInstanceMetric([config.category_ids[label] for label in things])

    def reset(self) -> None:
        self.metric.reset()

    def update(self, image_ids: Sequence[int], found: Sequence[ImageDetections]) -> None:
        truths = [self.dataset.instance_ids(self.indices[image_id]) for image_id in image_ids]
        things = [replace(image, labels=self.numbers.to(image.labels.device)[image.labels]) for image in found]
        self.metric.update(image_ids, truths, things)

    def compute(self) -> dict[str, float]:
        return self.metric.compute()


class PanopticTaskMetric:
    """Panoptic quality, and what the same model reaches with instances of things and with a semantic map.

    ``compute`` gives the metrics of ``PanopticMetric``, ``mIoU`` and ``IoU/name`` of ``SemanticMetric``, and of the
    things the mask AP (``AP_things``, ``AP50_things``, ``AP/name``), by the definition of the data set.
    """

    best = "PQ"

    def __init__(self, config: Config, dataset: SegmentsDataset) -> None:
        self.dataset = dataset
        self.indices = {image_id: index for index, image_id in enumerate(dataset.image_ids)}
        self.labels = {category_id: label for label, category_id in enumerate(config.category_ids)}
        self.panoptic = PanopticMetric(dataset.panoptic_categories)
        self.semantic = SemanticMetric(config.classes)
        self.things = instance_metric(config, dataset)

    def reset(self) -> None:
        self.panoptic.reset()
        self.semantic.reset()
        self.things.reset()

    def update(self, image_ids: Sequence[int], found: Sequence[Segmentation]) -> None:
        truths = [self.dataset.panoptic(self.indices[image_id]) for image_id in image_ids]
        self.panoptic.update(image_ids, truths, [image.panoptic for image in found])
        labels = [self._labels(truth) for truth in truths]
        self.semantic.update(image_ids, labels, [image.semantic for image in found])
        self.things.update(image_ids, [image.instances for image in found])

    def _labels(self, truth: PanopticMap) -> np.ndarray:
        """The label [H, W] of each pixel, crowds included."""
        labels = {segment["id"]: self.labels.get(segment["category_id"], NO_LABEL) for segment in truth.segments}
        ids, index = np.unique(truth.ids, return_inverse=True)
        return np.array([labels.get(number, NO_LABEL) for number in ids.tolist()])[index].reshape(truth.ids.shape)

    def compute(self) -> dict[str, float]:
        things = self.things.compute()
        return {
            **self.panoptic.compute(),
            "AP_things": things["AP"],
            "AP50_things": things["AP50"],
            **{name: value for name, value in things.items() if name.startswith("AP/")},
            **self.semantic.compute(),
        }
