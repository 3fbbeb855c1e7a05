"""The augmentation against official sizes, another implementation, and the pictures themselves."""

import colorsys
import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from transformers import DetrImageProcessorPil

from dqdet.config import DataConfig, resolve
from dqdet.data import transforms
from dqdet.data.transforms import (
    DropVanished,
    PadTo,
    PhotometricDistortion,
    RandomScale,
    RandomShorterSide,
    RandomSizeCrop,
    make_transform,
    resized,
)
from dqdet.types import pad_images
from small_families import build

# (height, width), shorter, longest -> (height, width), computed with the official implementation.
OFFICIAL_SIZES = [
    ((480, 640), 800, 1333, (800, 1066)),
    ((480, 640), 480, 1333, (480, 640)),
    ((480, 640), 128, 200, (128, 170)),
    ((640, 480), 800, 1333, (1066, 800)),
    ((427, 640), 800, 1333, (800, 1199)),
    ((427, 640), 600, None, (600, 899)),
    ((333, 500), 800, 1333, (800, 1201)),
    ((1200, 100), 800, 1333, (1332, 111)),
    ((1200, 100), 600, None, (7200, 600)),
    ((1200, 100), 128, 200, (204, 17)),
    ((100, 1200), 480, 1333, (111, 1332)),
    ((33, 97), 800, 1333, (453, 1331)),
    ((33, 97), 128, 200, (68, 199)),
    ((3000, 1999), 800, 1333, (1200, 800)),
    ((612, 612), 800, 1333, (800, 800)),
    ((1, 1), 128, 200, (128, 128)),
]

sides = st.integers(20, 90)


