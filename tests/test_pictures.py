"""Pictures must show what they are given, where it is."""

import io

import numpy as np
import pytest
import supervision as sv
import torch
from matplotlib.image import AxesImage
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from dqdet.config import DataConfig
from dqdet.data.transforms import make_transform
from dqdet.drawing.pictures import (
    PALETTE,
    annotated,
    coefficient_figure,
    ground_truth,
    segments,
    side_by_side,
)
from dqdet.metrics.panoptic import PanopticMap
from dqdet.types import Target

CLASSES = ["cat", "dog", "bird"]


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def found(*boxes: tuple, labels: list[int], confidence: list[float] | None = None) -> sv.Detections:
    return sv.Detections(
        np.array(boxes, dtype=np.float32).reshape(-1, 4),
        class_id=np.array(labels, dtype=int),
        confidence=None if confidence is None else np.array(confidence),
        data={"class_name": np.array(CLASSES)[np.array(labels, dtype=int)]},
    )


def places(picture: Image.Image, label: int) -> np.ndarray:
    """Where a class's colour is: ``[pixels, 2]``, x and y."""
    colour = np.array(PALETTE.by_idx(label).as_rgb())
    return np.argwhere((np.array(picture).astype(int) == colour).all(-1))[:, ::-1]


def test_what_a_network_gets_is_a_picture():
    image = noise(64, 48)
    transform = make_transform(DataConfig(val_resize=48), train=False)
    assert np.array_equal(to_pil_image(transform(image)), np.array(image))


def test_ground_truth_in_pixels():
    target = Target(
        labels=torch.tensor([2, 0]),
        boxes=torch.tensor([[0.5, 0.5, 1.0, 0.5], [0.25, 0.5, 0.5, 1.0]]),
        size=(800, 1200),
        original_size=(100, 200),
    )
    objects = ground_truth(target, (100, 200), CLASSES)
    np.testing.assert_allclose(objects.xyxy, [[0, 25, 200, 75], [0, 0, 100, 100]])
    assert objects.data["class_name"].tolist() == ["bird", "cat"]
    assert objects.confidence is None


def test_boxes_are_drawn_where_they_are():
    picture = annotated(noise(100, 50), found((20, 20, 60, 45), labels=[1]), longer_side=400)
    assert picture.size == (400, 200)
    drawn = places(picture, 1)
    inside = drawn[drawn[:, 1] >= 82]  # below the label
    assert abs(inside.min(0)[0] - 80) <= 2
    assert (abs(inside.max(0) - [240, 180]) <= 2).all()
    assert len(places(picture, 0)) == 0


@pytest.mark.parametrize(("width", "height", "size"), [(4000, 1, (400, 1)), (1, 4000, (1, 400))])
def test_an_image_of_any_shape_becomes_a_picture(width, height, size):
    assert annotated(noise(width, height), found((0, 0, width, height), labels=[1]), longer_side=400).size == size


def test_classes_have_their_own_colours():
    picture = annotated(noise(100, 100), found((5, 30, 40, 60), (50, 30, 90, 60), labels=[0, 2]), longer_side=400)
    assert places(picture, 0)[:, 0].max() < 180 < places(picture, 2)[:, 0].min()


def masked(*boxes: tuple, labels: list[int], size: tuple[int, int], **options) -> sv.Detections:
    objects = found(*boxes, labels=labels)
    objects.mask = np.zeros((len(boxes), size[1], size[0]), dtype=bool)
    for mask, (left, top, right, bottom) in zip(objects.mask, boxes, strict=True):
        mask[top:bottom, left:right] = True
    for name, value in options.items():
        setattr(objects, name, np.array(value))
    return objects


def changed(picture: Image.Image, image: Image.Image) -> np.ndarray:
    plain = image.resize(picture.size, Image.Resampling.BICUBIC)
    return abs(np.array(picture).astype(int) - np.array(plain)).max(-1) > 25


def test_masks_are_drawn_where_they_are():
    image = noise(100, 50)
    objects = masked((20, 15, 60, 45), labels=[1], size=image.size)
    objects.xyxy[:] = (0, 0, 100, 50)  # no matter
    picture = annotated(image, objects, longer_side=400)
    drawn = changed(picture, image)
    assert drawn[66:174, 86:234].mean() > 0.98  # filled
    drawn[56:184, 76:244] = False
    assert not drawn.any()


def test_objects_of_a_class_have_shades_of_its_colour():
    image = noise(200, 100)
    objects = masked((5, 30, 60, 90), (70, 30, 125, 90), (135, 30, 190, 90), labels=[1, 0, 1], size=image.size)
    picture = np.array(annotated(image, objects, 400)).astype(float)
    first, other, second = (picture[150:170, x : x + 60].mean((0, 1)) for x in (30, 160, 290))
    red = np.array(PALETTE.by_idx(1).as_rgb())
    assert abs(first - second).max() > 20
    assert abs(first - red).sum() < abs(other - red).sum()
    # The first of a class has the class's colour itself, whatever else is in the picture.
    alone = annotated(image, objects[2], 400)
    assert len(places(alone, 1)) > 100


def test_tracks_keep_their_colours():
    image = noise(200, 100)
    boxes = (5, 30, 60, 90), (70, 30, 125, 90)
    one = annotated(image, masked(*boxes, labels=[0, 0], size=image.size, tracker_id=[7, 4]), 400)
    assert places(one, 7)[:, 0].max() < 130 < places(one, 4)[:, 0].min()
    assert len(places(one, 0)) == 0


