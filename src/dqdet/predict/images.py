"""A model used on a folder of pictures: annotated pictures, and results in the official formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dqdet.errors import DqdetError
from dqdet.formats.image_files import image_files, is_image_name, read_image
from dqdet.formats.panoptic import write_ids
from dqdet.formats.results import IouType, StoredResults, coco_results, panoptic_result
from dqdet.predict.predictor import Predictor, objects
from dqdet.predict.progress import in_progress
from dqdet.types import Outcome, Segmentation


class ResultFiles:
    """What a model found in many images, as the official evaluations read it.

    - ``results.json``: all objects (at most ``inference.limit`` an image, however low their scores) as a COCO results
      file, with masks (RLE) or, of models without masks, boxes. Of panoptic models these are the things.
    - ``images.json``: the images and categories behind the ids, as a COCO file without annotations.
    - of panoptic models ``panoptic.json``, the official results file, with its maps in ``panoptic/``.

    Args:
        predictor: whose results they are.
        out: the folder to write to.
    """

    def __init__(self, predictor: Predictor, out: Path) -> None:
        self.predictor = predictor
        self.out = out
        self.images: list[dict[str, Any]] = []
        self.results = StoredResults()
        self.maps: dict[str, dict[str, Any]] = {}  # by their file names

    def add(self, image_id: int, file_name: str, image: Image.Image, outcome: Outcome) -> None:
        """Raises OSError when a panoptic map cannot be written."""
        self.images.append({"id": image_id, "file_name": file_name, "width": image.width, "height": image.height})
        found = objects(outcome)
        iou_type: IouType = "bbox" if found.masks is None else "segm"
        self.results[image_id] = coco_results(image_id, found, self.predictor.category_ids, iou_type)
        if isinstance(outcome, Segmentation):
            name = f"{Path(file_name).stem}.png"
            if name in self.maps:  # 1.jpg and 1.png
                name = f"{file_name}.png"
            panoptic = self.predictor.described(outcome.panoptic)
            self.maps[name] = panoptic_result(image_id, name, panoptic)
            (self.out / "panoptic").mkdir(parents=True, exist_ok=True)
            write_ids(self.out / "panoptic" / name, panoptic.ids)

    def write(self) -> None:
        """Raises OSError when a file cannot be written."""
        described = {"images": self.images, "categories": self.predictor.categories}
        self.results.write(self.out / "results.json")
        (self.out / "images.json").write_text(json.dumps(described))
        if self.predictor.config.data.task == "panoptic":
            maps = described | {"annotations": list(self.maps.values())}
            (self.out / "panoptic.json").write_text(json.dumps(maps))


def predict_folder(
    predictor: Predictor, source: str | Path, out: str | Path, threshold: float = 0.5
) -> list[DqdetError]:
    """Detect in an image, or in all images of a folder (not of its subfolders), and write into ``out``:

    - each picture under its own name, with what was found drawn in: objects above ``threshold``, or the panoptic
      map; small pictures are enlarged, large ones reduced,
    - the files of `ResultFiles`. File names that are distinct numbers, as COCO's are, give the ids of images;
      otherwise images are numbered from 1.

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
    results = ResultFiles(predictor, out)
    failures: list[DqdetError] = []
    batches = [files[start : start + predictor.batch] for start in range(0, len(files), predictor.batch)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for batch in in_progress(batches, "predicting", len(batches)):
            readable = {}
            for file in batch:
                try:
                    readable[file] = read_image(file)
                except DqdetError as error:
                    failures.append(error)
            outcomes = predictor.outcomes(list(readable.values()))
            for (file, image), outcome in zip(readable.items(), outcomes, strict=True):
                results.add(ids[file], file.name, image, outcome)
                picture = predictor.drawn(image, outcome, threshold)
                name = file.name if is_image_name(file) else f"{file.name}.png"
                picture.save(out / name, quality=92)  # of formats that have it
        results.write()
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error}); choose another folder or make space") from error
    return failures


def image_ids(files: Sequence[Path]) -> dict[Path, int]:
    """The numbers that the files are named by, where all are and none twice; otherwise 1, 2, 3, ..."""
    numbers = [int(file.stem) for file in files if file.stem.isdecimal()]
    return dict(zip(files, numbers if len(set(numbers)) == len(files) else range(1, len(files) + 1), strict=True))