def sample_of(height: int, width: int, boxes: list[list[int]]) -> dict:
    """Black, with the boxes painted in different greens; the label is the number of the box."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    masks = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        pixels[y0:y1, x0:x1, 1] = 255 - 40 * i
        masks[i, y0:y1, x0:x1] = 1
    return {
        "image": tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)),
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), format="XYXY", canvas_size=(height, width)
        ),
        "labels": torch.arange(len(boxes)),
        "masks": tv_tensors.Mask(masks),
    }


@st.composite
def one_object(draw, least: int = 1) -> dict:
    height, width = draw(sides), draw(sides)
    x0, y0 = draw(st.integers(0, width - least)), draw(st.integers(0, height - least))
    x1, y1 = draw(st.integers(x0 + least, width)), draw(st.integers(y0 + least, height))
    return sample_of(height, width, [[x0, y0, x1, y1]])


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    return masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(("size", "shorter", "longest", "expected"), OFFICIAL_SIZES)
def test_official_sizes(size, shorter, longest, expected):
    assert resized(*size, shorter, longest) == expected


def test_extremely_long_image_keeps_a_pixel():
    assert resized(1, 5000, 800, 1333) == (1, 5000)


def test_evaluation_equals_transformers(shared):
    """A model sees the same as from the image processor that ships with the Hugging Face weights."""
    model = build("detr")
    folder = shared / "data/coco_real/images/val2017"
    transform = make_transform(DataConfig(), train=False)
    processor = DetrImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})
    compared = 0
    for file in sorted(folder.iterdir())[:8]:
        image = PIL.Image.open(file).convert("RGB")
        expected = processor(image, return_tensors="pt", do_pad=False)["pixel_values"][0]
        ours = transform(image)
        if ours.shape == expected.shape:  # it rounds some sizes otherwise
            (normalised,), _ = model.prepare(ours[None], torch.zeros(1, *ours.shape[1:], dtype=torch.bool))
            torch.testing.assert_close(normalised, torch.as_tensor(expected), atol=1e-5, rtol=0)
            compared += 1
    assert compared >= 4


@given(one_object(), st.integers(0, 999))
def test_masks_and_boxes_agree_in_flip_and_crop(sample, seed):
    torch.manual_seed(seed)
    transform = v2.Compose([v2.RandomHorizontalFlip(0.5), RandomSizeCrop((8, 8), (40, 40)), DropVanished()])
    result = transform(sample)
    assert torch.equal(boxes_of(result["masks"]), result["boxes"])
    height, width = result["masks"].shape[-2:]
    assert result["image"].shape == (3, height, width)
    assert 8 <= height <= 40
    assert 8 <= width <= 40


@given(one_object(), st.integers(20, 150), st.integers(30, 200))
def test_masks_and_boxes_agree_in_resize(sample, shorter, longest):
    result = RandomShorterSide([shorter], longest)(sample)
    if result["masks"].any():  # a thin object may fall between the pixels of a smaller mask
        assert (boxes_of(result["masks"]) - result["boxes"]).abs().max() <= 1
    assert result["image"].shape[1:] == result["masks"].shape[1:]


@settings(max_examples=60)
@given(one_object(least=8), st.integers(0, 9999))
def test_boxes_follow_the_picture_through_the_whole_augmentation(sample, seed):
    torch.manual_seed(seed)
    result = make_transform(DataConfig(resize=[160, 200], max_size=400), train=True)(sample)
    image, boxes = result["image"], result["boxes"]
    assert type(image) is type(boxes) is torch.Tensor
    green = image[1] / 255  # [H, W] 0..1
    if len(boxes) == 0:
        assert green.max() <= 0.5  # the blurred edge of what a crop has left out
    elif (green > 0.5).any():
        outwards = (boxes_of((green > 0.5)[None]) - boxes) * torch.tensor([-1, -1, 1, 1])
        assert outwards.max() <= 2.5  # boxes after a crop are whole pixels, and are then enlarged
        if (boxes[:, 2:] - boxes[:, :2]).min() >= 4:  # the ends of a sliver are darker
            assert outwards.min() >= -2.5
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= torch.tensor([image.shape[2], image.shape[1]]) + 1e-3).all()


def test_labels_and_masks_stay_with_their_boxes_when_others_vanish():
    sample = sample_of(60, 60, [[0, 0, 10, 10], [30, 30, 45, 50], [50, 0, 60, 10], [25, 25, 28, 29]])
    cropped = v2.functional.crop
    crop = {name: value if name == "labels" else cropped(value, 20, 20, 40, 40) for name, value in sample.items()}
    result = DropVanished()(crop)
    assert result["labels"].tolist() == [1, 3]
    assert result["boxes"].tolist() == [[10, 10, 25, 30], [5, 5, 8, 9]]
    assert torch.equal(boxes_of(result["masks"]), result["boxes"])
    assert result["image"].shape == (3, 40, 40)


def drawn(transform, sample: dict, count: int) -> list[dict]:
    results = []
    for seed in range(count):
        torch.manual_seed(seed)
        results.append(transform(sample))
    return results


def test_published_augmentation(monkeypatch):
    """Flip and crop with probability 1/2, crops of 384 to 600 pixels, sizes from 480 to 800."""
    crops = []
    make_params = RandomSizeCrop.make_params

    def recorded(self, flat_inputs):
        crops.append((v2.query_size(flat_inputs), make_params(self, flat_inputs)))
        return crops[-1][1]

    monkeypatch.setattr(RandomSizeCrop, "make_params", recorded)
    sample = sample_of(48, 64, [[0, 0, 1, 48], [63, 0, 64, 48]])
    results, cropped = [], []
    for seed in range(100):
        torch.manual_seed(seed)
        before = len(crops)
        results.append(make_transform(DataConfig(), train=True)(sample))
        cropped.append(len(crops) > before)
    shapes = [tuple(result["image"].shape[1:]) for result in results]
    assert {min(shape) for shape in shapes} == set(range(480, 801, 32))
    assert max(map(max, shapes)) <= 1334
    assert 35 <= sum(cropped) <= 65
    whole = [result for result, crop in zip(results, cropped, strict=True) if not crop]
    flipped = [result for result in whole if result["boxes"][0, 0] > 1]
    assert 0.3 <= len(flipped) / len(whole) <= 0.7

    assert {size for size, _ in crops} == {(400, 533), (500, 666), (600, 800)}
    sides = [params[side] for _, params in crops for side in ("height", "width")]
    assert 384 <= min(sides) < 395
    assert 580 < max(sides) <= 600
    for (height, width), params in crops:
        assert 0 <= params["top"] <= height - params["height"]
        assert 0 <= params["left"] <= width - params["width"]


def test_crops_reach_every_size_and_place():
    sample, seen = {"image": tv_tensors.Image(torch.arange(30).view(1, 5, 6))}, set()
    for result in drawn(RandomSizeCrop((2, 3), (4, 9)), sample, 2500):
        image = result["image"][0]
        seen.add((divmod(int(image[0, 0]), 6), tuple(image.shape)))
    sizes = [(height, width) for height in (2, 3, 4) for width in (3, 4, 5, 6)]
    assert seen == {((y, x), (h, w)) for h, w in sizes for y in range(5 - h + 1) for x in range(6 - w + 1)}


@pytest.mark.parametrize("train", [True, False])
def test_colours_are_normalised_as_those_of_imagenet(train):
    transform = make_transform(DataConfig(resize=[32], val_resize=32, crop=False), train)
    image = transform(sample_of(32, 32, []) | {"image": PIL.Image.new("RGB", (32, 32), (0, 51, 255))})["image"]
    expected = [(0.0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1.0 - 0.406) / 0.225]
    prepared, _ = build("detr").prepare(image[None], torch.zeros(1, 32, 32, dtype=torch.bool))
    torch.testing.assert_close(prepared[0], torch.tensor(expected)[:, None, None].expand(3, 32, 32))


def test_the_crop_scales_with_the_size_of_the_images():
    results = drawn(make_transform(DataConfig(resize=[160]), train=True), sample_of(160, 160, [[0, 0, 160, 160]]), 60)
    # An uncropped square stays square; a crop has sides of 384 / 5 to 600 / 5 pixels, and is then enlarged to 160.
    ratios = [max(result["image"].shape[1:]) / 160 for result in results]
    assert 1 < max(ratios) <= 120 / 77 + 0.02


def test_without_flip_and_crop_nothing_is_random():
    transform = make_transform(DataConfig(resize=[64], flip=False, crop=False), train=True)
    first, *others = drawn(transform, sample_of(32, 48, [[3, 4, 10, 20]]), 8)
    assert first["boxes"].tolist() == [[6, 8, 20, 40]]
    assert all(torch.equal(first["image"], other["image"]) for other in others)


def masked(sample: dict, masks: torch.Tensor) -> dict:
    return sample | {"masks": tv_tensors.Mask(masks.to(torch.uint8))}


def between_pixels(length: int, size: int) -> np.ndarray:
    """Which of ``size`` pixels have their middle on the border of two of the ``length`` they are resized from."""
    middles = (2 * np.arange(size) + 1) * length
    return middles % (2 * size) == 0


@settings(max_examples=50)
@given(st.integers(0, 9999), sides, sides, st.integers(5, 200))
def test_masks_are_resized_as_pillow_does(seed, height, width, shorter):
    pixels = np.random.default_rng(seed).integers(0, 2, (height, width), dtype=np.uint8)
    sample = masked(sample_of(height, width, [[0, 0, width, height]]), torch.tensor(pixels[None]))
    result = RandomShorterSide([shorter])(sample)["masks"]
    assert type(result) is tv_tensors.Mask
    h, w = result.shape[1:]
    expected = np.asarray(PIL.Image.fromarray(pixels).resize((w, h), PIL.Image.Resampling.NEAREST))
    sure = np.ix_(~between_pixels(height, h), ~between_pixels(width, w))
    assert np.array_equal(result[0][sure], expected[sure])


def test_objects_without_a_pixel_of_their_mask_vanish():
    masks = torch.zeros(3, 20, 30)
    masks[0, 4:9, 5:25] = 1
    masks[2, 19, 29] = 1
    sample = masked(sample_of(20, 30, [[5, 4, 25, 9], [10, 10, 20, 20], [28, 18, 30, 20]]), masks)
    result = DropVanished()(sample)
    assert result["labels"].tolist() == [0, 2]
    assert result["boxes"].tolist() == [[5, 4, 25, 9], [29, 19, 30, 20]]
    assert torch.equal(result["masks"], masks[[0, 2]])


def test_boxes_enclose_what_a_crop_leaves_of_the_masks():
    triangle = torch.ones(1, 40, 40).tril()  # its upper right is empty
    sample = masked(sample_of(40, 40, [[0, 0, 40, 40]]), triangle)
    crop = {
        name: value if name == "labels" else v2.functional.crop(value, 0, 10, 25, 30) for name, value in sample.items()
    }
    assert DropVanished()(crop)["boxes"].tolist() == [[0, 10, 15, 25]]


@given(one_object(), st.integers(0, 9999))
def test_jitter_scales_to_a_part_of_the_window_and_keeps_the_shape(sample, seed):
    torch.manual_seed(seed)
    height, width = sample["image"].shape[1:]
    result = RandomScale((50, 100), (0.2, 1.5))(sample)
    h, w = result["masks"].shape[1:]
    share = max(h / 50, w / 100)
    assert 0.2 - 0.5 / 50 <= share <= 1.5 + 0.5 / 50
    assert abs(h / height - w / width) * min(height, width) <= 1.01  # both sides are rounded
    assert result["image"].shape == (3, h, w)


def test_jitter_covers_its_whole_range():
    transform = RandomScale((100, 100), (0.1, 2.0))
    sides = [max(result["image"].shape[1:]) for result in drawn(transform, sample_of(30, 60, [[0, 0, 9, 9]]), 300)]
    assert 10 <= min(sides) <= 15
    assert 195 <= max(sides) <= 200
    assert np.quantile(sides, [0.25, 0.5, 0.75]) == pytest.approx([57, 105, 152], abs=15)  # uniform


RECIPES = {
    "jitter": DataConfig(jitter=(0.1, 2.0), window=(64, 64)),
    "window": DataConfig(resize=[40, 60, 90], crop=False, window=(32, 64), colour=True),
    "crop": DataConfig(resize=[40, 60]),
}


@pytest.mark.parametrize("recipe", ["jitter", "window"])
@settings(max_examples=40)
@given(one_object(least=8), st.integers(0, 9999))
def test_recipes_of_segmentation(recipe, sample, seed):
    """With the mask where the picture has the object and the box around the mask; jittered ones fill the window."""
    config = RECIPES[recipe].model_copy(update={"colour": False})
    torch.manual_seed(seed)
    result = make_transform(config, train=True)(sample)
    image, masks = result["image"], result["masks"]
    height, width = image.shape[1:]
    assert height <= config.window[0]
    assert width <= config.window[1]
    if recipe == "jitter":
        assert (height, width) == config.window
    if recipe == "window":
        assert height == 32  # the least shorter side is larger
    assert masks.shape[1:] == (height, width)
    assert torch.equal(boxes_of(masks), result["boxes"])
    assert len(result["labels"]) == len(masks) == len(result["boxes"])
    if len(masks):
        green = image[1] > 153  # [H, W]; the padding is 128
        edge = v2.functional.gaussian_blur(masks.float(), 3)[0]
        assert torch.equal(green[(edge == 0) | (edge == 1)], masks[0].bool()[(edge == 0) | (edge == 1)])


@pytest.mark.parametrize("recipe", RECIPES)
def test_equal_seeds_give_equal_items(recipe):
    sample = sample_of(70, 90, [[10, 20, 60, 50], [30, 5, 80, 60]])
    transform = make_transform(RECIPES[recipe], train=True)
    first, second = drawn(transform, sample, 12), drawn(transform, sample, 12)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert len({result["image"].shape for result in first}) > 1 or recipe == "jitter"
    assert len({float(result["image"].float().mean()) for result in first}) > 6


@pytest.mark.parametrize("recipe", RECIPES)
def test_frames_of_a_clip_are_transformed_as_single_images(recipe):
    config = RECIPES[recipe].model_copy(update={"colour": False})  # which is each frame's own
    transform = make_transform(config, train=True)
    frames = torch.randint(256, (3, 3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    places = [[10, 20, 60, 50], [40, 5, 80, 60], [0, 0, 12, 9]]  # of the only object, in each frame
    clip = sample_of(70, 90, places) | {"image": tv_tensors.Video(frames)}  # its labels number the frames
    kept = 0
    for seed in range(12):
        torch.manual_seed(seed)
        result = transform(clip)
        for t in range(3):
            torch.manual_seed(seed)
            single = transform(sample_of(70, 90, [places[t]]) | {"image": tv_tensors.Image(frames[t])})
            torch.testing.assert_close(result["image"][t], single["image"], atol=1e-6, rtol=0)
            assert torch.equal(result["masks"][result["labels"] == t], single["masks"])
            assert torch.equal(result["boxes"][result["labels"] == t], single["boxes"])
            kept += len(single["labels"])
    assert 0 < kept < 36


def test_distortion_changes_colours_but_not_which_is_which():
    sample = sample_of(8, 8, [[0, 0, 8, 8]])  # green all over
    distort = PhotometricDistortion(hue=0.05, permute=False)
    colours = {tuple(result["image"][:, 3, 3].tolist()) for result in drawn(distort, sample, 60)}
    assert len(colours) > 20
    assert all(green > max(red, blue) for red, green, blue in colours)


@pytest.mark.parametrize(("factor", "colour"), [(0.5, (70, 120, 200)), (1.4, (20, 90, 250)), (1.5, (200, 30, 90))])
def test_saturation_is_that_of_hsv(factor, colour):
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))
    expected = colorsys.hsv_to_rgb(hue, min(1, factor * saturation), value)
    found = transforms._saturated(torch.tensor(colour)[:, None, None] / 255, factor)
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def distorted(monkeypatch, colour: tuple[int, int, int], only: int, hue: float = 0.1, count: int = 400) -> list[tuple]:
    """A colour distorted by one of the published operations alone.

    ``only`` is its number among the decisions: brightness, contrast first, contrast, saturation, hue, permutation.
    """
    order = [0, 1, 3, 4, 2, 5]  # in which they come when the contrast is not first
    decisions = itertools.cycle([number == only for number in order])
    monkeypatch.setattr(transforms, "_half", lambda: next(decisions))
    transform = PhotometricDistortion(hue, permute=True)
    image = tv_tensors.Image(torch.tensor(colour, dtype=torch.uint8)[:, None, None].expand(3, 4, 4).clone())
    torch.manual_seed(0)
    return [tuple(transform(image)[:, 2, 1].tolist()) for _ in range(count)]


def test_brightness_is_added_up_to_32(monkeypatch):
    shifts = [np.array(found) - (100, 120, 140) for found in distorted(monkeypatch, (100, 120, 140), only=0)]
    assert all(np.ptp(shift) <= 1 for shift in shifts)  # rounded
    assert (np.min(shifts), np.max(shifts)) == (pytest.approx(-32, abs=1), pytest.approx(32, abs=1))


def test_contrast_multiplies_by_a_half_up_to_one_and_a_half(monkeypatch):
    factors = [np.array(found) / (40, 80, 160) for found in distorted(monkeypatch, (40, 80, 160), only=2)]
    assert all(np.ptp(factor) < 0.03 for factor in factors)
    assert (np.min(factors), np.max(factors)) == (pytest.approx(0.5, abs=0.02), pytest.approx(1.5, abs=0.02))


@pytest.mark.parametrize(("hue", "degrees"), [(0.1, 36), (0.05, 18)])
def test_hue_turns_as_far_as_published(monkeypatch, hue, degrees):
    """18 of OpenCV's 180 values are 36 degrees; 18 degrees in SSD."""
    found = distorted(monkeypatch, (50, 200, 50), only=4, hue=hue)  # at 120 degrees
    turns = [360 * colorsys.rgb_to_hsv(*(channel / 255 for channel in colour))[0] - 120 for colour in found]
    assert (min(turns), max(turns)) == (pytest.approx(-degrees, abs=1), pytest.approx(degrees, abs=1))
    assert all(max(colour) == 200 and min(colour) == pytest.approx(50, abs=1) for colour in found)


