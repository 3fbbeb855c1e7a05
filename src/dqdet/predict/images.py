"""A model used on pictures: annotated pictures, and results in the official formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from PIL import Image

from dqdet.drawing.pictures import Threshold
from dqdet.errors import DqdetError, UnfitImage, lack_of_memory
from dqdet.formats.image_files import read_image, write_image
from dqdet.formats.panoptic import write_ids
from dqdet.formats.results import GrowingList, IouType, coco_results, panoptic_result
from dqdet.predict.batches import in_batches
from dqdet.predict.output import Output, results_folder
from dqdet.predict.predictor import Predictor, Prepared, objects
from dqdet.predict.prefetch import ahead
from dqdet.predict.progress import Tally, in_progress
from dqdet.types import Outcome, Segmentation


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
            name = str(PurePosixPath(file_name).with_suffix(".png"))
            if name in self.names:  # 1.jpg and 1.png
                name = f"{file_name}.png"
            self.names.add(name)
            panoptic = self.predictor.described(outcome.panoptic)
            place = self.folder / "panoptic" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            write_ids(place, panoptic.ids)
            self.maps.extend([panoptic_result(image_id, name, panoptic)])
        entry = {"id": image_id, "file_name": file_name, "width": image.width, "height": image.height}
        self.images.extend([entry])
        self.described.append(entry)

    def finish(self) -> None:
        self.results.finish()
        self.images.finish()
        if self.predictor.config.data.task == "panoptic":
            self.maps.finish(images=self.described)


class Picture(NamedTuple):
    """A picture to look at."""

    file: Path
    name: str  # of it in results, with slashes where there are folders; with a suffix that says how to write it


class Named(Protocol):
    """Something to look at, by its name in results."""

    @property
    def name(self) -> str: ...


Source = TypeVar("Source", bound=Named)


class Readable(NamedTuple, Generic[Source]):
    """A picture that has been read."""

    picture: Source
    image: Image.Image
    prepared: Prepared


def found_in(
    predictor: Predictor,
    pictures: Iterable[Source],
    read: Callable[[Source], Image.Image],
    failed: Callable[[Source, DqdetError], None],
    threshold: Threshold | None,
    tally: Tally,
) -> Iterator[tuple[Readable[Source], Outcome]]:
    """What is found in pictures, in their order; those of one shape among the next few go through the model together.

    Where there is not enough memory for them, or one is of a size that the model cannot take, they go one by one.

    Args:
        predictor: of the model.
        pictures: are taken as they are needed.
        read: a picture, in threads; raises DqdetError where it cannot be read.
        failed: is given the pictures that could not be read or looked at, which are left out, and why.
        threshold: of the segments of panoptic maps.
        tally: of the time that the model takes.
    """
    size = predictor.batch

    def attempt(picture: Source) -> Readable[Source] | tuple[Source, DqdetError]:
        try:
            image = read(picture)
        except DqdetError as error:
            return picture, error
        return Readable(picture, image, predictor.prepared(image))

    def readable() -> Iterator[Readable[Source]]:
        for one in ahead(attempt, pictures, size, threads=2):
            if isinstance(one, Readable):
                yield one
            else:
                failed(*one)

    def outcomes(batch: Sequence[Readable[Source]]) -> Sequence[Outcome | None]:
        try:
            with tally.busy():
                return predictor.outcomes_of([one.prepared for one in batch], threshold)
        except UnfitImage as error:
            reason = str(error)
        except (MemoryError, RuntimeError) as error:
            if (lack := lack_of_memory(error)) is None:
                raise
            height, width = predictor.padded(batch[0].prepared)
            reason = f"{lack} for {width}x{height} pixels; lower data.val_resize and data.max_size"
        if len(batch) > 1:
            return [outcome for one in batch for outcome in outcomes([one])]
        failed(batch[0].picture, DqdetError(f"{batch[0].picture.name}: {reason}"))
        return [None]

    found = in_batches(readable(), outcomes, lambda one: predictor.padded(one.prepared), size, 2 * size)
    return ((one, outcome) for one, outcome in found if outcome is not None)


def predict_pictures(
    predictor: Predictor,
    pictures: Sequence[Picture],
    sources: Sequence[str | Path],
    out: Path,
    threshold: Threshold | None = None,
    ids: Mapping[str, int] | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[DqdetError]:
    """Detect in pictures, and write into ``out``:

    - each picture under its own name, with what was found drawn in: objects above ``threshold``, or the panoptic
      map; small pictures are enlarged, large ones reduced,
    - the files of `ResultFiles`.

    Args:
        predictor: of the model.
        pictures: to look at.
        sources: what was given to find them.
        out: folder to write to.
        threshold: in 0..1: of objects by default 0.5; of the segments of panoptic maps instead of
            ``inference.object_threshold``.
        ids: of the pictures, by their names. By default file names that are distinct numbers, as COCO's are, give
            them; otherwise images are numbered from 1.
        force: overwrite the results of other sources, or of another model.
        say: is given a line on what was done.

    Pictures of one shape go through the model together, wherever they are among the next few, so that what is found in
    one does not depend on the others. Pictures are written whole. When the disk is full, or after an interruption, the
    files of results have the images that are done. Links in ``out`` are replaced, not followed.

    Returns:
        what was wrong with the files that could not be read; all others are done nevertheless.

    Raises:
        DqdetError: ``out`` cannot be written, would overwrite the pictures, or has results of another source or
            model, which are overwritten only with ``force``.
        Interrupted: by Ctrl-C or SIGTERM.
    """
    if ids is None:
        numbers = image_ids([picture.file for picture in pictures])
        ids = {picture.name: number for picture, number in zip(pictures, numbers, strict=True)}
    if any((out / picture.name).resolve() == picture.file.resolve() for picture in pictures):
        raise DqdetError(f"{out}: has the images, which would be overwritten; choose another folder for the results")
    tally = Tally("images", "segments" if predictor.config.data.task == "panoptic" else "objects")
    failures: list[DqdetError] = []
    seen = in_progress(pictures, "predicting", len(pictures))

    def read(picture: Picture) -> Image.Image:
        return read_image(picture.file)

    def failed(picture: Picture, error: DqdetError) -> None:
        failures.append(error)

    predicted = found_in(predictor, seen, read, failed, threshold, tally)

    with results_folder(out, sources, predictor.source, force) as output:
        results = ResultFiles(predictor, output)

        def write(found: tuple[Readable[Picture], Outcome]) -> None:
            (picture, image, _), outcome = found
            (out / picture.name).parent.mkdir(parents=True, exist_ok=True)
            write_image(out / picture.name, predictor.drawn(image, outcome, threshold))
            results.add(ids[picture.name], picture.name, image, outcome)
            tally.add(predictor.shown(outcome, threshold))
            output.done = f"{len(results.described)} of {len(pictures)} images are done"

        for _ in ahead(write, predicted, predictor.batch):
            pass
        results.finish()
    say(f"{out}: {tally.line(predictor.shown_above(threshold))}")
    return failures


def image_ids(files: Sequence[Path]) -> list[int]:
    """The numbers that the files are named by, where all are and none twice; otherwise 1, 2, 3, ..."""
    numbers = [int(file.stem) for file in files if file.stem.isdecimal()]
    return numbers if len(set(numbers)) == len(files) else [*range(1, len(files) + 1)]
