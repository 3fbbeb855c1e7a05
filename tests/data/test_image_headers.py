"""Headers of image files, looked at before a training."""

from __future__ import annotations

import os
from pathlib import Path

import PIL.Image
import pytest
from test_coco import document, record, write

from dqdet.config import resolve
from dqdet.data import check_files, open_dataset
from dqdet.data.dataset import DetectionDataset
from dqdet.errors import DqdetError
from dqdet.formats import image_headers
from dqdet.formats.image_headers import header_faults
from dqdet.training.engine import train
from tiny import TINY


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    PIL.Image.new("RGB", (60, 40)).save(folder / "right.png")
    PIL.Image.new("RGB", (60, 41)).save(folder / "larger.png")
    (folder / "text.png").write_text("<html>not found</html>")
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    for orientation in (1, 6):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        PIL.Image.new("RGB", (60, 40)).save(folder / f"orientation{orientation}.jpg", exif=exif)
    return folder


def faults(folder: Path, *names: str, size: tuple[int, int] = (40, 60)) -> list[str]:
    return header_faults(folder, names, [size] * len(names))


def test_every_fault_is_found(folder):
    assert faults(folder, "right.png") == []
    assert faults(folder, "larger.png") == ["larger.png is 60 x 41 pixels instead of 60 x 40"]
    assert faults(folder, "pipe.png") == ["pipe.png is no regular file"]
    names = ("text.png", "empty.png", "folder.png", "missing.png", "a" * 300)
    found = faults(folder, "right.png", *names)
    assert [fault.split(" cannot be read as an image (")[0] for fault in found] == list(names)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_a_file_of_several_frames_is_a_fault_before_anything_is_read_of_it(folder, suffix):
    frames = [PIL.Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    for name, more in (("one", []), ("two", frames[1:])):
        frames[0].save(folder / f"{name}.{suffix}", save_all=bool(more), append_images=more)
    assert faults(folder, f"one.{suffix}", f"two.{suffix}") == [
        f"two.{suffix} has 2 frames or pages, of which only one would be used"
    ]


def test_the_size_may_be_that_of_the_turned_image(folder):
    assert faults(folder, "orientation1.jpg", "orientation6.jpg") == []
    assert faults(folder, "orientation1.jpg", "orientation6.jpg", size=(60, 40)) == [
        "orientation1.jpg is 60 x 40 pixels instead of 40 x 60"
    ]


def test_files_that_were_right_are_not_opened_again_until_they_change(folder, monkeypatch):
    opened = []
    real = image_headers.header_fault
    monkeypatch.setattr(image_headers, "header_fault", lambda file, size: opened.append(file) or real(file, size))
    names = ("right.png", "larger.png")
    first = faults(folder, *names)
    assert faults(folder, *names) == first
    assert [Path(file).name for file in opened] == ["right.png", "larger.png", "larger.png"]
    PIL.Image.new("RGB", (30, 40)).save(folder / "right.png")
    assert len(faults(folder, *names)) == 2
    PIL.Image.new("RGB", (60, 40)).save(folder / "right.png")
    assert faults(folder, "right.png") == []
    assert len(faults(folder, "right.png", size=(41, 60))) == 1  # of another record


@pytest.mark.parametrize("content", [b"", b"x", b"0" * 24, b"\0" * 800])
def test_a_damaged_cache_is_ignored(folder, cache, content):
    faults(folder, "right.png")
    (file,) = (file for file in cache.rglob("*") if file.is_file())
    file.write_bytes(content)
    assert len(faults(folder, "right.png", "larger.png")) == 1


def test_a_cache_that_cannot_be_written_is_done_without(folder, cache):
    cache.write_text("no folder")
    assert faults(folder, "right.png") == []
    assert len(faults(folder, "right.png", "larger.png")) == 1


def test_a_training_begins_with_the_check(tmp_path):
    images = [record(1), record(2, file_name="2.png"), record(3, file_name="3.png")]
    write(tmp_path, document(images=images), files=("1.png",))
    PIL.Image.new("RGB", (60, 41)).save(tmp_path / "images/train/2.png")
    (tmp_path / "images/train/3.png").write_text("no image")
    options = TINY | {"data.kind": "coco", "data.root": str(tmp_path), "data.val": "train", "train.batch": 1}
    with pytest.raises(DqdetError) as caught:
        train(resolve("scenes_tiny", options), tmp_path / "run")
    folder = tmp_path / "images/train"
    message = str(caught.value)
    assert message.startswith(f"4 image files cannot be used: {folder}: 2.png is 60 x 41 pixels instead of 60 x 40; ")
    assert f"{folder}: 3.png cannot be read as an image (" in message
    assert "data.check=false" in message
    assert not (tmp_path / "run").exists()
    with pytest.raises(DqdetError, match=r"(2|3)\.png: .*(remove|correct)"):  # as it is read
        train(resolve("scenes_tiny", options | {"data.check": False}), tmp_path / "run")


def test_maps_of_panoptic_data_are_files_too(tmp_path):
    from test_panoptic import opened, write

    write(tmp_path, images=2)
    dataset = opened(tmp_path)
    check_files([dataset])
    PIL.Image.new("RGB", (30, 21)).save(tmp_path / "annotations/panoptic_train/2.png")
    (tmp_path / "train/1.jpg").unlink()
    assert [fault.split(": ")[1][:5] for fault in dataset.file_faults()] == ["1.jpg", "2.png"]


def test_cityscapes_and_videos_have_files(tmp_path):
    from test_cityscapes import small
    from test_youtube_vis import document, written

    def opened(preset: str, kind: str, root: Path) -> DetectionDataset:
        return open_dataset(resolve(preset, {"data.kind": kind, "data.root": str(root)}).data, "train")

    cityscapes = opened("scenes_tiny_panoptic", "cityscapes", small(tmp_path))
    assert cityscapes.file_faults() == []
    next((tmp_path / "gtFine/train/ulm").iterdir()).write_text("no image")
    assert len(cityscapes.file_faults()) == 1
    root = written(tmp_path / "videos", document())
    videos = opened("scenes_tiny_video", "youtube_vis", root)
    assert videos.file_faults() == []
    (root / "train/JPEGImages/v3/00005.jpg").write_text("no image")
    assert len(videos.file_faults()) == 1
