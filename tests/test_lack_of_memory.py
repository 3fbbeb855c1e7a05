"""What memory that has run out costs: one line, and none of the results so far. Allocations really fail."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import dqdet
from dqdet.errors import DqdetError, lack_of_memory
from dqdet.predict.frames import VideoFile
from dqdet.predict.predictor import Predictor
from dqdet.predict.sources import predict
from dqdet.predict.videos import predict_video
from test_predictor import ColourFinder, config, painted

FAR_TOO_MUCH = 10**15


@pytest.mark.parametrize(
    ("allocate", "expected"),
    [
        (lambda: torch.empty(FAR_TOO_MUCH), "not enough memory for another 4000000000000000 bytes"),
        (lambda: np.empty(FAR_TOO_MUCH), "not enough memory for another 7.11 PiB"),
        (lambda: [0] * FAR_TOO_MUCH * 1000, "not enough memory"),
        (lambda: torch.ones(2) @ torch.ones(3), None),
    ],
)
def test_it_is_told_from_other_errors(allocate, expected):
    with pytest.raises((MemoryError, RuntimeError)) as failure:
        allocate()
    assert lack_of_memory(failure.value) == expected


def test_that_of_a_gpu_is_told_with_its_size():
    text = "CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has a total capacity of 79.19 GiB of which 1 GiB"
    assert lack_of_memory(torch.OutOfMemoryError(text)) == "not enough memory for another 20.50 GiB"


class Hungry(ColourFinder):
    """Has memory for so many pixels at a time."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels, self.tried = pixels, 0

    def forward(self, images, padding):
        self.tried += 1
        if images[:, 0].numel() > self.pixels:
            torch.empty(FAR_TOO_MUCH)
        return super().forward(images, padding)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(120, 120), (120, 120), (200, 100), (120, 120)]):
        painted(*size, red=(10, 10, 60, 60)).save(folder / f"{number}.png")
    return folder


def results(out):
    return json.loads((out / "results.json").read_text())


def predicted(pixels, photos, out):
    model = Hungry(pixels)
    failures = predict(Predictor(model, config(), device="cpu", batch=4), [str(photos)], out)
    return [str(failure) for failure in failures], model.batches


def test_images_that_do_not_fit_together_go_alone(photos, tmp_path):
    assert predicted(3 * 120 * 120, photos, tmp_path / "expected") == ([], [3, 1])
    assert predicted(3 * 120 * 120 - 1, photos, tmp_path / "out") == ([], [1, 1, 1, 1])
    assert results(tmp_path / "out") == results(tmp_path / "expected")


def test_an_image_that_does_not_fit_costs_no_other(photos, tmp_path):
    (failure,), _ = predicted(120 * 120, photos, tmp_path / "out")
    assert failure.startswith("2.png: not enough memory for another")
    assert "for 200x100 pixels; lower data.val_resize and data.max_size" in failure
    assert {one["image_id"] for one in results(tmp_path / "out")} == {0, 1, 3}


def test_a_video_ends_before_the_frame_that_does_not_fit(tmp_path):
    class Later(ColourFinder):
        def forward(self, images, padding):
            if (images.amax((1, 2, 3)) < 100).any():  # the dark frame
                torch.empty(FAR_TOO_MUCH)
            return super().forward(images, padding)

    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(12):
        colour = (10, 10, 10) if number == 5 else (200, 30, 30)
        Image.new("RGB", (64, 48), colour).save(folder / f"{number}.png")
    model = Later()
    (failure,) = predict_video(Predictor(model, config(), device="cpu", batch=2), folder, tmp_path / "out")
    assert str(failure).startswith("frames, 5.png: not enough memory for another")
    assert str(failure).endswith("only the frames before it are done")
    assert {one["image_id"] for one in results(tmp_path / "out")} == {1, 2, 3, 4, 5}
    assert VideoFile(tmp_path / "out" / "frames.mp4").length == 5


def test_a_video_of_which_no_frame_fits_says_so_at_once(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(30):
        Image.new("RGB", (64, 48)).save(folder / f"{number}.png")
    model = Hungry(0)
    with pytest.raises(DqdetError, match="not enough memory"):
        predict_video(Predictor(model, config(), device="cpu", batch=2), folder, tmp_path / "out")
    assert model.tried < 15


def test_a_command_says_it_in_one_line(run, monkeypatch, tmp_path):
    monkeypatch.setattr(dqdet, "load", lambda *_, **__: torch.empty(FAR_TOO_MUCH))
    status, _, err = run("predict", tmp_path, tmp_path, "--out", tmp_path / "out")
    assert status == 1
    assert err.startswith("error: not enough memory for another 4000000000000000 bytes; take smaller images or batches")
    assert err.count("\n") == 1
