"""Opening data sets of folders, and what people are told when that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.errors import DqdetError


def opened(root: Path, split: Split = "train", **options: Any) -> DetectionDataset:
    return open_dataset(DataConfig(root=str(root), **options), split)


def error_of(root: Path, split: Split = "train", **options: Any) -> str:
    """The one line of the error on opening it."""
    with pytest.raises(DqdetError) as caught:
        opened(root, split, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
