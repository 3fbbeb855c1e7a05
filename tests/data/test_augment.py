"""Augmentation beyond the recipes: what must hold whatever is drawn."""

import hashlib

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from dqdet.config import AugmentConfig, DataConfig, resolve
from dqdet.data import open_dataset
from dqdet.data.combining import filling, mixed, mosaic, pasted
from dqdet.data.loader import make_loader
from dqdet.data.transforms import make_transform
from dqdet.errors import DqdetError

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]
EVERYTHING = {
    "mosaic": 0.5,
    "mixup": 0.5,
    "rotate": 10,
    "translate": 0.1,
    "scale": 0.3,
    "shear": 5,
    "colour": 1,
    "blur": 0.5,
    "jpeg": 0.5,
}
seeds = st.integers(0, 9999)
several = st.sampled_from([(48, 64), (96, 64), (50, 130)])  # height, width


def rectangle(box: tuple[int, int, int, int], colour=(0, 255, 0), size=(48, 64), masks=True, background=0) -> dict:
    """A picture with one coloured rectangle, whose class is 0."""
    x0, y0, x1, y1 = box
    pixels = torch.full((3, *size), background, dtype=torch.uint8)
    pixels[:, y0:y1, x0:x1] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
    sample = {
        "image": tv_tensors.Image(pixels),
        "boxes": tv_tensors.BoundingBoxes([list(map(float, box))], format="XYXY", canvas_size=size),
        "labels": torch.zeros(1, dtype=torch.int64),
    }
    if masks:
        mask = torch.zeros(1, *size, dtype=torch.uint8)
        mask[:, y0:y1, x0:x1] = 1
        sample["masks"] = tv_tensors.Mask(mask)
    return sample


def tight(masks: torch.Tensor) -> torch.Tensor:
    return masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])


@st.composite
def boxes(draw, height=48, width=64, least=8):
    x0, y0 = draw(st.integers(0, width - least)), draw(st.integers(0, height - least))
    return x0, y0, draw(st.integers(x0 + least, width)), draw(st.integers(y0 + least, height))


def affine(task: str, **options):
    config = DataConfig(task=task, augment=options, flip=False, crop=False, resize=[48], max_size=64)
    return make_transform(config, train=True)


@settings(max_examples=40)
@given(boxes(), seeds)
def test_affine_moves_boxes_as_it_moves_masks(box, seed):
    """Without a rotation, to the pixel that a border of a mask is in."""
    results = {}
    for task in ("detection", "instance"):
        torch.manual_seed(seed)
        results[task] = affine(task, translate=0.3, scale=0.5)(rectangle(box, masks=task == "instance"))
    with_masks, without = results["instance"], results["detection"]
    assert torch.equal(with_masks["image"], without["image"])
    if len(with_masks["labels"]) and len(without["labels"]):
        torch.testing.assert_close(with_masks["boxes"], tight(with_masks["masks"]), atol=0, rtol=0)
        torch.testing.assert_close(without["boxes"], with_masks["boxes"], atol=1.01, rtol=0)
    else:  # less than a pixel is left
        left = without["boxes"] if len(without["labels"]) else with_masks["boxes"]
        assert (left[:, 2:] - left[:, :2]).amin() <= 1 if len(left) else True


def test_affine_drops_what_leaves_the_picture_and_no_more():
    counts = set()
    for seed in range(60):
        torch.manual_seed(seed)
        result = affine("detection", translate=1.0)(rectangle((24, 16, 40, 32), masks=False))
        green = (result["image"][1] > 200) & (result["image"][0] < 50)
        counts.add((len(result["labels"]), bool(green.any())))
    assert {(0, False), (1, True)} <= counts
    assert (0, True) not in counts


@settings(max_examples=40)
@given(st.lists(boxes(), min_size=4, max_size=4), st.lists(several, min_size=4, max_size=4), seeds)
def test_boxes_of_a_mosaic_are_where_their_pictures_are(places, sizes, seed):
    torch.manual_seed(seed)
    samples = [
        rectangle(place, colour, size) | {"labels": torch.tensor([number])}
        for number, (place, colour, size) in enumerate(zip(places, COLOURS, sizes, strict=True))
    ]
    result = mosaic(samples)
    image = result["image"]
    assert image.shape == samples[0]["image"].shape
    assert image.dtype == torch.uint8
    torch.testing.assert_close(result["boxes"], tight(result["masks"]), atol=0, rtol=0)
    for label, (x0, y0, x1, y1) in zip(result["labels"].tolist(), result["boxes"].tolist(), strict=True):
        like = (image.int() - torch.tensor(COLOURS[label])[:, None, None]).abs().amax(0) < 100  # [H, W]
        rows, columns = like.nonzero(as_tuple=True)
        assert len(rows) or (x1 - x0 <= 2 or y1 - y0 <= 2)
        if len(rows):  # interpolation blurs a border by a pixel
            found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            torch.testing.assert_close(found.float(), torch.tensor([x0, y0, x1, y1]), atol=2.01, rtol=0)
        height, width = image.shape[1:]
        assert y1 <= 0.71 * height if label < 2 else y0 >= 0.29 * height
        assert x1 <= 0.71 * width if label % 2 == 0 else x0 >= 0.29 * width


