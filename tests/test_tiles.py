"""Large pictures in tiles: every pixel is looked at, and an object is one, wherever the borders of tiles are."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_masks
from scipy import ndimage
from torch import Tensor, nn

import dqdet
from dqdet.config import Config, DataConfig, DetrConfig, LossConfig
from dqdet.errors import DqdetError
from dqdet.formats import rle
from dqdet.inference.tiles import Tile, joined, tiles_of
from dqdet.predict.predictor import Predictor
from dqdet.predict.sources import predict
from dqdet.types import ImageDetections, Predictions, RleMasks
from test_segmentation_results import predictor as of_masks

SIDE = 64
SMALLEST = 6  # pixels of the network's input that an object needs to be seen
FOUND = 40  # queries


class RedFinder(nn.Module):
    """Boxes of the red parts of a picture that hang together, the larger the better; small ones are not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[int] = []

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        self.batches.append(len(images))
        logits = torch.full((1, len(images), FOUND, 1), -9.0)
        boxes = torch.full((1, len(images), FOUND, 4), 0.5)
        for b, image in enumerate(images):
            parts, _ = ndimage.label((image[0] > 128).numpy())
            seen = [place for place in ndimage.find_objects(parts) if min(_extent(place)) >= SMALLEST]
            for query, (rows, columns) in enumerate(seen):
                ends = torch.tensor([columns.start, rows.start, columns.stop, rows.stop])
                low, high = ends.view(2, 2) / torch.tensor([image.shape[2], image.shape[1]])
                boxes[0, b, query] = torch.cat([(low + high) / 2, high - low])
                logits[0, b, query, 0] = 1 + (high - low).prod()
        return Predictions(logits, boxes, groups={"static": FOUND})


def _extent(place: tuple[slice, slice]) -> list[int]:
    return [side.stop - side.start for side in place]


@pytest.fixture
def predictor() -> Predictor:
    """Its network sees 64 pixels along the longer side of any picture."""
    config = Config(
        preset="test",
        model=DetrConfig(),
        loss=LossConfig(classification="focal"),
        data=DataConfig(val_resize=SIDE, max_size=SIDE),
        classes=["red"],
    )
    return Predictor(RedFinder(), config, device="cpu", batch=3)


def painted(width: int, height: int, *boxes: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", (width, height))
    for box in boxes:
        image.paste("red", box)
    return image


def boxes_of(found) -> list[list[int]]:
    return sorted(found.xyxy.round().astype(int).tolist())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(10, 120), st.floats(0, 0.9))
def test_tiles_cover_every_pixel_and_overlap(height, width, side, overlap):
    tiles = tiles_of((height, width), side, overlap)
    seen = np.zeros((height, width), dtype=bool)
    for left, top, right, bottom in tiles:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        assert (right - left, bottom - top) == (min(side, width), min(side, height))
        seen[top:bottom, left:right] = True
    assert seen.all()
    assert len(set(tiles)) == len(tiles)
    columns = sorted({(tile.left, tile.right) for tile in tiles})
    for (_, end), (start, _) in itertools.pairwise(columns):
        assert end - start >= min(overlap * side, side - 1) - 1e-6


@st.composite
def scenes(draw) -> tuple[tuple[int, int], int, list[tuple[int, int, int, int]]]:
    """A picture's height and width, the side of its tiles, and rectangles that do not touch, of any size."""
    height, width = draw(st.integers(40, 160)), draw(st.integers(40, 160))
    boxes = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
        box = (x, y, x + draw(st.integers(1, width - x)), y + draw(st.integers(1, height - y)))
        if all(box[0] > b[2] or b[0] > box[2] or box[1] > b[3] or b[1] > box[3] for b in boxes):
            boxes.append(box)
    return (height, width), draw(st.integers(32, 80)), boxes


