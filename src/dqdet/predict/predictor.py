"""Images in, detections, panoptic maps and semantic maps out: a trained model as a function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import supervision as sv
import torch
from PIL import Image
from torch import Tensor, nn

from dqdet.config import Config, override
from dqdet.data.transforms import make_transform
from dqdet.drawing.pictures import Threshold, above, annotated, detected, segments
from dqdet.errors import DqdetError, value_text
from dqdet.formats.results import check_finite
from dqdet.inference import infer
from dqdet.predict.image_sources import ImageSource, as_image, as_images, is_image
from dqdet.runs.hub import publish
from dqdet.types import Candidates, ImageDetections, Outcome, PanopticMap, Predictions, Segmentation, pad_images

if TYPE_CHECKING:  # it is a predictor itself
    from dqdet.predict.tiled import TiledPredictor

THRESHOLD = 0.5  # of the scores of objects and tracks that are shown
Sizes = list[tuple[int, int]]

# Of the longer side of a picture with what was found: smaller and larger images are resized
SMALLEST_PICTURE, LARGEST_PICTURE = 640, 2560


class Prepared(NamedTuple):
    """An image that has been resized for a model."""

    pixels: Tensor  # [3, h, w] uint8
    size: tuple[int, int]  # height and width of the image itself


class Predictor:
    """Calls a model on images of any size and returns what it found, in pixels of each image.

    Args:
        model: a `BatchModel`: the ``nn.Module`` made by ``create_model(config)``, with its trained weights, or an
            `ExportedModel`.
        config: of that model, with its class names.
        metrics: what was measured of that model.
        device: where to run; by default the GPU if there is one.
        batch: images that go through the model together, padded to a common size; by default 8, but 1 where
            results have masks, which take much memory in the size of photographs.
        trained: the model as it was trained, which is what can be published, where ``model`` is a faster form of it.
        source: where the model comes from, for files of results.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        metrics: Mapping[str, float] | None = None,
        device: torch.device | str | None = None,
        batch: int | None = None,
        trained: nn.Module | None = None,
        source: str | Path | None = None,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.trained = trained or self.model
        self.source = source
        self.config = config
        self.metrics = metrics or {}
        self.batch = batch or (8 if config.data.task == "detection" else 1)
        self.transform = make_transform(config.data, train=False)

    @overload  # a str is also a sequence of str
    def __call__(self, images: ImageSource, threshold: Threshold = 0.5) -> sv.Detections: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Iterable[ImageSource], threshold: Threshold = 0.5) -> list[sv.Detections]: ...
    def __call__(
        self, images: ImageSource | Iterable[ImageSource], threshold: Threshold = 0.5
    ) -> sv.Detections | list[sv.Detections]:
        """The objects that score above ``threshold``, best first; of a panoptic model the things.

        Args:
            images: the path or address (http, https) of an image file, its bytes or a file object, a PIL image, an
                array ``[H, W, 3]`` (uint8, RGB), a tensor ``[3, H, W]`` (uint8, or floating-point in 0..1), or a list
                or other iterable of these, which are read as they are needed. Files and PIL images are turned upright
                as their EXIF orientation says; coordinates refer to that. Of a PIL image with several frames, the
                current one is used.
            threshold: in 0..1, or one of each class.

        Returns:
            boxes in pixels (``xyxy``), ``class_id`` (index into ``config.classes``), ``confidence``,
            ``data["class_name"]`` and, unless the model finds boxes only, ``mask [K, H, W]``, which the boxes
            enclose; a list of these for several images.

        Raises:
            DqdetError: a file cannot be read as an image, the model is one of videos, or the threshold is none.
        """
        threshold = _checked(threshold, len(self.config.classes))
        if is_image(images):
            return self([images], threshold)[0]
        return [self.named(objects(outcome), threshold) for outcome in self.outcomes(images)]

    @overload
    def panoptic(self, images: ImageSource, threshold: float | None = None) -> PanopticMap: ...  # type: ignore[overload-overlap]
    @overload
    def panoptic(self, images: Iterable[ImageSource], threshold: float | None = None) -> list[PanopticMap]: ...
    def panoptic(
        self, images: ImageSource | Iterable[ImageSource], threshold: float | None = None
    ) -> PanopticMap | list[PanopticMap]:
        """The things and regions of stuff in each image, without overlap.

        ``config.inference.object_threshold`` and ``overlap_threshold`` decide what becomes a segment.

        Args:
            images: one or several, as for a call of the predictor.
            threshold: least score of a segment, in 0..1, instead of ``config.inference.object_threshold``.

        Returns:
            ``ids [H, W]``, 0 where there is no segment, and ``segments``, of each its ``id``, ``category_id``,
            ``name``, ``isthing``, ``score`` and ``area`` in pixels; a list of these for several images.

        Raises:
            DqdetError: as a call of the predictor, or the model is none of ``data.task=panoptic``.
        """
        if is_image(images):
            return self.panoptic([images], threshold)[0]
        return [self.described(found.panoptic) for found in self._segmentations(images, "panoptic maps", threshold)]

    @overload
    def semantic(self, images: ImageSource) -> np.ndarray: ...  # type: ignore[overload-overlap]
    @overload
    def semantic(self, images: Iterable[ImageSource]) -> list[np.ndarray]: ...
    def semantic(self, images: ImageSource | Iterable[ImageSource]) -> np.ndarray | list[np.ndarray]:
        """The class of each pixel, ``[H, W]``, as an index into ``config.classes``; otherwise as :meth:`panoptic`."""
        if is_image(images):
            return self.semantic([images])[0]
        return [found.semantic for found in self._segmentations(images, "semantic maps")]

    def _segmentations(
        self, images: Iterable[ImageSource], wanted: str, threshold: float | None = None
    ) -> Iterator[Segmentation]:
        if self.config.data.task != "panoptic":
            raise DqdetError(
                f"a model of data.task={self.config.data.task} has no {wanted}; take one of data.task=panoptic"
            )
        for outcome in self.outcomes(images, threshold):
            assert isinstance(outcome, Segmentation)
            yield outcome

    @torch.inference_mode()
    def outcomes(
        self, images: ImageSource | Iterable[ImageSource], threshold: Threshold | None = None
    ) -> Iterator[Outcome]:
        """What was found in each image, however low its score, as evaluation needs it.

        Args:
            images: one or several, as for a call of the predictor.
            threshold: of the segments of panoptic maps, instead of ``config.inference.object_threshold``.

        Raises:
            DqdetError: a file cannot be read as an image, the model is one of videos, the threshold is no score, or
                the model predicts NaN.
        """
        for batch in self._batches(images):
            yield from self.outcomes_of(batch, threshold)

    @torch.inference_mode()
    def outcomes_of(self, batch: Sequence[Prepared], threshold: Threshold | None = None) -> list[Outcome]:
        """What was found in images that are prepared already and go through the model together, as :meth:`outcomes`."""
        config = self.config
        if config.data.task == "panoptic" and threshold is not None:
            config = override(config, {"inference.object_threshold": _checked(threshold)})
        outcomes = infer(*self._predicted(batch), config)
        for found in map(objects, outcomes):
            check_finite([*found.scores.tolist(), *found.boxes.flatten().tolist()])
        return outcomes

    def coefficients(self, images: ImageSource | Iterable[ImageSource]) -> Tensor:
        """The combination coefficients W (Eq. 5) of an image, ``[m, r]``, or of several, ``[B, m, r]``, on the CPU.

        Args:
            images: one or several, as for a call of the predictor.

        Raises:
            DqdetError: as a call of the predictor, the model's queries are no combinations, or there are no images.
        """
        if is_image(images):
            return self.coefficients([images])[0]
        if not self._has_weights:
            raise DqdetError("an exported model gives no coefficients; load the run that it was made from")
        coefficients = []
        for predictions, _, _ in self.predictions(images):
            assert isinstance(predictions, Predictions)
            if predictions.coefficients is None:
                raise DqdetError(f"a model with queries.kind={self.config.queries.kind} has no coefficients")
            coefficients.append(predictions.coefficients.cpu())
        if not coefficients:
            raise DqdetError("no image to have coefficients of; give at least one")
        return torch.cat(coefficients)

    @torch.inference_mode()
    def predictions(
        self, images: ImageSource | Iterable[ImageSource]
    ) -> Iterator[tuple[Predictions | Candidates, Sizes, Sizes]]:
        """What the model gives for one batch after the other.

        With the images' heights and widths, first those within the padded batch, then those of the files.

        Raises:
            DqdetError: a file cannot be read as an image, or the model is one of videos.
        """
        for batch in self._batches(images):
            yield self._predicted(batch)

    def _batches(self, images: ImageSource | Iterable[ImageSource]) -> Iterator[list[Prepared]]:
        if self.config.data.task == "video":
            raise DqdetError("a model of data.task=video takes no single images; give a video to `dqdet predict`")
        prepared = (self.prepared(as_image(image)) for image in as_images(images))
        return iter(lambda: list(islice(prepared, self.batch)), [])

    def prepared(self, image: Image.Image) -> Prepared:
        """An image as the model takes it."""
        return Prepared(self.transform(image), (image.height, image.width))

    def padded(self, prepared: Prepared) -> tuple[int, int]:
        """Height and width that an image has in a batch of its own."""
        height, width = prepared.pixels.shape[1:]
        return self.config.data.val_pad or (height, width)

    def _predicted(self, prepared: Sequence[Prepared]) -> tuple[Predictions | Candidates, Sizes, Sizes]:
        inputs = [one.pixels.to(self.device) for one in prepared]
        sizes = [(image.shape[1], image.shape[2]) for image in inputs]
        batch = pad_images(inputs, size=self.config.data.val_pad)
        return self.model(*batch), sizes, [one.size for one in prepared]

    def tiled(self, side: int, overlap: float = 0.2) -> TiledPredictor:
        """A predictor that cuts large pictures in tiles, for objects that would be too small after a resize.

        Args:
            side: of a tile, in pixels of the picture.
            overlap: least part of its side that a tile shares with the next, from 0 to 0.9.

        Raises:
            DqdetError: side or overlap are out of range, or the model finds panoptic maps or tracks.
        """
        from dqdet.predict.tiled import TiledPredictor

        return TiledPredictor(self, side, overlap)

    @property
    def _has_weights(self) -> bool:
        return next(self.model.parameters(), None) is not None

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Publish the model with a card on the Hugging Face hub, from where ``dqdet.load(name)`` gets it.

        Args:
            name: ``user/name``; made if there is no such repository, otherwise its files are replaced.
            private: whether a new repository can be seen by its owner only.

        Returns:
            the address of the repository.

        Raises:
            DqdetError: the hub cannot be reached, or refuses it.
        """
        if not self._has_weights:
            raise DqdetError("an exported model has no weights to publish; load the run that it was made from")
        return publish(name, self.trained, self.config, self.metrics, private)

    def named(self, found: ImageDetections, threshold: Threshold, size: tuple[int, int] | None = None) -> sv.Detections:
        """The detections above ``threshold`` with their class names; masks of the image reduced to ``size``, if given.

        Args:
            found: in an image.
            threshold: in 0..1.
            size: width and height.
        """
        return detected(found, self.config.classes, threshold, size)

    def described(self, panoptic: PanopticMap) -> PanopticMap:
        """With what :meth:`panoptic` says about segments."""
        names = dict(zip(self.category_ids, self.config.classes, strict=True))
        described = []
        for segment in panoptic.segments:
            name = names[segment["category_id"]]
            area = int((panoptic.ids == segment["id"]).sum())
            described.append({**segment, "name": name, "isthing": int(name not in self.config.stuff), "area": area})
        return PanopticMap(panoptic.ids, described)

    def shown(self, outcome: Outcome, threshold: Threshold | None) -> int:
        """How many segments or objects a picture shows."""
        if isinstance(outcome, Segmentation):
            return len(outcome.panoptic.segments)
        return int(above(objects(outcome), self.shown_above(threshold)).sum())

    def shown_above(self, threshold: Threshold | None) -> Threshold:
        """The score that pictures show objects, segments or tracks above, where ``threshold`` may leave it open."""
        if threshold is not None:
            return threshold
        return self.config.inference.object_threshold if self.config.data.task == "panoptic" else THRESHOLD

    def drawn(self, image: Image.Image, outcome: Outcome, threshold: Threshold | None) -> Image.Image:
        """The image with all segments of a panoptic map, or the objects above ``threshold``.

        Small images are enlarged, so that labels can be read; large ones are reduced, because all masks are there at
        the same time.
        """
        longer = max(image.size)
        scale = min(1, LARGEST_PICTURE / longer)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        if isinstance(outcome, Segmentation):
            ids = Image.fromarray(outcome.panoptic.ids.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
            reduced = PanopticMap(np.asarray(ids), outcome.panoptic.segments)
            shown = segments(reduced, self.category_ids, self.config.classes)
        else:
            shown = self.named(objects(outcome), self.shown_above(threshold), size)
            shown.xyxy = shown.xyxy * scale
        return annotated(image.resize(size, Image.Resampling.BICUBIC), shown, max(SMALLEST_PICTURE, *size))

    @property
    def category_ids(self) -> list[int]:
        """The category id of each label in results: that of the data set, or as `Config.ids` says."""
        return self.config.ids

    @property
    def categories(self) -> list[dict[str, Any]]:
        """What the ids in results mean, as COCO's files say it."""
        return [
            {"id": number, "name": name, "isthing": int(name not in self.config.stuff)}
            for number, name in zip(self.category_ids, self.config.classes, strict=True)
        ]


def _checked(threshold: Any, classes: int | None = None) -> Threshold:
    """A threshold of any kind of number as plain numbers: one, or one of each of the ``classes``."""
    try:
        scores = np.asarray(threshold, dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.array(np.nan)
    if scores.shape not in ((), (classes,)) or not ((scores >= 0) & (scores <= 1)).all():
        expected = "no score in 0..1"
        if classes is not None:
            expected = f"neither a score in 0..1 nor one of each of the {classes} classes"
        raise DqdetError(f"threshold={value_text(threshold)}: {expected}")
    return float(scores) if scores.ndim == 0 else scores.tolist()


def objects(outcome: Outcome) -> ImageDetections:
    """The objects of an image, of a panoptic model the things."""
    found = outcome.instances if isinstance(outcome, Segmentation) else outcome
    assert isinstance(found, ImageDetections)
    return found