def test_every_quarter_of_a_mosaic_is_filled():
    for seed in range(20):
        torch.manual_seed(seed)
        samples = [rectangle((0, 0, 8, 8), size=(40, 30 + 20 * i), background=100, colour=(100,) * 3) for i in range(4)]
        assert (mosaic(samples)["image"] == 100).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_the_smallest_pictures_become_mosaics_too(size):
    sample = rectangle((0, 0, *size[::-1]), size=size)
    result = mosaic([sample] * 4)
    assert result["image"].shape[1:] == size
    assert len(result["labels"])
    torch.manual_seed(0)
    config = DataConfig(augment={"blur": 1, "jpeg": 1, "colour": 1}, crop=False, resize=[8], max_size=16)
    assert make_transform(config, train=True)(rectangle((0, 0, *size[::-1]), size=size))["image"].dtype == torch.uint8


@given(boxes(), boxes(), seeds)
def test_pasted_objects_hide_what_is_below(below, above, seed):
    torch.manual_seed(seed)
    first, other = rectangle(below, (255, 0, 0)), rectangle(above, (0, 255, 0)) | {"labels": torch.ones(1).long()}
    result = pasted(first, other)
    masks, labels = result["masks"].bool(), result["labels"]
    assert masks.sum(0).amax() <= 1
    assert masks.flatten(1).any(1).all()
    torch.testing.assert_close(result["boxes"], tight(result["masks"]), atol=0, rtol=0)
    top = masks[labels == 1].any(0)
    if not top.any():
        assert torch.equal(result["image"], first["image"])
    assert torch.equal(masks[labels == 0].any(0), first["masks"][0].bool() & ~top)  # empty where it has vanished
    assert torch.equal(
        result["image"][:, top], torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None].expand(3, top.sum())
    )
    assert torch.equal(result["image"][:, ~top], first["image"][:, ~top])


def test_an_object_that_is_covered_vanishes():
    torch.manual_seed(0)
    labels = [
        pasted(rectangle((20, 20, 30, 30)), rectangle((10, 10, 40, 40)) | {"labels": torch.ones(1).long()})[
            "labels"
        ].tolist()
        for _ in range(20)
    ]
    assert {tuple(found) for found in labels} == {(0,), (1,)}


def test_mixed_images_have_the_objects_of_both():
    torch.manual_seed(0)
    first, other = rectangle((0, 0, 20, 20), (250, 0, 0)), rectangle((30, 20, 60, 40), (0, 250, 0), (96, 128))
    result = mixed(first, other)
    assert result["image"].shape == first["image"].shape
    assert result["image"].dtype == torch.uint8
    red, green, _ = result["image"].int()
    assert 100 <= red[10, 10] <= 150
    assert len(result["labels"]) == 2
    x0, y0, x1, y1 = result["boxes"][1].int().tolist()
    inside = green[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
    assert ((inside >= 100) & (inside <= 150)).all()


@given(boxes(), seeds, st.sampled_from([(20, 20), (48, 64), (100, 30)]))
def test_a_filling_has_the_wanted_size_and_boxes_inside_it(box, seed, size):
    torch.manual_seed(seed)
    result = filling(rectangle(box), size, 1.3)
    assert result["image"].shape[1:] == size
    assert (result["boxes"] >= 0).all()
    assert (result["boxes"] <= torch.tensor([size[1], size[0]] * 2)).all()
    torch.testing.assert_close(result["boxes"], tight(result["masks"]), atol=0, rtol=0)


def scenes(task: str, **augment) -> DataConfig:
    return DataConfig(
        kind="scenes", task=task, resize=[64, 96], max_size=96, scenes={"train_images": 6, "frames": 4}, augment=augment
    )


def digest(dataset, indices) -> str:
    seen = hashlib.sha256()
    for index in indices:
        image, target = dataset[index]
        assert image.dtype == torch.uint8
        for value in (image, target.boxes, target.labels, target.masks):
            seen.update(b"" if value is None else value.numpy().tobytes())
    return seen.hexdigest()


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_an_item_depends_on_seed_epoch_and_index_alone(task):
    everything = EVERYTHING | ({"copy_paste": 0.5} if task == "instance" else {})
    first, second = (open_dataset(scenes(task, **everything), "train", seed=3) for _ in range(2))
    assert digest(first, range(6)) == digest(second, [0, 1, 2, 3, 4, 5])
    alone = digest(first, [5])
    torch.manual_seed(77)
    second[2]
    assert digest(second, [5]) == alone
    second.set_epoch(1)
    assert digest(second, [5]) != alone
    other = open_dataset(scenes(task, **everything), "train", seed=4)
    assert digest(other, [5]) != alone


def test_any_number_of_workers_gives_the_same_batches():
    seen = []
    for workers in (0, 2):
        dataset = open_dataset(scenes("instance", copy_paste=0.5, **EVERYTHING), "train", seed=3)
        loader = make_loader(dataset, batch=2, train=True, seed=3, workers=workers)
        seen.append([(batch.images.clone(), [t.boxes.clone() for t in batch.targets]) for batch in loader])
    for (images, targets), (other_images, other_targets) in zip(*seen, strict=True):
        assert torch.equal(images, other_images)
        assert all(torch.equal(boxes, others) for boxes, others in zip(targets, other_targets, strict=True))


@pytest.mark.parametrize(
    "name", ["mosaic", "mixup", "copy_paste", "rotate", "translate", "scale", "shear", "colour", "blur", "jpeg"]
)
def test_each_option_changes_pictures_and_leaves_them_whole(name):
    plain = open_dataset(scenes("instance"), "train")
    changed = open_dataset(scenes("instance", **{name: 0.9}), "train")
    assert digest(plain, range(6)) != digest(changed, range(6))
    for index in range(6):
        _, target = changed[index]
        height, width = target.size
        corners = tight(target.masks) / torch.tensor([width, height, width, height])
        x0, y0, x1, y1 = corners.unbind(1)
        torch.testing.assert_close(target.boxes, torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1))


