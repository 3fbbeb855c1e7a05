"""Data sets, their augmentation, and the loader that makes batches of them."""

from dqdet.config import DataConfig
from dqdet.data.coco import CocoDataset
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.scenes_dataset import ScenesDataset

KINDS: dict[str, type[DetectionDataset]] = {"coco": CocoDataset, "scenes": ScenesDataset}


def open_dataset(config: DataConfig, split: Split, seed: int = 0) -> DetectionDataset:
    """The training or validation part of the data set that ``config`` names.

    Args:
        config: kind, place and augmentation.
        split: "train" or "val".
        seed: of the augmentation, not negative.

    Raises:
        DqdetError: the data is missing or faulty; says which file and what to do.
    """
    return KINDS[config.kind](config, split, seed)
