"""Cityscapes (Cordts et al., 2016) as downloaded: the folders ``leftImg8bit`` and ``gtFine``.

All annotation comes from ``*_gtFine_instanceIds.png``, whose pixels hold label id * 1000 + number for objects and the
label id for all else. What the bare id of a class of things marks is a group that was not told apart: a crowd. Pixels
of labels that are not evaluated are void, objects of such labels (caravan, trailer) too. These are the segments that
the official conversion to panoptic maps writes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from torchvision import tv_tensors

from dqdet.config import DataConfig
from dqdet.data.dataset import Split
from dqdet.data.segments import SegmentsDataset, as_sample
from dqdet.data.transforms import Sample
from dqdet.errors import DqdetError, listed
from dqdet.formats.cityscapes import CLASSES, LABELS, labels_of, unknown
from dqdet.formats.image_files import opened_image, read_pixels, sizes
from dqdet.formats.image_headers import header_faults
from dqdet.types import PanopticMap

IMAGE_ENDING, INSTANCES_ENDING = "_leftImg8bit.png", "_gtFine_instanceIds.png"
ARCHIVES = {"leftImg8bit": "leftImg8bit_trainvaltest.zip", "gtFine": "gtFine_trainvaltest.zip"}
ADVICE = "unpack it again"
MAP_MODES = ("L", "I", "I;16")  # of Pillow, for 8 and 16 bits a pixel


def find_folders(config: DataConfig, split: Split) -> tuple[Path, Path]:
    """The folders of the images and of the annotations of a split, which have a folder for each city.

    Raises:
        DqdetError: the root or one of the folders is missing; names all that are.
    """
    if config.root is None:
        raise DqdetError("data.root is not set: give the folder of the data set, such as data.root=/data/cityscapes")
    root, name = Path(config.root), getattr(config, split) or split
    faults = []
    for part, archive in ARCHIVES.items():
        if not os.path.isdir(root / part):
            faults.append(f"no folder {part} (unpack {archive} there, or set data.root)")
        elif not os.path.isdir(root / part / name):
            faults.append(f"no folder {part}/{name} (unpack {archive} there, or set data.{split})")
    if faults:
        raise DqdetError(f"{root}: {'; '.join(faults)}")
    return root / "leftImg8bit" / name, root / "gtFine" / name


def find_images(images: Path, annotations: Path) -> list[str]:
    """What the files of each image are called, without their endings (``city/city_000000_000019``), sorted.

    Raises:
        DqdetError: there are none, or images without annotation or the reverse; names all of them.
    """
    pictured, annotated = _names(images, IMAGE_ENDING), _names(annotations, INSTANCES_ENDING)
    faults = []
    for kind, folder, ending, missing in (
        ("images", images, IMAGE_ENDING, annotated - pictured),
        ("annotations", annotations, INSTANCES_ENDING, pictured - annotated),
    ):
        if missing:
            files = listed([f"{name}{ending}" for name in sorted(missing)])
            faults.append(f"{folder}: {len(missing)} of {len(pictured | annotated)} {kind} are missing: {files}")
    if faults:
        raise DqdetError(f"{'; '.join(faults)}; unpack the archives again or remove what belongs to these files")
    if not pictured:
        raise DqdetError(f"{images}: has no files */*{IMAGE_ENDING}; unpack {ARCHIVES['leftImg8bit']} again")
    return sorted(pictured)


def _names(folder: Path, ending: str) -> set[str]:
    """Of the files with this ending, which is left out."""
    return {str(file.relative_to(folder)).removesuffix(ending) for file in folder.glob(f"*/*{ending}")}


class CityscapesDataset(SegmentsDataset):
    """A split of Cityscapes: 8 classes of things (task instance), or these and 11 of stuff (task panoptic).

    Images are in the order of their names and numbered from 1, classes in that of their training ids. The splits are
    those of the same name unless ``config.train`` and ``config.val`` name others. Nothing is read when the data set
    is opened, except for the header of one image: all images of Cityscapes have one size, and if they had not,
    batches would be padded more, nothing else.

    Raises:
        DqdetError: folders or files are missing; names all of them.
    """

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.image_folder, self.annotation_folder = find_folders(config, split)
        names = find_images(self.image_folder, self.annotation_folder)
        # Arrays, because worker processes would copy lists, see CocoDataset.
        self.file_names = np.array([f"{name}{IMAGE_ENDING}" for name in names])
        self.annotation_names = np.array([f"{name}{INSTANCES_ENDING}" for name in names])
        classes = [label for label in CLASSES if config.task == "panoptic" or label.has_instances]
        self.classes = [label.name for label in classes]
        self.category_ids = [label.id for label in classes]
        self.stuff = [label.name for label in classes if not label.has_instances]
        self.panoptic_categories = [
            {"id": label.id, "name": label.name, "isthing": int(label.has_instances), "color": list(label.color)}
            for label in CLASSES
        ]
        self.image_ids = list(range(1, len(names) + 1))
        with opened_image(self._image_file(0), ADVICE) as image:
            self.aspect_ratios = np.full(len(names), image.width / image.height)

    def instance_ids(self, index: int) -> np.ndarray:
        """The map ``[H, W]`` of ``*_gtFine_instanceIds.png``.

        Raises:
            DqdetError: it cannot be read, has another size than its image or ids that do not exist.
        """
        file, image_file = self.annotation_folder / self.annotation_names[index], self._image_file(index)
        with opened_image(file, ADVICE) as opened:
            if opened.mode not in MAP_MODES:
                raise DqdetError(f"{file}: is a picture ({opened.mode}), not a map of numbers; unpack it again")
            ids = np.array(opened)  # [H, W]
        faults = []
        with opened_image(image_file, ADVICE) as image:
            if opened.size not in sizes(image):
                differing = " not ".join(f"{width} x {height}" for width, height in (opened.size, image.size))
                faults.append(f"has {differing} pixels as {image_file}")
        if numbers := unknown(np.flatnonzero(np.bincount(ids.ravel()))):
            faults.append(f"has pixels with the unknown label or instance ids {listed(numbers)}")
        if faults:
            raise DqdetError(f"{file}: {'; '.join(faults)}; unpack both again")
        return ids

    def panoptic(self, index: int) -> PanopticMap:
        """The segments of an image; their ids are the pixel values of ``instance_ids``."""
        ids = self.instance_ids(index)
        counts = np.bincount(ids.ravel())
        numbers = np.flatnonzero(counts)
        labels = [LABELS[label_id] for label_id in labels_of(numbers).tolist()]
        segments = [
            {"id": number, "category_id": label.id, "iscrowd": int(label.has_instances and number == label.id)}
            for number, label in zip(numbers.tolist(), labels, strict=True)
            if not label.ignore_in_eval
        ]
        kept = np.zeros(len(counts), dtype=np.int64)  # by pixel value: itself, or void
        for segment in segments:
            kept[segment["id"]] = segment["id"]
        return PanopticMap(kept[ids], segments)

    def has_objects(self) -> bool:
        """Reads maps up to the first that has some, which is hardly ever a second one."""
        return any(
            segment["category_id"] in self.category_ids and not segment["iscrowd"]
            for index in range(len(self))
            for segment in self.panoptic(index).segments
        )

    def file_faults(self) -> list[str]:
        places = (self.image_folder, self.file_names), (self.annotation_folder, self.annotation_names)
        return [f"{folder}: {fault}" for folder, names in places for fault in header_faults(folder, [*map(str, names)])]

    def read(self, index: int) -> Sample:
        panoptic = self.panoptic(index)
        height, width = panoptic.ids.shape
        image = tv_tensors.Image(read_pixels(self._image_file(index), ADVICE, (width, height)))
        return as_sample(image, panoptic, self.category_ids)

    def _image_file(self, index: int) -> Path:
        return self.image_folder / self.file_names[index]
