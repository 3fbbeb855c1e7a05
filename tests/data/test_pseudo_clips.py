"""Images of COCO as clips beside videos: the same objects in every frame, labelled as in the videos."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors

from dqdet.config import ClipsConfig, DataConfig, ScenesConfig
from dqdet.data import open_dataset
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.loader import make_loader
from dqdet.data.pseudo_clips import VIDEO_NAMES, pseudo_clip
from dqdet.errors import DqdetError
from dqdet.formats.categories import COCO_CATEGORIES

HEIGHT, WIDTH = 48, 64


def coco(root: Path, names: list[list[str]]) -> Path:
    """A folder of COCO with an image for each list of categories, whose objects are bright rectangles."""
    images, annotations = [], []
    ids = {name: number for number, name in enumerate(sorted({n for image in names for n in image}), start=1)}
    folder = root / "train2017"
    folder.mkdir(parents=True)
    for image_id, objects in enumerate(names, start=100):
        pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.uint8)
        for number, name in enumerate(objects):
            x, y = 10 + 12 * (number % 4), 12 + 14 * (number // 4 % 2)
            pixels[y : y + 10, x : x + 8] = 255
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": [x, y, 8, 10],
                    "area": 80,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + 8, y, x + 8, y + 10, x, y + 10]],
                }
            )
        PIL.Image.fromarray(pixels).save(folder / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH})
    categories = [{"id": number, "name": name} for name, number in ids.items()]
    (root / "annotations").mkdir()
    (root / "annotations/instances_train2017.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    return root


SCENES = DataConfig(
    kind="scenes",
    task="video",
    scenes=ScenesConfig(size=48, train_images=4, val_images=2, frames=6),
    resize=[HEIGHT],
    max_size=WIDTH,
    crop=False,
    clips=ClipsConfig(frames=3),
)


def videos(split: Split = "train", **clips) -> DetectionDataset:
    """Four videos of scenes, whose classes person, car, ... are names of COCO's too."""
    return open_dataset(SCENES.model_copy(update={"clips": ClipsConfig(frames=3, **clips)}), split)


def joint(root: Path, split: Split = "train") -> DetectionDataset:
    """With the images of COCO beside them."""
    return videos(split, images=str(root))


@pytest.fixture
def folder(tmp_path):
    """Three images that can be used, and three that cannot: no class of the videos, no object, too many objects."""
    return coco(
        tmp_path,
        [["person", "toaster", "boat"], ["toaster"], ["boat", "person"], [], ["person"] * 26, ["person"] * 5],
    )


def test_published_names_are_categories_of_coco_and_youtube_vis(shared):
    truth = json.loads((shared / "metrics/video_instance/gt.json").read_text())
    official = {category["id"]: category["name"] for category in truth["categories"]}
    assert set(VIDEO_NAMES) <= set(COCO_CATEGORIES.values())
    assert set(VIDEO_NAMES.values()) <= set(official.values())
    # The ids of SeqFormer's list
    published = {1: 1, 2: 21, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18, 21: 15, 22: 32, 23: 20}
    published |= {24: 30, 25: 22, 36: 33, 41: 5, 42: 27, 43: 40}
    assert {COCO_CATEGORIES[image]: official[video] for image, video in published.items()} == VIDEO_NAMES


def test_items_are_the_videos_and_the_usable_images(folder):
    dataset = joint(folder)
    assert dataset.image_ids == [1, 2, 3, 4, 100, 102, 105]
    assert dataset.aspect_ratios.tolist() == [1, 1, 1, 1, 4 / 3, 4 / 3, 4 / 3]
    alone = videos()
    for index in range(4):
        assert torch.equal(dataset[index][0], alone[index][0])
    for index, names in ((4, {"person", "boat"}), (5, {"person", "boat"}), (6, {"person"})):
        frames, target = dataset[index]
        assert frames.shape == (3, 3, HEIGHT, WIDTH)
        assert {dataset.classes[label] for label in target.labels} == names
        assert target.boxes.any(2).any(0).all()
    assert len(joint(folder, "val")) == 2