def seen_in(tile: Tile, boxes) -> ImageDetections:
    """What a perfect model finds in a tile."""
    found = []
    for number, (left, top, right, bottom) in enumerate(boxes):
        part = [max(left, tile.left), max(top, tile.top), min(right, tile.right), min(bottom, tile.bottom)]
        if part[0] < part[2] and part[1] < part[3]:
            found.append((number, [part[0] - tile.left, part[1] - tile.top, part[2] - tile.left, part[3] - tile.top]))
    shapes = torch.tensor([box for _, box in found], dtype=torch.float).reshape(-1, 4)
    masks = torch.zeros(len(found), tile.bottom - tile.top, tile.right - tile.left, dtype=torch.bool)
    for mask, (left, top, right, bottom) in zip(masks, shapes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = True
    scores = torch.tensor([0.9 - 0.4 * number / len(boxes) for number, _ in found])
    return ImageDetections(scores, torch.zeros(len(found), dtype=torch.int64), shapes, rle.compressed(masks))


@settings(max_examples=60, deadline=None)
@given(scenes(), st.floats(0.1, 0.5))
def test_each_object_is_one_wherever_borders_cut_it(scene, overlap):
    size, side, boxes = scene
    tiles = tiles_of(size, side, overlap)
    whole = joined([seen_in(tile, boxes) for tile in tiles], tiles, size)
    assert sorted(map(tuple, whole.boxes.int().tolist())) == sorted(boxes)
    assert whole.scores.tolist() == sorted(whole.scores.tolist(), reverse=True)
    for box, mask in zip(whole.boxes.int().tolist(), whole.masks, strict=True):
        expected = np.zeros(size, dtype=bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        np.testing.assert_array_equal(mask, expected)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**31))
def test_a_moved_mask_is_that_of_its_pixels(height, width, left, top, seed):
    part = np.random.default_rng(seed).random((height, width)) < 0.6
    size = (height + top + seed % 2, width + left + seed % 3)
    whole = np.zeros(size, dtype=np.uint8, order="F")
    whole[top : top + height, left : left + width] = part
    (mask,) = rle.encode(torch.from_numpy(part)[None])
    assert rle.moved(mask, (left, top), size)["counts"] == coco_masks.encode(whole)["counts"].decode()


def test_neighbours_of_one_class_stay_two():
    """Their boxes overlap by half, as those of people in a row do, in the picture and where two tiles see them."""
    boxes, tiles, size = [(40, 10, 60, 50), (50, 12, 70, 52)], [Tile(0, 0, 64, 64), Tile(36, 0, 100, 64)], (64, 100)
    found = joined([seen_in(tile, boxes) for tile in tiles], tiles, size)
    assert sorted(map(tuple, found.boxes.int().tolist())) == boxes


def test_what_one_tile_finds_twice_stays_twice():
    tile, size = Tile(0, 0, 64, 64), (64, 100)
    twice = ImageDetections(
        torch.tensor([0.9, 0.2]), torch.tensor([0, 0]), torch.tensor([[40.0, 8, 60, 28], [41, 8, 60, 28]])
    )
    other = ImageDetections(torch.tensor([0.8]), torch.tensor([0]), torch.tensor([[4.0, 8, 24, 28]]))
    found = joined([twice, other], [tile, Tile(36, 0, 100, 64)], size)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.2]))
    assert found.boxes.tolist() == twice.boxes.tolist()


def test_a_poor_guess_does_not_move_an_object():
    """A box that is cut keeps its place when the neighbour is hardly sure of the rest."""
    cut = ImageDetections(torch.tensor([0.9]), torch.tensor([0]), torch.tensor([[40.0, 8, 64, 28]]))
    guess = ImageDetections(torch.tensor([0.1]), torch.tensor([0]), torch.tensor([[4.0, 6, 64, 30]]))
    found = joined([cut, guess], [Tile(0, 0, 64, 64), Tile(36, 0, 100, 64)], (64, 100))
    torch.testing.assert_close(found.scores, torch.tensor([0.9]))
    assert found.boxes.tolist() == [[40, 8, 64, 28]]


def test_other_classes_are_other_objects():
    tiles = [Tile(0, 0, 64, 64), Tile(36, 0, 100, 64)]
    found = [seen_in(tile, [(40, 10, 60, 50)]) for tile in tiles]
    found[1].labels += 1
    assert joined(found, tiles, (64, 100)).labels.tolist() == [0, 1]


def test_boxes_that_are_off_by_pixels_are_joined():
    """Sides are off by up to 2 % of a tile, and the narrowest parts are not found: at most 1 % are left in two."""
    generator = torch.Generator().manual_seed(0)
    boxes = [(x, y, x + 30, y + 24) for x in range(5, 600, 45) for y in range(5, 600, 41)]
    size, tiles = (640, 640), tiles_of((640, 640), 128, 0.25)
    found = []
    for tile in tiles:
        exact = seen_in(tile, boxes)
        wide = (exact.boxes[:, 2:] - exact.boxes[:, :2]).amin(1) >= 3
        noise = 1.28 * torch.randn(exact.boxes.shape, generator=generator).clamp(-2, 2)
        found.append(ImageDetections(exact.scores[wide], exact.labels[wide], (exact.boxes + noise)[wide]))
    assert sum(len(one.scores) for one in found) > 1.5 * len(boxes)
    assert len(boxes) <= len(joined(found, tiles, size).scores) <= 1.01 * len(boxes)


