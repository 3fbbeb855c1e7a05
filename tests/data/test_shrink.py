"""``data.shrink``: large JPEGs are decoded at a part of their size, and nothing else changes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.data.transforms import least_side
from dqdet.errors import DqdetError
from dqdet.formats.image_files import ORIENTATION, read_pixels, read_shrunk


def config(root: Path, **options) -> DataConfig:
    return DataConfig(root=str(root), crop=False, flip=False, resize=[100], max_size=400, **options)


@pytest.fixture(scope="module")
def photograph(tmp_path_factory) -> Path:
    """Smooth, as photographs are, and no multiple of eight."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    file = tmp_path_factory.mktemp("photograph") / "1.jpg"
    coarse.resize((403, 301), Image.Resampling.BICUBIC).save(file, quality=95)
    return file


def difference(pixels: torch.Tensor, part: int, whole: torch.Tensor) -> float:
    """Mean absolute difference to averages of squares of ``part`` pixels."""
    averages = F.avg_pool2d(whole[None].float(), part, ceil_mode=True)[0]
    return float((pixels - averages).abs().mean())


@given(st.integers(1, 320))
@settings(max_examples=30)
def test_a_part_is_the_least_that_is_enough_and_shows_the_same(photograph, least):
    pixels, size, part = read_shrunk(photograph, least)
    assert size == (403, 301)
    assert pixels.shape[1:] == (-(-301 // part), -(-403 // part))
    assert min(pixels.shape[1:]) >= min(least, 301)
    assert part == 8 or 301 // (2 * part) < least
    assert difference(pixels, part, read_pixels(photograph)) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_part_is_turned_as_the_whole(photograph, orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    with Image.open(photograph) as image:
        image.crop((0, 0, 400, 300)).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    pixels, (width, height), part = read_shrunk(tmp_path / "turned.jpg", 100)
    whole = read_pixels(tmp_path / "turned.jpg")
    assert whole.shape == (3, height, width)
    assert part == 2
    assert pixels.shape[1:] == (height // 2, width // 2)
    assert difference(pixels, part, whole) < 3


def test_training_images_are_shrunk_and_their_boxes_with_them(shared):
    root = shared / "data" / "bccd"  # 640 x 480
    whole, shrunk = (open_dataset(config(root, shrink=shrink), "train", 0) for shrink in (False, True))
    assert whole.read(0)["image"].shape == (3, 480, 640)
    sample = shrunk.read(0)
    assert sample["image"].shape == (3, 120, 160)
    torch.testing.assert_close(sample["boxes"].as_subclass(torch.Tensor) * 4, whole.read(0)["boxes"])
    for index in range(3):
        (image, target), (other, expected) = shrunk[index], whole[index]
        assert target.size == expected.size
        torch.testing.assert_close(target.boxes, expected.boxes)
        assert (image.float() - other).abs().mean() < 6


def test_validation_images_are_whole(shared):
    dataset = open_dataset(config(shared / "data" / "bccd", shrink=True), "val", 0)
    assert dataset.read(0)["image"].shape == (3, 480, 640)


def test_no_resize_has_to_enlarge():
    assert least_side(DataConfig()) == 800
    assert least_side(DataConfig(augment={"scale": 0.5})) == 1200
    assert least_side(DataConfig(window=(1024, 1024), jitter=(0.1, 2.0))) == 2048


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_record_of_another_size_is_named_all_the_same(tmp_path, suffix):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (400, 300)).save(tmp_path / "train" / f"1{suffix}")
    document = {
        "images": [{"id": 1, "file_name": f"1{suffix}", "width": 800, "height": 600}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "train" / "_annotations.coco.json").write_text(json.dumps(document))
    with pytest.raises(DqdetError, match=f"1{suffix}: is 400 x 300 pixels, but image 1 of .* is 800 x 600"):
        open_dataset(config(tmp_path, shrink=True), "train", 0)[0]