def test_masks_and_boxes_move_with_the_picture(folder):
    dataset = joint(folder)
    moved = 0
    for epoch in range(6):
        dataset.set_epoch(epoch)
        frames, target = dataset[6]
        assert len(target.labels) == 5
        for frame in range(3):
            grey = frames[frame].float().mean(0)
            bright = grey > grey.quantile(0.8)
            united = target.masks[:, frame].any(0)
            assert (bright & united).sum() > 0.75 * united.sum()
            for box, mask in zip(target.boxes[:, frame], target.masks[:, frame], strict=True):
                assert bool(box.any()) == bool(mask.any())
                if mask.any():
                    rows, columns = mask.nonzero(as_tuple=True)
                    middle = torch.stack([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
                    torch.testing.assert_close(box[:2] * torch.tensor([WIDTH, HEIGHT]), middle, atol=0.6, rtol=0)
            moved += int(not torch.equal(target.masks[:, frame], target.masks[:, 0]))
    assert moved >= 10


def test_objects_that_are_no_class_of_the_videos_are_left_out(folder):
    """Of three in a row, the one in the middle."""
    _, target = joint(folder)[4]
    person, boat = (
        target.boxes[target.labels == label, :, :2] * torch.tensor([WIDTH, HEIGHT])
        for label in map(joint(folder).classes.index, ("person", "boat"))
    )
    distances = (person - boat).norm(dim=-1).squeeze(0)  # [T]
    torch.testing.assert_close(distances, torch.full((3,), 24.0), atol=4, rtol=0)


def test_one_frame_is_the_image_itself_anywhere_in_the_clip():
    torch.manual_seed(0)
    image = tv_tensors.Image(torch.randint(256, (3, 32, 40), dtype=torch.uint8))
    masks = tv_tensors.Mask(torch.zeros(1, 32, 40, dtype=torch.uint8))
    masks[0, 10:20, 10:30] = 1
    places = set()
    for _ in range(20):
        clip = pseudo_clip(image, masks, torch.tensor([3]), 3)
        same = [torch.equal(frame, image) for frame in clip["image"]]
        assert sum(same) == 1
        places.add(same.index(True))
    assert places == {0, 1, 2}


def test_items_depend_on_seed_epoch_and_index_alone(folder):
    one, other = joint(folder), joint(folder)
    expected = [one[index][0] for index in range(7)]
    for index in reversed(range(7)):
        assert torch.equal(other[index][0], expected[index])
    other.set_epoch(1)
    assert not torch.equal(other[5][0], expected[5])
    batches = list(make_loader(one, batch=3, train=True))
    assert {batch.images.shape[:3] for batch in batches} == {(3, 3, 3)}


def test_images_without_a_class_of_the_videos(tmp_path):
    with pytest.raises(DqdetError) as caught:
        joint(coco(tmp_path, [["toaster"], []]))
    assert str(caught.value) == (
        f"{tmp_path}/annotations/instances_train2017.json: no image shows an object of a class of the videos; "
        "set data.clips.images to a folder of COCO, or leave it out"
    )


def test_colours_of_videos_are_distorted_those_of_pseudo_clips_not(folder):
    def items(colour: bool) -> list[torch.Tensor]:
        config = SCENES.model_copy(deep=True)
        config.clips.images, config.colour = str(folder), colour
        return [clip for clip, _ in map(open_dataset(config, "train").__getitem__, range(7))]

    same = [torch.equal(*pair) for pair in zip(items(False), items(True), strict=True)]
    assert same[4:] == [True] * 3
    assert not all(same[:4])


def test_pseudo_clips_without_objects_are_drawn_again(folder, monkeypatch):
    """Crops may leave none; what takes their place is an image, not a video."""
    config = SCENES.model_copy(deep=True)
    config.clips.images, config.redraw_empty = str(folder), True
    dataset = open_dataset(config, "train")
    read = dataset.pseudo.read
    wanted = []

    def first_nothing(index):
        wanted.append(index)
        sample = read(index)
        rows = {name: value for name, value in sample.items() if name != "image" and len(wanted) == 1}
        return sample | {name: tv_tensors.wrap(value[:0], like=value) for name, value in rows.items()}

    monkeypatch.setattr(dataset.pseudo, "read", first_nothing)
    _, target = dataset[5]
    assert wanted[0] == 1
    assert len(wanted) == 2
    assert target.image_id == dataset.pseudo.image_ids[wanted[1]]
    assert len(target.labels)