def test_validation_is_not_augmented():
    config = scenes("instance", copy_paste=1, **EVERYTHING)
    plain = config.model_copy(update={"augment": AugmentConfig()})
    assert digest(open_dataset(config, "val"), [0, 1]) == digest(open_dataset(plain, "val"), [0, 1])


def test_the_frames_of_a_clip_have_the_same_draw():
    config = DataConfig(
        task="video", kind="youtube_vis", augment={"colour": 1, "blur": 0.5, "jpeg": 0.5}, crop=False, resize=[48]
    )
    still = rectangle((10, 10, 30, 30), (200, 90, 20), background=60)
    noise = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    clip = still | {"image": tv_tensors.Video(torch.stack([noise, noise]))}
    changed = 0
    for seed in range(8):
        torch.manual_seed(seed)
        first, second = make_transform(config, train=True)(clip)["image"]
        assert torch.equal(first, second)
        changed += not torch.equal(first, noise)
    assert changed


@pytest.mark.parametrize(
    ("preset", "options", "words"),
    [
        ("deformable_detr_r50", ["data.augment.copy_paste=0.1"], "copies objects by their masks"),
        (
            "mask2former_r50_coco_panoptic",
            ["data.augment.mosaic=1", "data.augment.scale=0.1"],
            "data.augment.mosaic, data.augment.scale: of",
        ),
        ("video_mask2former_r50", ["data.augment.rotate=1"], "not video"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_line(preset, options, words):
    with pytest.raises(DqdetError, match=words) as error:
        resolve(preset, options)
    assert "\n" not in str(error.value)
    resolve(preset, ["data.augment.blur=0.1", "data.augment.jpeg=0.1", "data.augment.colour=0.5"])


def test_nothing_is_added_where_everything_is_off():
    transform = str(make_transform(DataConfig(), train=True))
    assert not any(kind in transform for kind in ("Affine", "JPEG", "Blur", "Jitter"))
    assert open_dataset(scenes("detection"), "train").combine is None


def test_a_sheet_of_augmented_images(run, shared, tmp_path):
    files = [tmp_path / f"{name}.png" for name in ("plain", "again", "mosaic")]
    for file, options in zip(files, ([], [], ["data.augment.mosaic=1"]), strict=True):
        status, out, err = run(
            "data", "show", shared / "data" / "bccd", "data.resize=[200]", *options, "--images", 4, "--out", file
        )
        assert (status, err) == (0, "")
        assert out == f"{file}: 4 of 205 training images, augmented\n"
    plain, again, mosaics = (np.asarray(PIL.Image.open(file)) for file in files)
    np.testing.assert_array_equal(plain, again)
    assert plain.shape != mosaics.shape or (plain != mosaics).any()
    assert run("data", "show", shared / "data" / "bccd", "--out", tmp_path / "sheet")[2] == (
        f"error: --out {tmp_path / 'sheet'}: not the name of a picture; let it end in .png or .jpg\n"
    )