def test_names_stand_inside_of_segments():
    """A segment around the border of the picture has its name on itself, not in its middle."""
    ids = np.ones((100, 100), dtype=int)
    ids[20:85, 20:] = 2
    panoptic = PanopticMap(ids, [{"id": 2, "category_id": 9}, {"id": 1, "category_id": 4}])
    objects = segments(panoptic, [4, 9, 5], CLASSES)
    assert objects.data["class_name"].tolist() == ["dog", "cat"]
    np.testing.assert_array_equal(objects.mask, [ids == 2, ids == 1])
    plain = Image.new("RGB", (100, 100), "black")
    cat = places(annotated(plain, objects, 400), 0)
    assert len(cat) > 1000  # outline and label
    inside_dog = (cat > (90, 90)).all(1) & (cat < (390, 330)).all(1)
    assert not inside_dog.any()
    assert segments(PanopticMap(ids * 0, []), [4, 9, 5], CLASSES).mask.shape == (0, 100, 100)


def test_scores_of_segments_are_shown():
    ids = np.ones((40, 40), dtype=int)
    scored = segments(PanopticMap(ids, [{"id": 1, "category_id": 4, "score": 0.75}]), [4], ["cat"])
    assert scored.confidence.tolist() == [0.75]


def test_ground_truth_has_masks_in_pixels_of_the_picture():
    masks = torch.zeros(1, 20, 30, dtype=torch.bool)
    masks[0, 5:10, 6:18] = True
    target = Target(
        labels=torch.tensor([2]),
        boxes=torch.tensor([[0.4, 0.375, 0.4, 0.25]]),
        size=(20, 30),
        original_size=(20, 30),
        masks=masks,
    )
    objects = ground_truth(target, (40, 60), CLASSES)
    np.testing.assert_allclose(sv.mask_to_xyxy(objects.mask)[0] + [0, 0, 1, 1], objects.xyxy[0])


def test_masks_that_vanish_are_left_out():
    image = noise(100, 100)
    objects = masked((10, 10, 10, 10), (40, 40, 60, 60), labels=[0, 2], size=image.size, confidence=[0.9, 0.8])
    picture = annotated(image, objects, 200)
    assert len(places(picture, 0)) == 0
    assert len(places(picture, 2)) > 100
    nothing = annotated(image, objects[:1], 100)
    np.testing.assert_array_equal(nothing, image)


def test_scores_are_written():
    image, box = noise(100, 100), (20, 40, 60, 80)
    named = annotated(image, found(box, labels=[1]), 400)
    scored = annotated(image, found(box, labels=[1], confidence=[0.5]), 400)
    assert len(places(scored, 1)) > len(places(named, 1)) + 100  # a longer label


def test_nothing_found_leaves_the_image():
    image = noise(80, 40)
    np.testing.assert_array_equal(annotated(image, found(labels=[]), longer_side=80), image)


def test_the_image_itself_stays():
    image = noise(80, 40)
    before = np.array(image)
    annotated(image, found((5, 5, 30, 30), labels=[0]), longer_side=80)
    np.testing.assert_array_equal(before, image)


def test_grid_has_a_column_for_each_source():
    images = [noise(128, 128), noise(60, 120)]
    truths = [found((30, 30, 100, 100), labels=[0]), found((10, 40, 50, 100), labels=[0])]
    guesses = [found((30, 30, 100, 100), labels=[1], confidence=[0.9]), found(labels=[], confidence=[])]
    grid = side_by_side(images, {"ground truth": truths, "predictions": guesses}, width=240)
    middle, below = grid.width / 2, grid.height / 2 + 20
    truth, guess = places(grid, 0), places(grid, 1)
    assert truth[:, 0].max() < middle < guess[:, 0].min()
    assert truth[:, 1].max() > below > guess[:, 1].max()  # nothing was found in the second image


def test_grid_refuses_missing_detections():
    with pytest.raises(ValueError, match="shorter"):
        side_by_side([noise(9, 9)] * 2, {"predictions": [found(labels=[])]})


@pytest.mark.parametrize(("count", "queries", "ratio"), [(1, 5, 1), (3, 300, 4)])
def test_coefficients_are_shown_beside_their_images(count, queries, ratio):
    images = [noise(20 + i, 30) for i in range(count)]
    coefficients = torch.randn(count, queries, ratio).softmax(-1).requires_grad_()
    figure = coefficient_figure(images, coefficients)

    shown = [image for axes in figure.axes for image in axes.get_images() if isinstance(image, AxesImage)]
    pictures, maps = shown[:count], shown[count:]
    assert [picture.get_array().shape[:2] for picture in pictures] == [image.size[::-1] for image in images]
    mean = coefficients.mean(0)
    for i, weights in enumerate(coefficients):
        for drawn, values in ((maps[i], weights), (maps[count + i], weights - mean)):
            np.testing.assert_allclose(drawn.get_array(), values.T.detach(), atol=1e-6)
    for same_scale in (maps[:count], maps[count:]):  # images can be compared
        assert len({drawn.get_clim() for drawn in same_scale}) == 1
    low, high = maps[count].get_clim()
    assert low == -high

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    assert np.array(Image.open(buffer)).std() > 0
