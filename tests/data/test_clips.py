"""Clips of videos: which frames they have, and that one augmentation reaches all frames, boxes and masks alike."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors

from dqdet.config import ClipsConfig, DataConfig, ScenesConfig, resolve
from dqdet.data import open_dataset
from dqdet.data.clips import Clip, VideoDataset, draw_frames
from dqdet.data.loader import VideoLoader, collate, make_loader
from dqdet.errors import DqdetError
from dqdet.types import pad_images

SCENES = DataConfig(
    kind="scenes",
    task="video",
    scenes=ScenesConfig(size=64, train_images=9, val_images=5, frames=6),
    resize=[48, 64],
    val_resize=64,
    clips=ClipsConfig(frames=3, reach=2),
)


class Squares(VideoDataset):
    """Two bright squares on black; the first shows in even frames only. A frame's number is in its red corner."""

    PLACES = ((8, 16, 24, 40), (60, 30, 76, 46))  # x0, y0, x1, y1
    classes = ("left", "right")
    category_ids = (1, 2)

    def __init__(self, config: DataConfig, split: str = "train", length: int = 6, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.set_videos([7], np.array([length]), np.array([1.5]))

    def read_clip(self, video: int, frames: Sequence[int], masks: bool) -> Clip:
        shown = [(t, k) for k in (0, 1) for t, frame in enumerate(frames) if k == 1 or frame % 2 == 0]
        rows, tracks = (torch.tensor([row[i] for row in shown]) for i in (0, 1))
        images = torch.zeros(len(frames), 3, 64, 96, dtype=torch.uint8)
        drawn = torch.zeros(len(shown), 64, 96, dtype=torch.uint8)
        for (t, k), mask in zip(shown, drawn, strict=True):
            x0, y0, x1, y1 = self.PLACES[k]
            mask[y0:y1, x0:x1] = 1
            images[t, 1 + k] = mask * 255
        boxes = torch.tensor(self.PLACES, dtype=torch.float32)[tracks]
        clip: Clip = {
            "image": tv_tensors.Video(images),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 96)),
            "labels": tracks,
            "tracks": tracks,
            "frames": rows,
        }
        return clip | {"masks": tv_tensors.Mask(drawn)} if masks else clip

    def ground_truth(self):
        return {}  # nothing is measured here


def augmented(**options) -> DataConfig:
    options = {"resize": [48, 64, 80], "max_size": 200} | options
    return DataConfig(kind="scenes", task="video", clips=ClipsConfig(frames=4), **options)


@given(st.integers(1, 40), st.data(), st.integers(1, 6), st.integers(1, 20))
def test_frames_of_a_clip(length, data, count, reach):
    reference = data.draw(st.integers(0, length - 1))
    frames = draw_frames(length, reference, count, reach)
    assert len(frames) == count
    assert frames == sorted(frames)
    assert reference in frames
    near = range(max(0, reference - reach), min(length, reference + reach + 1))
    assert set(frames) <= set(near)
    assert len(set(frames)) == min(count, len(near))


def test_frames_of_a_clip_are_drawn_evenly():
    torch.manual_seed(0)
    drawn = Counter(frame for _ in range(4000) for frame in draw_frames(30, 10, 2, 4) if frame != 10)
    assert set(drawn) == set(range(6, 15)) - {10}
    assert max(drawn.values()) - min(drawn.values()) < 150  # of 500 each


@given(st.integers(1, 40), st.data(), st.integers(3, 6), st.integers(1, 4))
def test_neighbours_of_a_frame(length, data, count, neighbours):
    reference = data.draw(st.integers(0, length - 1))
    frames = draw_frames(length, reference, count, 40, neighbours)
    assert len(frames) == count
    assert frames == sorted(frames)
    near = [frame for frame in frames if abs(frame - reference) <= neighbours]
    assert any(frame < reference for frame in near) or reference == 0
    assert any(frame > reference for frame in near) or reference == length - 1
    assert len(near) >= 3  # at an end of the video, the reference twice


def test_clips_of_seqformer_are_drawn_as_published():
    """Of 5 frames: two neighbours at most 3 frames away, two from beyond them, all with the same probability."""
    options = resolve("seqformer_r50").data.clips
    torch.manual_seed(0)
    clips = [draw_frames(36, 20, options.frames, options.reach, options.neighbours) for _ in range(6000)]
    assert {len(set(clip)) for clip in clips} == {5}
    befores, afters, others = Counter(), Counter(), Counter()
    for clip in clips:
        place = clip.index(20)
        before, after = 20 - clip[place - 1], clip[place + 1] - 20
        befores[before] += 1
        afters[after] += 1
        others.update(set(clip) - {20, 20 - before, 20 + after})
    assert set(befores) == set(afters) == {1, 2, 3}
    assert [count / 6000 for count in (befores[1], afters[1], befores[3])] == pytest.approx([1 / 3] * 3, abs=0.03)
    assert set(others) == set(range(36)) - {19, 20, 21}
    far = [others[frame] for frame in range(36) if abs(frame - 20) > 3]
    assert max(far) - min(far) < 140  # of 390 or so each


