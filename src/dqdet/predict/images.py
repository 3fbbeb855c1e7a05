"""A model used on a folder of pictures: annotated pictures, and results in the official formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dqdet.errors import DqdetError
from dqdet.formats.image_files import image_files, is_image_name, read_image, write_image
from dqdet.formats.panoptic import write_ids
from dqdet.formats.results import GrowingList, IouType, coco_results, panoptic_result
from dqdet.predict.output import Output, results_folder
from dqdet.predict.pictures import annotated
from dqdet.predict.predictor import Predictor, objects
from dqdet.predict.progress import in_progress
from dqdet.types import Outcome, Segmentation

SMALLEST_PICTURE = 640  # longer side to which smaller pictures are enlarged, so that their labels can be read


class ResultFiles:
    """What a model found in many images, as the official evaluations read it.

    - ``results.json``: all objects (at most ``inference.limit`` an image, however low their scores) as a COCO results
      file, with masks (RLE) or, of models without masks, boxes. Of panoptic models these are the things.
    - ``images.json``: the images and categories behind the ids, as a COCO file without annotations.
    - of panoptic models ``panoptic.json``, the official results file, with its maps in ``panoptic/``.

    Each file is whole whenever an image is added.

    Args:
        predictor: whose results they are.
        output: where to write, by `results_folder`.

    Raises:
        OSError: a file cannot be written; the images before are in all files.
    """

    def __init__(self, predictor: Predictor, output: Output) -> None:
        self.predictor = predictor
        self.folder = folder = output.folder
        self.names: set[str] = set()  # of panoptic maps
        self.described: list[dict[str, Any]] = []
        categories = predictor.categories
        self.results = GrowingList(folder / "results.json")
        self.images = GrowingList(folder / "images.json", "images", info=output.info, categories=categories)
        self.files = [self.results, self.images]
        if predictor.config.data.task == "panoptic":
            self.maps = GrowingList(folder / "panoptic.json", "annotations", categories=categories)
            self.files.append(self.maps)

    def add(self, image_id: int, file_name: str, image: Image.Image, outcome: Outcome) -> None:
        ends = [file.end for file in self.files]
        try:
            self._add(image_id, file_name, image, outcome)
        except OSError:
            for file, end in zip(self.files, ends, strict=True):
                file.cut(end)
            raise

    def _add(self, image_id: int, file_name: str, image: Image.Image, outcome: Outcome) -> None:
        found = objects(outcome)
        iou_type: IouType = "bbox" if found.masks is None else "segm"
        self.results.extend(coco_results(image_id, found, self.predictor.category_ids, iou_type))
        if isinstance(outcome, Segmentation):
            name = f"{Path(file_name).stem}.png"
            if name in self.names:  # 1.jpg and 1.png
                name = f"{file_name}.png"
            self.names.add(name)
            panoptic = self.predictor.described(outcome.panoptic)
            write_ids(self.folder / "panoptic" / name, panoptic.ids)
            self.maps.extend([panoptic_result(image_id, name, panoptic)])
        entry = {"id": image_id, "file_name": file_name, "width": image.width, "height": image.height}
        self.images.extend([entry])
        self.described.append(entry)

    def finish(self) -> None:
        self.results.finish()
        self.images.finish()
        if self.predictor.config.data.task == "panoptic":
            self.maps.finish(images=self.described)


def predict_folder(
    predictor: Predictor, source: str | Path, out: str | Path, threshold: float = 0.5, force: bool = False
) -> list[DqdetError]:
    """Detect in an image, or in all images of a folder (not of its subfolders), and write into ``out``:

    - each picture under its own name, with what was found drawn in: objects above ``threshold``, or the panoptic
      map; small pictures are enlarged,
    - the files of `ResultFiles`. File names that are distinct numbers, as COCO's are, give the ids of images;
      otherwise images are numbered from 1.

    Pictures are written whole. When the disk is full, or after an interruption, the files of results have the images
    that are done. Links in ``out`` are replaced, not followed.

    Returns:
        what was wrong with the files that could not be read; all others are done nevertheless.

    Raises:
        DqdetError: there are no images, or ``out`` cannot be written, would overwrite them, or has results of another
            source, which are overwritten only with ``force``.
        Interrupted: by Ctrl-C or SIGTERM.
    """
    files = image_files(Path(source))
    ids = image_ids(files)
    out = Path(out)
    if out.resolve() == files[0].parent.resolve():
        raise DqdetError(f"{out}: has the images, which would be overwritten; choose another folder for the results")
    failures: list[DqdetError] = []
    batches = [files[start : start + predictor.batch] for start in range(0, len(files), predictor.batch)]
    with results_folder(out, Path(source), force) as output:
        results = ResultFiles(predictor, output)
        for batch in in_progress(batches, "predicting", len(batches)):
            readable = {}
            for file in batch:
                try:
                    readable[file] = read_image(file)
                except DqdetError as error:
                    failures.append(error)
            outcomes = predictor.outcomes(list(readable.values()))
            for (file, image), outcome in zip(readable.items(), outcomes, strict=True):
                picture = annotated(image, predictor.shown(outcome, threshold), max(SMALLEST_PICTURE, *image.size))
                write_image(out / (file.name if is_image_name(file) else f"{file.name}.png"), picture)
                results.add(ids[file], file.name, image, outcome)
                output.done = f"{len(results.described)} of {len(files)} images are done"
        results.finish()
    return failures


def image_ids(files: Sequence[Path]) -> dict[Path, int]:
    """The numbers that the files are named by, where all are and none twice; otherwise 1, 2, 3, ..."""
    numbers = [int(file.stem) for file in files if file.stem.isdecimal()]
    return dict(zip(files, numbers if len(set(numbers)) == len(files) else range(1, len(files) + 1), strict=True))
