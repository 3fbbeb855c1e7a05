"""A look at a whole data set before anything is trained on it: what is there, and what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.data.coco import CocoDataset
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.overview import Overview, duplicates, overview
from dqdet.drawing.overview import overview_page, sheet
from dqdet.drawing.pictures import annotated, ground_truth, objects, picture
from dqdet.errors import DqdetError, listed
from dqdet.formats.shards import Member

SPLITS: tuple[Split, ...] = ("train", "val")
SHOWN, WIDTH = 9, 360  # pictures of a split, and their width in pixels
TALLEST = 4  # height / width; what is taller becomes narrower


@dataclass
class Checked:
    """What is in a data set, and what is wrong with it."""

    datasets: dict[str, CocoDataset] = field(default_factory=dict)  # those that can be opened
    splits: dict[str, Overview] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def table(self) -> list[list[str]]:
        """A row for each number: what it is, and that of each split."""
        columns = {split: _column(found) for split, found in self.splits.items()}
        names = dict.fromkeys(name for column in columns.values() for name in column)
        return [[name, *(column.get(name, "-") for column in columns.values())] for name in names]

    def page(self, title: str) -> str:
        """The same as HTML, with figures and random annotated images."""
        sheets = {split: _sheet(dataset) for split, dataset in self.datasets.items()}
        return overview_page(title, self.splits, sheets, self.table(), self.faults)


def check(config: DataConfig) -> Checked:
    """Read all annotations and the headers of all images of both splits, and compare the files of the splits."""
    checked = Checked()
    for split in SPLITS:
        try:
            dataset = open_dataset(config, split)
            assert isinstance(dataset, CocoDataset), "other formats are not checked"
            checked.splits[split] = overview(dataset.ground_truth(), config)
        except DqdetError as error:
            checked.faults.append(str(error))
            continue
        checked.datasets[split] = dataset
        checked.faults += dataset.file_faults()
    if len({tuple(dataset.classes) for dataset in checked.datasets.values()}) > 1:
        train, val = (checked.datasets[split].classes for split in SPLITS)
        if differing := sorted(set(train) ^ set(val)):
            checked.faults.append(f"classes of one split alone: {listed(differing)}")
        else:
            checked.faults.append(
                f"classes are in another order in train ({listed(train)}) than in val ({listed(val)})"
            )
    checked.faults += _shared_files(checked.datasets)
    checked.faults = list(dict.fromkeys(checked.faults))  # what both splits are of is wrong once
    return checked


def _shared_files(datasets: Mapping[str, CocoDataset]) -> list[str]:
    """Images that are in both splits, which makes a validation too good, or twice in one."""
    files = {
        split: [file for file in map(dataset.images.stored, range(len(dataset))) if _is_there(file)]
        for split, dataset in datasets.items()
    }
    groups = duplicates(files)
    between = [group for group in groups if len({split for split, _ in group}) > 1]
    within = [group for group in groups if group not in between]
    return [
        f"{len(found)} images are {where}: {listed([' = '.join(str(file) for _, file in group) for group in found])}"
        for found, where in ((between, "in both splits"), (within, "more than once in a split"))
        if found
    ]


def _is_there(file: Path | Member) -> bool:
    return isinstance(file, Member) or file.is_file()


def _column(found: Overview) -> dict[str, str]:
    column = {
        "images": str(found.images),
        "without objects": str(int((found.counts == 0).sum())),
        "objects": str(len(found.boxes)),
        "crowds": str(found.crowds),
        "objects an image": _spread(found.counts),
        "width, pixels": _spread(found.sizes[:, 1]),
        "height, pixels": _spread(found.sizes[:, 0]),
    }
    if len(found.boxes):
        column["box side for the model, pixels"] = _spread(np.sqrt(found.resized.prod(1)))
        column["box width / height"] = _spread(found.aspect_ratios)
    column |= {f"{size} for the model": str(count) for size, count in found.by_size.items()}
    return column | {f"class {name}": str(count) for name, count in found.classes.items()}


def _spread(values: np.ndarray) -> str:
    """Least, median and greatest."""
    least, median, greatest = np.percentile(values, [0, 50, 100])
    return f"{least:.3g}" if least == greatest else f"{least:.3g} .. {median:.3g} .. {greatest:.3g}"


def augmented_sheet(dataset: DetectionDataset, count: int) -> Image.Image:
    """Training images as the model gets them in the first epoch, with their objects; drawn at random."""
    pictures = []
    for index in np.random.default_rng(dataset.seed).permutation(len(dataset))[:count].tolist():
        image, target = dataset[index]
        pictures.append(_of_one_width(picture(image), ground_truth(target, target.size, dataset.classes)))
    return sheet(pictures)


def _sheet(dataset: CocoDataset) -> Image.Image:
    drawn = np.random.default_rng(0).permutation(len(dataset))[:SHOWN]
    pictures = []
    for index in sorted(drawn.tolist()):
        try:
            sample = dataset.read(index)
        except DqdetError:  # among the faults
            continue
        shown = objects(sample["boxes"], sample["labels"], dataset.classes, sample.get("masks"))
        pictures.append(_of_one_width(picture(sample["image"]), shown))
    return sheet(pictures) if pictures else Image.new("RGB", (WIDTH, WIDTH), "white")


def _of_one_width(image: Image.Image, shown: sv.Detections) -> Image.Image:
    return annotated(image, shown, round(WIDTH * min(max(1, image.height / image.width), TALLEST)))