def test_neighbours_need_clips_of_three_frames():
    with pytest.raises(DqdetError, match=r"neighbours=3 needs clips of 3 frames or more, not data\.clips\.frames=2"):
        resolve("seqformer_r50", ["data.clips.frames=2"])


def squares_of(image: Tensor, track: int) -> Tensor:
    """Where an augmented frame shows the square of a track; the padding is 128."""
    return image[1 + track] > 153


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("options", [{}, {"crop": False, "jitter": (0.4, 2.0), "window": (56, 72)}])
def test_pictures_boxes_masks_and_visibility_agree_in_every_frame(options, seed):
    """Whatever crop, size and flip were drawn."""
    dataset = Squares(augmented(**options), seed=seed)
    for epoch in range(4):
        dataset.set_epoch(epoch)
        frames, target = dataset[0]
        height, width = target.size
        assert frames.shape == (4, 3, height, width)
        assert target.original_size == (64, 96)
        assert target.masks.shape == (*target.boxes.shape[:2], height, width)
        assert target.boxes.flatten(1).any(1).all()  # all are visible somewhere
        scale = target.boxes.new_tensor([width, height, width, height])
        for label, boxes, masks in zip(target.labels, target.boxes, target.masks, strict=True):
            visible = masks.flatten(1).any(1)  # [T]
            assert torch.equal(visible, boxes.any(1))
            assert len(boxes[visible].unique(dim=0)) == 1  # the squares rest, so their place is that of all frames
            assert len(masks[visible].unique(dim=0)) == 1
            for frame, mask in zip(frames, masks, strict=True):
                assert (squares_of(frame, int(label)) ^ mask).float().mean() < 0.02
            rows, columns = masks[visible][0].nonzero(as_tuple=True)
            x, y, w, h = boxes[visible][0] * scale
            edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert (torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) - edges).abs().max() <= 1.01
        for label in {0, 1} - set(target.labels.tolist()):  # not in the crop
            assert squares_of(frames[0], label).sum() <= 2 * max(height, width)


def test_colours_of_each_frame_are_distorted_on_their_own():
    changed = unlike = 0
    for seed in range(16):
        options = {"crop": False, "flip": False, "resize": [64]}
        frames, _ = Squares(augmented(colour=True, **options), length=1, seed=seed)[0]
        plain, _ = Squares(augmented(**options), length=1, seed=seed)[0]
        assert len(plain.unique(dim=0)) == 1
        changed += sum(not torch.equal(frame, before) for frame, before in zip(frames, plain, strict=True))
        unlike += len(frames.unique(dim=0)) == 4
    assert changed >= 40  # of 64
    assert unlike >= 8


def test_flips_and_crops_were_among_them():
    sides, sizes, counts = set(), set(), set()
    for seed in range(40):
        frames, target = Squares(augmented(), seed=seed)[0]
        sizes.add(tuple(frames.shape[2:]))
        counts.add(len(target.labels))
        if len(target.labels) == 2:
            centres = [boxes[boxes.any(1)][0, 0] for boxes in target.boxes]
            sides.add(bool(centres[0] < centres[1]))
    assert sides == {True, False}
    assert len(sizes) > 5
    assert {1, 2} <= counts


def test_an_object_that_no_frame_of_the_clip_shows_is_none():
    config = augmented(crop=False, flip=False)
    config.clips.frames = 1
    dataset = Squares(config)
    labels = set()
    for epoch in range(12):
        dataset.set_epoch(epoch)
        labels.add(tuple(dataset[0][1].labels.tolist()))
    assert labels == {(0, 1), (1,)}


class Nothing(Squares):
    """Of all videos but number 3, no frame shows anything."""

    def __init__(self, config: DataConfig, split: str = "train", seed: int = 0, shown: int = 3) -> None:
        super().__init__(config, split, seed=seed)
        self.shown = shown
        self.set_videos([7, 8, 9, 10], np.array([6] * 4), np.array([1.5] * 4))

    def read_clip(self, video: int, frames: Sequence[int], masks: bool) -> Clip:
        clip = super().read_clip(video, frames, masks)
        kept = [name for name in clip if name != "image"] if video != self.shown else []
        return clip | {name: tv_tensors.wrap(clip[name][:0], like=clip[name]) for name in kept}


def test_clips_without_objects_are_drawn_again():
    config = augmented(redraw_empty=True)
    for index in range(4):
        frames, target = Nothing(config)[index]
        assert target.image_id == 10
        assert len(target.labels)
        again, _ = Nothing(config)[index]
        assert torch.equal(frames, again)
        assert len(Nothing(augmented())[index][1].labels) == (2 if index == 3 else 0)
        assert Nothing(config, "val")[index][1].image_id == 7 + index
    assert not len(Nothing(config, shown=4)[0][1].labels)  # and if there are none at all, that ends


