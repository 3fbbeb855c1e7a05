"""Data sets, their augmentation, and the loader that makes batches of them."""

from collections.abc import Iterable

from dqdet.config import DataConfig
from dqdet.data.cityscapes import CityscapesDataset
from dqdet.data.clips import VideoDataset
from dqdet.data.coco import CocoDataset
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.panoptic import CocoPanopticDataset
from dqdet.data.pseudo_clips import JointDataset, PseudoClips
from dqdet.data.scenes.images import ScenesDataset
from dqdet.data.scenes.videos import SceneVideosDataset
from dqdet.data.youtube_vis import YoutubeVisDataset
from dqdet.errors import DqdetError, listed

# By config.data.kind and config.data.task.
DATASETS: dict[tuple[str, str], type[DetectionDataset]] = {
    ("coco", "detection"): CocoDataset,
    ("coco", "instance"): CocoDataset,
    ("coco", "panoptic"): CocoPanopticDataset,
    **{
        (kind, task): CocoDataset
        for kind in ("yolo", "voc", "labelme", "webdataset")
        for task in ("detection", "instance")
    },
    ("cityscapes", "instance"): CityscapesDataset,
    ("cityscapes", "panoptic"): CityscapesDataset,
    ("youtube_vis", "video"): YoutubeVisDataset,
    ("scenes", "detection"): ScenesDataset,
    ("scenes", "instance"): ScenesDataset,
    ("scenes", "panoptic"): ScenesDataset,
    ("scenes", "video"): SceneVideosDataset,
}


def check_files(datasets: Iterable[DetectionDataset]) -> None:
    """Look at the headers of all image files of some data sets.

    Raises:
        DqdetError: files are missing, no images, or of other sizes than their records; says how many.
    """
    faults = [fault for dataset in datasets for fault in dataset.file_faults()]
    if faults:
        raise DqdetError(
            f"{len(faults)} image files cannot be used: {listed(faults, '; ')}; replace them or correct their "
            "records, or set data.check=false to find them as they are read"
        )


def open_dataset(config: DataConfig, split: Split, seed: int = 0) -> DetectionDataset:
    """The training or validation part of the data set that ``config`` names.

    Args:
        config: kind, task, place and augmentation.
        split: "train" or "val".
        seed: of the augmentation, not negative.

    Raises:
        DqdetError: the data is missing or faulty; says which file and what to do.
    """
    dataset = DATASETS[config.kind, config.task](config, split, seed)
    if isinstance(dataset, VideoDataset) and split == "train" and config.clips.images is not None:
        return JointDataset(dataset, PseudoClips(dataset, config, seed))
    return dataset
