"""Pictures of one shape go through a model together, and nobody can tell from the results."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dqdet.models import create_model
from dqdet.predict.batches import in_batches
from dqdet.predict.images import Picture, predict_pictures
from dqdet.predict.predictor import Predictor
from tiny import tiny_family


@given(st.lists(st.integers(1, 4), max_size=40), st.integers(1, 8), st.integers(0, 8))
def test_every_image_is_run_once_with_its_like_and_given_in_its_turn_with_few_at_a_time(shapes, size, more):
    depth, taken, given_back = size + more, 0, 0
    batches = []

    def items():
        nonlocal taken
        for number in range(len(shapes)):
            taken += 1
            assert taken - given_back <= depth
            yield number

    def run(batch):
        batches.append(batch)
        return [f"result of {number}" for number in batch]

    for number, result in in_batches(items(), run, shapes.__getitem__, size, depth):
        assert number == given_back
        assert result == f"result of {number}"
        given_back += 1
    assert given_back == len(shapes)
    assert sorted(number for batch in batches for number in batch) == [*range(len(shapes))]
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({shapes[number] for number in batch}) == 1


@given(st.integers(1, 8), st.integers(1, 40))
def test_images_of_one_shape_fill_batches_in_their_order(size, count):
    batches = []

    def run(batch):
        batches.append(batch)
        return batch

    assert [number for number, _ in in_batches(range(count), run, lambda number: 1, size, size)] == [*range(count)]
    assert batches == [[*range(start, min(start + size, count))] for start in range(0, count, size)]


def test_landscapes_and_portraits_in_turns_go_through_the_model_in_whole_batches():
    batches = []

    def run(batch):
        batches.append(batch)
        return batch

    assert len([*in_batches(range(16), run, lambda number: number % 2, 4, 8)]) == 16
    assert [len(batch) for batch in batches] == [4, 4, 4, 4]


@pytest.fixture
def pictures(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    shapes = [(60, 90), (90, 60), (60, 90), (90, 60), (60, 90), (60, 60), (90, 60), (60, 90), (30, 90)]
    for number, shape in enumerate(shapes):
        pixels = random.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number}.png")
    files = sorted((tmp_path / "in").iterdir())
    files.insert(3, tmp_path / "in" / "missing.png")
    return [Picture(file, file.name) for file in files]


@pytest.mark.parametrize("preset", ["deformable_detr_r50", "mask2former_r50_coco_panoptic"])
def test_results_files_are_those_of_one_picture_at_a_time(preset, pictures, tmp_path):
    size = {"data__val_resize": 120, "data__max_size": 180}
    config = tiny_family(preset, classes=["cat", "dog"], **size)
    if preset.startswith("mask2former"):
        config.stuff = ["dog"]
        config.model.hidden = 64
    torch.manual_seed(0)
    model = create_model(config)
    found, batches = [], []

    class Noting(Predictor):
        def outcomes_of(self, batch, threshold=None):
            batches.append(len(batch))
            return super().outcomes_of(batch, threshold)

    for batch in 1, 4:
        out = tmp_path / str(batch)
        (failure,) = predict_pictures(Noting(model, config, device="cpu", batch=batch), pictures, ["in"], out)
        assert "missing.png" in str(failure)
        found.append({file.name: json.loads(file.read_text()) for file in out.glob("*.json")})
    assert batches == [1] * 9 + [4, 3, 1, 1]
    ones, together = found
    assert ones["images.json"] == together["images.json"]
    assert len(ones["results.json"]) == len(together["results.json"]) > 9
    for one, other in zip(ones["results.json"], together["results.json"], strict=True):
        assert one.keys() == other.keys()
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        if "bbox" in one:
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)  # pixels
    assert ones.get("panoptic.json") == together.get("panoptic.json")
