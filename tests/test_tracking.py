"""Objects that a model of images finds in the frames of a video keep their numbers."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import dqdet
from dqdet.drawing.pictures import PALETTE
from dqdet.errors import DqdetError
from dqdet.predict.frames import VideoFile
from dqdet.predict.sources import predict
from dqdet.predict.tracking import Tracker
from dqdet.types import ImageDetections
from test_segmentation_results import predictor as of_masks
from test_tiles import painted, predictor
from test_video_prediction import encode

FRAMES = 12
HIDDEN = (6, 7)  # frames without the upper object

__all__ = ["predictor"]


def places(t: int) -> dict[str, tuple[int, int, int, int]]:
    """Two objects of a class that pass each other; the upper one vanishes for two frames."""
    return {"lower": (38 - 3 * t, 36, 56 - 3 * t, 56)} | (
        {} if t in HIDDEN else {"upper": (2 + 3 * t, 6, 22 + 3 * t, 26)}
    )


@pytest.fixture
def trackers() -> None:
    pytest.importorskip("trackers", reason="pip install 'dqdet[track]'", exc_type=ImportError)


@pytest.fixture
def clip(tmp_path):
    frames = [painted(64, 64, *places(t).values()) for t in range(FRAMES)]
    return encode(tmp_path / "clip.mp4", frames)


@pytest.mark.usefixtures("trackers")
def test_objects_keep_their_numbers(predictor, clip, tmp_path):
    said = []
    assert predict(predictor, [clip], tmp_path / "out", say=said.append, tracking=True) == []
    assert f"{FRAMES} frames with 2 tracks above 0.5" in said[0]
    results = COCO(str(tmp_path / "out" / "images.json")).loadRes(str(tmp_path / "out" / "results.json"))
    numbers: dict[str, list[int | None]] = {"upper": [], "lower": []}
    for t in range(FRAMES):
        for name, box in places(t).items():
            expected = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            (entry,) = (
                one
                for one in results.imgToAnns[t + 1]
                if one["score"] > 0.5 and np.abs(np.subtract(one["bbox"], expected)).max() < 3
            )
            numbers[name].append(entry.get("track_id"))
    for of_object in numbers.values():
        assert of_object == [None, *[of_object[1]] * (len(of_object) - 1)]
    assert {of_object[1] for of_object in numbers.values()} == {1, 2}
    assert all("track_id" not in entry for entry in results.dataset["annotations"] if entry["score"] < 0.1)

    last = np.array([*VideoFile(tmp_path / "out" / "clip.mp4")][-1]).astype(int)
    scale = last.shape[1] / 64
    for name, of_object in numbers.items():
        left, _, _, bottom = (round(side * scale) for side in places(FRAMES - 1)[name])
        corner = last[bottom - 14 : bottom - 4, max(0, left - 2) : left + 3]
        assert np.abs(corner - PALETTE.by_idx(of_object[-1]).as_rgb()).max(-1).min() < 60


def found(*objects: tuple[float, int, float]) -> ImageDetections:
    """Score, label and left side of each."""
    return ImageDetections(
        torch.tensor([score for score, _, _ in objects]),
        torch.tensor([label for _, label, _ in objects], dtype=torch.int64),
        torch.tensor([[left, 10, left + 30, 40] for _, _, left in objects]).reshape(-1, 4).float(),
    )


def numbers_of(tracker: Tracker, *objects: tuple[float, int, float]) -> list[int]:
    followed = tracker.followed(found(*objects))
    assert followed.scores.tolist() == found(*objects).scores.tolist()
    return followed.track_ids.tolist()


@pytest.mark.usefixtures("trackers")
def test_a_low_score_goes_on_but_begins_nothing():
    tracker = Tracker(Fraction(10), 0.5)
    assert numbers_of(tracker, (0.9, 0, 10), (0.4, 0, 100)) == [0, 0]
    assert numbers_of(tracker, (0.9, 0, 12), (0.4, 0, 102)) == [1, 0]
    assert numbers_of(tracker, (0.4, 0, 104), (0.3, 0, 14)) == [0, 1]
    assert numbers_of(tracker, (0.05, 0, 16)) == [0]
    assert tracker.count == 1


@pytest.mark.usefixtures("trackers")
def test_a_track_has_one_class_and_its_threshold():
    tracker = Tracker(Fraction(10), [0.8, 0.2])
    for t in range(2):
        last = numbers_of(tracker, (0.7, 0, 10 + t), (0.6, 1, 10 + t))
    assert last == [0, 1]
    assert numbers_of(tracker, (0.9, 0, 12)) == [0]


@pytest.mark.usefixtures("trackers")
def test_a_track_ends_after_a_second_without_its_object():
    tracker = Tracker(Fraction(10), 0.5)
    assert [numbers_of(tracker, (0.9, 0, 10)) for _ in range(3)][-1] == [1]
    for _ in range(8):
        assert numbers_of(tracker) == []
    assert numbers_of(tracker, (0.9, 0, 10)) == [1]
    for _ in range(14):
        numbers_of(tracker)
    assert [numbers_of(tracker, (0.9, 0, 10)) for _ in range(3)][-1] == [2]


@pytest.mark.usefixtures("trackers")
def test_masks_are_tracked_with_their_boxes(tmp_path):
    frames = [Image.new("RGB", (96, 64), "black") for _ in range(4)]
    for t, image in enumerate(frames):
        image.paste("red", (10 + 4 * t, 10, 40 + 4 * t, 50))
    model = of_masks("instance")
    assert predict(model, [encode(tmp_path / "a.mp4", frames)], tmp_path / "out", 0.3, tracking=True) == []
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    red = [entry for entry in results if entry["category_id"] == model.category_ids[0] and entry["score"] > 0.3]
    assert [entry.get("track_id") for entry in red] == [None, 1, 1, 1]
    assert all("segmentation" in entry for entry in red)


def test_without_the_package_nothing_is_loaded(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackers", None)
    monkeypatch.setattr(dqdet, "load", lambda *given, **options: pytest.fail("was loaded"))
    status, _, err = run("predict", "RUN", "a.mp4", "--out", tmp_path / "out", "--track")
    assert status == 1
    assert err.startswith("error: tracking needs the trackers package: pip install 'dqdet[track]' (")
    assert err.count("\n") == 1


def test_images_and_other_tasks_are_not_tracked(predictor, clip, tmp_path):
    painted(64, 64).save(tmp_path / "a.png")
    with pytest.raises(DqdetError, match=r"a\.png: is an image, which has no tracks; give videos alone$"):
        predict(predictor, [clip, tmp_path / "a.png"], tmp_path / "out", tracking=True)
    with pytest.raises(DqdetError, match=r"^tracking is for boxes and instance masks, not for data\.task=panoptic"):
        predict(of_masks("panoptic"), [clip], tmp_path / "out", tracking=True)
    predictor.config = predictor.config.model_copy(
        update={"data": predictor.config.data.model_copy(update={"task": "video"})}
    )
    with pytest.raises(DqdetError, match=r"^a model of data\.task=video tracks by itself"):
        predict(predictor, [clip], tmp_path / "out", tracking=True)
    assert not (tmp_path / "out").exists()
