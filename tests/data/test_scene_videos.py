"""Videos of scenes: the same at any frame rate, and their annotations say what is drawn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dqdet.config import ClipsConfig, DataConfig, ScenesConfig
from dqdet.data import open_dataset
from dqdet.data.scenes.scene import render
from dqdet.data.scenes.videos import draw_video
from dqdet.metrics.video import VideoMetric
from dqdet.types import ClipTracks
from whole_tracks import as_tracks, decode_frames

numbers = st.integers(0, 10**6)
MOMENTS = np.linspace(0, 1, 8)


def videos(split: str = "val", size: int = 64, frames: int = 8, count: int = 40, **options):
    scenes = ScenesConfig(size=size, frames=frames, train_images=count, val_images=count)
    return open_dataset(DataConfig(kind="scenes", task="video", scenes=scenes, **options), split)


def test_a_frame_depends_on_seed_split_video_and_frame_alone():
    one, other = videos(), videos()
    whole = one.read_clip(3, range(8), masks=True)
    part = other.read_clip(3, [6, 1], masks=True)
    assert torch.equal(part["image"], whole["image"][[6, 1]])
    for position, frame in enumerate([6, 1]):
        rows, expected = part["frames"] == position, whole["frames"] == frame
        for name in ("tracks", "labels", "boxes", "masks"):
            assert torch.equal(part[name][rows], whole[name][expected])
    assert not torch.equal(videos("train").read_clip(3, [6, 1], masks=True)["image"], part["image"])


def test_more_frames_are_a_higher_frame_rate():
    few, many = videos(frames=4), videos(frames=7)
    for video in range(5):
        few_frames = few.read_clip(video, range(4), masks=False)["image"]
        assert torch.equal(few_frames, many.read_clip(video, range(0, 7, 2), masks=False)["image"])


@settings(max_examples=20)
@given(numbers, st.data())
def test_identities_are_those_of_the_moving_objects(seed, data):
    """Without one object, its segment vanishes from every frame and all others stay or grow."""
    video = draw_video(seed)
    gone = data.draw(st.integers(0, len(video.motions) - 1))
    for moment in MOMENTS[::3]:
        scene = video.at(moment)
        _, segments = render(scene, 64)
        _, without = render(replace(scene, objects=[o for i, o in enumerate(scene.objects) if i != gone]), 64)
        number = len(scene.regions) + gone
        without = np.where(without >= number, without + 1, without)
        kept = segments != number
        assert np.array_equal(segments[kept], without[kept])


@settings(max_examples=40)
@given(numbers)
def test_objects_move_without_changing(seed):
    video = draw_video(seed)
    scenes = [video.at(moment) for moment in MOMENTS]
    for moments in zip(*(scene.objects for scene in scenes), strict=True):
        assert len({(o.category, o.width, o.height, o.mirrored, o.look.colour, o.look.second) for o in moments}) == 1
        assert all(-1 <= o.look.pose <= 1 for o in moments)
    for thing, motion in zip(video.scene.objects, video.motions, strict=True):
        then = motion.moved(thing, motion.moment)
        assert (then.x, then.y, then.angle) == pytest.approx((thing.x, thing.y, thing.angle))
        assert then.look.pose == pytest.approx(thing.look.pose)


def test_motion_keeps_to_where_a_class_belongs():
    """Cars stay in their lane and keep to the right, boats stay on the water, kites above all that stands."""
    seen = set()
    for seed in range(120):
        video = draw_video(seed)
        scenes = [video.at(moment) for moment in MOMENTS]
        for number, thing in enumerate(video.scene.objects):
            seen.add(thing.category)
            x, y = np.array([(s.objects[number].x, s.objects[number].y) for s in scenes]).T
            if thing.category == "car":
                near = thing.y + thing.height / 2 > 0.9
                assert np.all(np.diff(x) > 0) if near else np.all(np.diff(x) < 0)
                assert thing.mirrored != near  # it faces where it goes
            if thing.category in ("car", "boat", "person", "kite"):
                assert np.ptp(x) > 0.03
            if thing.category in ("car", "boat", "person", "plate"):
                assert np.abs(y - thing.y).max() < 0.08
            if thing.category == "kite":
                assert y.max() < 0.75
    assert {"car", "boat", "person", "plate", "kite"} <= seen


def test_objects_enter_leave_and_are_hidden():
    dataset = videos()
    entering = leaving = hidden = 0
    for video in range(40):
        clip = dataset.read_clip(video, range(8), masks=True)
        for track in clip["tracks"].unique():
            shown = clip["frames"][clip["tracks"] == track]
            entering += int(shown[0] > 0)
            leaving += int(shown[-1] < 7)
            areas = clip["masks"][clip["tracks"] == track].flatten(1).sum(1)
            hidden += int(areas.min() < areas.max() / 2)
        assert len(clip["tracks"].unique()) >= 1
    assert min(entering, leaving, hidden) >= 10


def test_boxes_enclose_the_masks_and_an_item_has_them_all():
    dataset = videos("train", clips=ClipsConfig(frames=3), resize=[64], crop=False, flip=False)
    for index in range(10):
        frames, target = dataset[index]
        assert frames.shape == (3, 3, 64, 64)
        for boxes, masks in zip(target.boxes, target.masks, strict=True):
            visible = masks.flatten(1).any(1)  # [T]
            assert torch.equal(visible, boxes.any(1))
            for box, mask in zip(boxes[visible], masks[visible], strict=True):
                rows, columns = mask.nonzero(as_tuple=True)
                edges = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 64
                torch.testing.assert_close(box, torch.cat([(edges[:2] + edges[2:]) / 2, edges[2:] - edges[:2]]))


def test_ground_truth_is_what_clips_show():
    dataset = videos(count=6)
    truth = dataset.ground_truth()
    metric = VideoMetric(truth, dataset.category_ids)
    for video, video_id in enumerate(dataset.image_ids):
        clip = dataset.read_clip(video, range(8), masks=True)
        tracks = clip["tracks"].unique()
        masks = torch.zeros(len(tracks), 8, 64, 64, dtype=torch.bool)
        masks[torch.searchsorted(tracks, clip["tracks"]), clip["frames"]] = clip["masks"].bool()
        labels = torch.stack([clip["labels"][clip["tracks"] == track][0] for track in tracks])
        annotations = [a for a in truth["annotations"] if a["video_id"] == video_id]
        for mask, annotation in zip(masks, annotations, strict=True):
            assert np.array_equal(decode_frames(annotation["segmentations"], 64, 64), mask.numpy())
        metric.update([video_id], [as_tracks(ClipTracks(torch.full((len(tracks),), 0.9), labels, masks))])
    assert metric.compute()["AP"] == pytest.approx(1)


def test_a_video_of_one_frame():
    dataset = videos("train", frames=1, count=3, clips=ClipsConfig(frames=2), resize=[64], crop=False)
    frames, target = dataset[0]
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(target.boxes[:, 0], target.boxes[:, 1])
    assert videos(frames=1)[0][0].shape[0] == 1