def test_channels_change_places(monkeypatch):
    found = distorted(monkeypatch, (10, 20, 30), only=5)
    assert set(found) == set(itertools.permutations((10, 20, 30)))
    assert set(distorted(monkeypatch, (10, 20, 30), only=-1)) == {(10, 20, 30)}


def test_each_operation_changes_one_half_of_the_images():
    image = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))  # grey: only two of them show
    torch.manual_seed(0)
    found = [PhotometricDistortion(0.1, permute=True)(image)[0, 0, 0].item() for _ in range(2000)]
    assert found.count(100) / 2000 == pytest.approx(0.25, abs=0.03)


def test_jitter_pads_with_grey_and_leaves_boxes_and_masks_where_they_are():
    sample = masked(sample_of(40, 60, [[10, 5, 30, 25]]), torch.zeros(1, 40, 60))
    sample["masks"][0, 5:25, 10:30] = 1
    result = PadTo((64, 50))(sample)
    image, masks = result["image"], result["masks"]
    assert image.shape[1:] == masks.shape[1:] == result["boxes"].canvas_size == (64, 60)  # never smaller
    assert torch.equal(image[:, :40], sample["image"])
    assert (image[:, 40:] == 128).all()
    assert torch.equal(masks[:, :40], sample["masks"])
    assert not masks[:, 40:].any()
    assert result["boxes"].tolist() == [[10, 5, 30, 25]]


def test_padding_of_jittered_images_is_image_to_the_model():
    """Published: a square of 1024 pixels, of which no part is marked as padding."""
    config = resolve("mask2former_r50_coco_instance").data
    transform = make_transform(config, train=True)
    sample = masked(sample_of(30, 60, [[0, 0, 30, 30]]), torch.ones(1, 30, 60))
    torch.manual_seed(0)
    image = next(result["image"] for result in (transform(sample) for _ in range(50)) if (result["masks"] == 0).any())
    assert image.shape == (3, 1024, 1024)
    assert image[:, -1, -1].tolist() == [128, 128, 128]
    assert not pad_images([image, image])[1].any()


def test_the_longer_side_has_its_own_limit_in_validation():
    sizes = {}
    for limit in (None, 0, 100):
        transform = make_transform(DataConfig(val_resize=20, max_size=50, val_max_size=limit), train=False)
        sizes[limit] = tuple(transform(PIL.Image.new("RGB", (300, 30))).shape[1:])
    assert sizes == {None: (5, 50), 0: (20, 200), 100: (10, 100)}