def test_a_mask_that_vanishes_when_the_clip_becomes_smaller_does_not_show_its_object():
    class Needles(Squares):
        PLACES = ((8, 17, 9, 18), (60, 30, 76, 46))

    frames, target = Needles(augmented(crop=False, flip=False, resize=[16]))[0]
    assert frames.shape == (4, 3, 16, 24)
    assert target.labels.tolist() == [1]
    assert target.boxes.any(2).tolist() == [[True] * 4]


def test_validation_has_the_whole_video_without_masks():
    frames, target = Squares(augmented(val_resize=32), "val")[0]
    assert frames.shape == (6, 3, 32, 48)
    assert target.masks is None
    assert target.image_id == 7
    assert target.boxes.any(2).tolist() == [[True, False] * 3, [True] * 6]
    expected = [[16 / 96, 28 / 64, 16 / 96, 24 / 64], [68 / 96, 38 / 64, 16 / 96, 16 / 64]]
    torch.testing.assert_close(target.boxes[:, 0], torch.tensor(expected))
    assert not target.boxes[0, 1].any()


def test_a_clip_of_each_frame():
    config = augmented(crop=False)
    config.clips.frames, config.clips.every_frame = 2, True
    dataset = Squares(config, length=6)
    assert len(dataset) == 6
    assert dataset.image_ids == [7] * 6
    config.clips.frames = 1  # the reference frame alone: even ones show two squares
    assert [len(Squares(config)[index][1].labels) for index in range(6)] == [2, 1] * 3
    assert len(Squares(config, "val")) == 1


def test_an_item_depends_on_seed_epoch_and_index_alone():
    dataset = open_dataset(SCENES, "train", seed=1)
    dataset.set_epoch(2)
    expected, target = dataset[5]
    dataset.set_epoch(0)
    _ = dataset[3]
    again = open_dataset(SCENES, "train", seed=1)
    again.set_epoch(2)
    torch.rand(3)
    frames, other = again[5]
    assert torch.equal(frames, expected)
    assert torch.equal(other.masks, target.masks)
    variants = set()
    for epoch in range(8):
        dataset.set_epoch(epoch)
        variants.add(dataset[5][0].numpy().tobytes())
    assert len(variants) > 4


def test_workers_change_nothing():
    plain, parallel = (
        make_loader(open_dataset(SCENES, "train"), batch=4, train=True, workers=workers) for workers in (0, 2)
    )
    for one, other in zip(plain, parallel, strict=True):
        assert one.images.shape[:3] == (4, 3, 3)
        assert torch.equal(one.images, other.images)
        for target, same in zip(one.targets, other.targets, strict=True):
            for field in fields(target):
                a, b = getattr(target, field.name), getattr(same, field.name)
                assert torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_one_video_at_a_time(workers):
    dataset = open_dataset(SCENES, "val")
    videos = {}
    for video in VideoLoader(dataset, workers):
        (target,) = video.targets
        frames = torch.stack(list(video.frames))
        expected, whole = dataset[dataset.image_ids.index(target.image_id)]
        assert torch.equal(frames, expected)
        assert (target.size, target.original_size, target.boxes.shape) == (whole.size, whole.original_size, (0, 6, 4))
        videos[target.image_id] = frames.shape
    assert sorted(videos) == dataset.image_ids
    assert set(videos.values()) == {(6, 3, 64, 64)}
    shares = [list(VideoLoader(dataset, rank=rank, world=2)) for rank in range(2)]
    assert sorted(video.targets[0].image_id for share in shares for video in share) == dataset.image_ids
    assert len(VideoLoader(dataset)) == len(dataset)


def test_a_video_can_be_left_before_its_end():
    dataset = open_dataset(SCENES, "val")
    for video in VideoLoader(dataset):
        first, _ = dataset[dataset.image_ids.index(video.targets[0].image_id)]
        assert torch.equal(next(video.frames), first[0])


def test_clips_of_different_sizes_are_padded_at_the_right_and_bottom():
    clips = [torch.rand(2, 3, 5, 9), torch.rand(2, 3, 7, 4)]
    images, padding = pad_images(clips, divisor=4)
    assert images.shape == (2, 2, 3, 8, 12)
    for clip, slot, padded in zip(clips, images, padding, strict=True):
        height, width = clip.shape[2:]
        assert torch.equal(slot[..., :height, :width], clip)
        assert slot.sum() == pytest.approx(clip.sum().item(), rel=1e-5)
        assert not padded[:height, :width].any()
        assert padded.sum() == 8 * 12 - height * width


def test_targets_with_masks_share_their_memory_and_keep_their_values():
    dataset = open_dataset(SCENES, "train")
    items = [dataset[index] for index in range(4)]
    batch = collate(items)
    for name in ("labels", "boxes", "masks"):
        assert len({getattr(target, name).untyped_storage().data_ptr() for target in batch.targets}) == 1
        for target, (_, expected) in zip(batch.targets, items, strict=True):
            assert torch.equal(getattr(target, name), getattr(expected, name))