def test_a_picture_no_larger_than_a_tile_gives_the_same(predictor):
    images = [painted(64, 40, (5, 5, 30, 30)), painted(33, 64, (1, 1, 20, 20)), painted(64, 64)]
    for expected, found in zip(predictor.outcomes(images), predictor.tiled(64).outcomes(images), strict=True):
        assert torch.equal(found.scores, expected.scores)
        assert torch.equal(found.boxes, expected.boxes)
    assert predictor.model.batches == [3, 3]


def test_objects_too_small_for_the_whole_picture_are_found_in_tiles(predictor):
    boxes = [(x, y, x + 12, y + 10) for x in range(10, 600, 60) for y in range(10, 450, 55)]
    picture = painted(640, 480, *boxes)
    assert len(predictor(picture)) == 0
    assert boxes_of(predictor.tiled(SIDE)(picture)) == sorted(map(list, boxes))
    assert max(predictor.model.batches) == 3


def test_an_object_larger_than_all_tiles_is_one(predictor):
    picture = painted(300, 200, (20, 30, 280, 150), (5, 160, 25, 195))
    assert boxes_of(predictor.tiled(SIDE, 0.3)(picture)) == [[5, 160, 25, 195], [20, 30, 280, 150]]


def test_instances_have_masks_of_the_whole_picture():
    image = Image.new("RGB", (300, 200), "black")
    image.paste("red", (30, 40, 190, 160))
    whole = of_masks("instance").tiled(120, 0.3)
    (found,) = whole.outcomes([image])
    assert isinstance(found.masks, RleMasks)
    red = found.masks.decoded()[int(found.labels.tolist().index(0))]
    expected = np.zeros((200, 300), dtype=bool)
    expected[40:160, 30:190] = True
    assert red.shape == (200, 300)
    assert (red & expected).sum() / (red | expected).sum() > 0.9


@pytest.mark.parametrize("task", ["panoptic", "video"])
def test_maps_and_tracks_are_not_made_of_tiles(predictor, task):
    predictor.config = predictor.config.model_copy(update={"data": DataConfig(task=task)})
    with pytest.raises(DqdetError, match=rf"^tiles are for boxes and instance masks, not for data\.task={task};"):
        predictor.tiled(64)


@pytest.mark.parametrize(("side", "overlap"), [(0, 0.2), (64, -0.1), (64, 0.95)])
def test_impossible_tiles_are_refused(predictor, side, overlap):
    with pytest.raises(DqdetError, match=r"give a side of at least 1, and an overlap from 0 to 0\.9"):
        predictor.tiled(side, overlap)


def test_tiles_have_no_predictions_of_the_whole(predictor):
    with pytest.raises(DqdetError, match=r"ask the predictor without tiles"):
        predictor.tiled(64).coefficients([painted(64, 64)])


def test_result_files_are_those_of_whole_pictures(predictor, tmp_path):
    picture = painted(200, 100, (90, 20, 130, 60))
    picture.save(tmp_path / "7.png")
    assert predict(predictor.tiled(SIDE), [tmp_path / "7.png"], tmp_path / "out") == []
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    best = max(results, key=lambda entry: entry["score"])
    assert set(best) == {"image_id", "category_id", "bbox", "score"}
    assert best["image_id"] == 7
    assert best["bbox"] == pytest.approx([90, 20, 40, 40], abs=0.1)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["7.png", "images.json", "results.json"]


def test_the_command_takes_tiles(run, tmp_path, predictor, monkeypatch):
    monkeypatch.setattr(dqdet, "load", lambda source, **options: predictor)
    painted(200, 100, (90, 20, 101, 31)).save(tmp_path / "a.png")
    given = ["predict", "RUN", tmp_path / "a.png", "--out", tmp_path / "out"]
    status, text, err = run(*given, "--tiles", "64", "--overlap", "0.3")
    assert (status, err) == (0, "")
    assert "1 image with 1 object above 0.5" in text
    status, text, _ = run(*given)
    assert "1 image with 0 objects above 0.5" in text
    status, _, err = run(*given, "--overlap", "0.3")
    assert status == 1
    assert err == "error: --overlap 0.3 is that of tiles; give --tiles, too, such as --tiles 640\n"
