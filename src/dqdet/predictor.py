"""Images in, detections out: a trained model as a function, and its use on a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import supervision as sv
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from dqdet.checkpoints.hub import publish
from dqdet.config import Config
from dqdet.data.transforms import make_transform
from dqdet.errors import DqdetError
from dqdet.evaluation.detection import coco_results
from dqdet.evaluation.postprocess import ImageDetections, detections
from dqdet.pictures import annotated
from dqdet.types import Predictions, pad_images

ImageSource = str | Path | Image.Image | np.ndarray

SMALLEST_PICTURE = 640  # longer side to which smaller pictures are enlarged, so that their labels can be read


class Predictor:
    """Calls a model on images of any size and returns what it found, in pixels of each image.

    Args:
        model: the ``nn.Module`` made by ``create_model(config)``, with its trained weights.
        config: of that model, with its class names.
        metrics: what was measured of that model.
        device: where to run; by default the GPU if there is one.
        batch: images that go through the model together, padded to a common size.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        metrics: Mapping[str, float] | None = None,
        device: torch.device | str | None = None,
        batch: int = 8,
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device).eval()
        self.config = config
        self.metrics = metrics or {}
        self.batch = batch
        self.transform = make_transform(config.data, train=False)

    @overload  # a str is also a sequence of str
    def __call__(self, images: ImageSource, threshold: float = 0.5) -> sv.Detections: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, images: Sequence[ImageSource], threshold: float = 0.5) -> list[sv.Detections]: ...
    def __call__(
        self, images: ImageSource | Sequence[ImageSource], threshold: float = 0.5
    ) -> sv.Detections | list[sv.Detections]:
        """The objects that score above ``threshold``, best first.

        Args:
            images: the path of an image file, a PIL image, an array ``[H, W, 3]`` (uint8, RGB), or a list of
                these. Files are turned upright as their EXIF orientation says; coordinates refer to that.
            threshold: in 0..1.

        Returns:
            boxes in pixels (``xyxy``), ``class_id`` (index into ``config.classes``), ``confidence`` and
            ``data["class_name"]``; a list of these for a list of images.

        Raises:
            DqdetError: a file cannot be read as an image.
        """
        if isinstance(images, ImageSource):
            return self([images], threshold)[0]
        return [self.named(found, threshold) for found in self.detect(images)]

    def detect(self, images: Sequence[ImageSource]) -> list[ImageDetections]:
        """The 100 best candidates in each image, however low their scores, as evaluation needs them."""
        classification, classes = self.config.loss.classification, len(self.config.classes)
        return [
            found
            for predictions, sizes in self.predictions(images)
            for found in detections(predictions, sizes, classification, classes)
        ]

    def coefficients(self, images: Sequence[ImageSource]) -> Tensor:
        """The combination coefficients W of each image (Eq. 5), ``[B, m, r]`` on the CPU.

        Raises:
            DqdetError: the model's queries are no combinations.
        """
        coefficients = []
        for predictions, _ in self.predictions(images):
            if predictions.coefficients is None:
                raise DqdetError(f"a model with queries.kind={self.config.queries.kind} has no coefficients")
            coefficients.append(predictions.coefficients.cpu())
        return torch.cat(coefficients)

    @torch.inference_mode()
    def predictions(self, images: Sequence[ImageSource]) -> Iterator[tuple[Predictions, list[tuple[int, int]]]]:
        """What the model gives for one batch after the other, with the images' heights and widths."""
        for start in range(0, len(images), self.batch):
            pictures = [as_image(image) for image in images[start : start + self.batch]]
            inputs = [self.transform(picture).to(self.device) for picture in pictures]
            yield self.model(*pad_images(inputs)), [(picture.height, picture.width) for picture in pictures]

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
        return publish(name, self.model, self.config, self.metrics, private)

    def named(self, found: ImageDetections, threshold: float) -> sv.Detections:
        """The detections above ``threshold`` with their class names."""
        kept = found.scores > threshold
        labels = found.labels[kept].cpu().numpy()
        return sv.Detections(
            xyxy=found.boxes[kept].cpu().numpy(),
            class_id=labels,
            confidence=found.scores[kept].cpu().numpy(),
            data={"class_name": np.array(self.config.classes)[labels]},
        )


def as_image(source: ImageSource) -> Image.Image:
    """An RGB image from any of the forms that a predictor takes.

    Raises:
        DqdetError: the file cannot be read, or the array is not ``[H, W, 3]`` of uint8.
    """
    if isinstance(source, str | Path):
        return read_image(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise DqdetError(
                f"an image array has shape {list(source.shape)} and type {source.dtype}; "
                "give one of shape [H, W, 3] and type uint8, RGB"
            )
        return Image.fromarray(source)
    return source.convert("RGB")


def read_image(file: str | Path) -> Image.Image:
    """The RGB image in a file, upright.

    Raises:
        DqdetError: there is no such file, it is no image, or it is damaged.
    """
    if not Path(file).is_file():
        raise DqdetError(f"{file}: no such file; give the path of an image")
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    # Besides OSError, Pillow raises SyntaxError and ValueError, depending on the format and the damage.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DqdetError(f"{file}: cannot be read as an image ({error}); replace or remove the file") from error


def predict_folder(
    predictor: Predictor, source: str | Path, out: str | Path, threshold: float = 0.5
) -> list[DqdetError]:
    """Detect in an image, or in all images of a folder (not of its subfolders), and write into ``out``:

    - each picture under its own name, with the detections above ``threshold`` drawn in; small pictures are
      enlarged,
    - ``results.json``: all detections (100 an image, however low their scores) as a COCO results file, with
      the category ids of the configuration, or label + 1 where it has none,
    - ``images.json``: the images and categories behind the ids, as a COCO file without annotations. File
      names that are distinct numbers, as COCO's are, give the ids; otherwise images are numbered from 1.

    Returns:
        what was wrong with the files that could not be read; all others are done nevertheless.

    Raises:
        DqdetError: there are no images, or ``out`` cannot be written or would overwrite them.
    """
    files = image_files(Path(source))
    ids = image_ids(files)
    out = Path(out)
    if out.resolve() == files[0].parent.resolve():
        raise DqdetError(f"{out}: has the images, which would be overwritten; choose another folder for the results")
    classes = predictor.config.classes
    category_ids = predictor.config.category_ids or list(range(1, len(classes) + 1))
    categories = [{"id": number, "name": name} for number, name in zip(category_ids, classes, strict=True)]
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    failures: list[DqdetError] = []
    batches = [files[start : start + predictor.batch] for start in range(0, len(files), predictor.batch)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        console = Console(stderr=True)
        for batch in track(batches, "predicting", console=console, transient=True, disable=not console.is_terminal):
            readable = {}
            for file in batch:
                try:
                    readable[file] = read_image(file)
                except DqdetError as error:
                    failures.append(error)
            for (file, image), found in zip(readable.items(), predictor.detect(list(readable.values())), strict=True):
                size = {"width": image.width, "height": image.height}
                images.append({"id": ids[file], "file_name": file.name, **size})
                results += coco_results(ids[file], found, category_ids)
                picture = annotated(image, predictor.named(found, threshold), max(SMALLEST_PICTURE, *image.size))
                name = file.name if _is_image_name(file) else f"{file.name}.png"
                picture.save(out / name, quality=92)  # of formats that have it
        (out / "results.json").write_text(json.dumps(results))
        (out / "images.json").write_text(json.dumps({"images": images, "categories": categories}))
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error}); choose another folder or make space") from error
    return failures


def image_files(source: Path) -> list[Path]:
    """The file itself, or the images in a folder in the order of their names.

    Raises:
        DqdetError: there is no such file or folder, or no image in it.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DqdetError(f"{source}: no such file or folder; give an image or a folder of images")
    files = sorted(file for file in source.iterdir() if _is_image_name(file) and file.is_file())
    if not files:
        raise DqdetError(f"{source}: no images in this folder; looked for {', '.join(IMG_EXTENSIONS)}")
    return files


def image_ids(files: Sequence[Path]) -> dict[Path, int]:
    """The numbers that the files are named by, where all are and none twice; otherwise 1, 2, 3, ..."""
    numbers = [int(file.stem) for file in files if file.stem.isdecimal()]
    return dict(zip(files, numbers if len(set(numbers)) == len(files) else range(1, len(files) + 1), strict=True))


def _is_image_name(file: Path) -> bool:
    return file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".")
