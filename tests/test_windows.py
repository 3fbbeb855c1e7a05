"""Tracks of videos that go through the model in windows, with a model that sees what is there."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dqdet.config import Config, resolve
from dqdet.inference.windows import SHARED, WindowTracks, best_tracks, continued, overlaps, track, windows
from dqdet.nn.product_masks import ProductMasks
from dqdet.training.module import DetectionModule
from dqdet.types import ClipTracks, Predictions, Target, VideoStream
from whole_tracks import decompressed

SIDE = 32  # pixels, of frames whose colours are objects
CLASSES = ["cat", "dog"]


class SeesColours(nn.Module):
    """Each colour is an object, found by a query that differs between clips; the second one is a dog."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.clips: list[int] = []  # frames of each

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        assert images.shape[-2:] == padding.shape[-2:]
        self.clips.append(images.shape[1])
        order = torch.arange(3).roll(len(self.clips))  # query -> colour
        logits = torch.zeros(1, 1, 3, 3)
        for query, colour in enumerate(order.tolist()):
            logits[0, 0, query, int(colour == 1)] = 3.0 - colour
        features = self.scale * (2 * images[..., ::4, ::4] - 1)  # [1, T, 3, h, w]
        return Predictions(logits, None, {"modulated": 3}, ProductMasks(torch.eye(3)[order][None, None], features))


def make_video(length: int, seen: dict[int, range]) -> Tensor:
    """Frames ``[T, 3, H, W]``: squares that move by their own width in four frames, each in some of the frames."""
    video = torch.zeros(length, 3, SIDE, SIDE)
    for colour, frames in seen.items():
        for frame in frames:
            left = 4 * (frame % 5)
            video[frame, colour, 8 * colour : 8 * colour + 8, left : left + 16] = 1
    return video


def options(window: int) -> Config:
    return resolve("scenes_tiny_video", {"inference.window": window, "inference.limit": 3, "classes": CLASSES})


@settings(max_examples=12, deadline=None)
@given(length=st.integers(1, 23), window=st.integers(2, 12))
def test_each_object_is_one_track_whatever_the_window(length, window):
    video = make_video(length, {colour: range(length) for colour in range(3)})
    model = SeesColours()
    parts = list(track(model, iter(video), (SIDE, SIDE), options(window)))
    assert max(model.clips) <= window

    ends = [part.start + part.tracks.masks.shape[1] for part in parts]
    assert [part.start for part in parts] == [0, *ends[:-1]]
    assert ends[-1] == length
    assert all(sorted(part.ids) == [0, 1, 2] for part in parts)

    found = decompressed(best_tracks(parts, limit=3), length, SIDE, SIDE)
    assert found.labels.tolist() == [0, 1, 0]  # by falling score
    assert overlaps(found.masks, video.transpose(0, 1).bool()).diagonal().min() > 0.9  # corners become round
    at_once = best_tracks(track(model, iter(video), (SIDE, SIDE), options(window=30)), limit=3)
    at_once = decompressed(at_once, length, SIDE, SIDE)
    torch.testing.assert_close(found.scores, at_once.scores)
    assert torch.equal(found.masks, at_once.masks)


def test_objects_that_leave_and_enter():
    # Windows of 8 frames, 4 of them shared: a red object leaves, another one enters later.
    video = make_video(24, {0: range(6), 1: range(24), 2: range(10, 24)})
    parts = list(track(SeesColours(), iter(video), (SIDE, SIDE), options(8)))
    found = decompressed(best_tracks(parts, limit=10), 24, SIDE, SIDE)
    assert len(found.labels) == 3
    tracks = {tuple(masks.flatten(1).any(1).tolist()) for masks in found.masks}
    assert tracks == {tuple(frame in frames for frame in range(24)) for frames in (range(6), range(24), range(10, 24))}

    again = make_video(24, {0: [*range(6), *range(18, 24)], 1: range(24)})
    found = best_tracks(track(SeesColours(), iter(again), (SIDE, SIDE), options(8)), limit=10)
    assert len(found) == 3  # who comes back after a window is another one
    assert len(best_tracks(track(SeesColours(), iter(again), (SIDE, SIDE), options(8)), limit=2)) == 2


@pytest.mark.parametrize("windows", [1, 2])
def test_tracks_that_are_never_visible_take_no_place(windows):
    masks = torch.zeros(2, 4, 8, 8, dtype=torch.bool)
    masks[1, :, :4] = True
    found = ClipTracks(torch.tensor([0.9, 0.8]), torch.tensor([0, 0]), masks)
    parts = [WindowTracks(4 * number, [2 * number, 2 * number + 1], found) for number in range(windows)]
    assert [one.score for one in best_tracks(parts, limit=1)] == pytest.approx([0.8])
    assert len(best_tracks(parts, limit=2)) == windows


def test_frames_are_read_as_they_are_needed():
    read = []

    def frames():
        for number, frame in enumerate(make_video(100, {0: range(100)})):
            read.append(number)
            yield frame

    first = next(track(SeesColours(), frames(), (SIDE, SIDE), options(10)))
    assert first.tracks.masks.shape[1] == 10
    assert len(read) == 10


@pytest.mark.parametrize("length", [4, 10])
def test_validation_sees_no_more_than_a_window_at_a_time(length):
    video = make_video(length, {colour: range(length) for colour in range(3)})
    size, model = (SIDE, SIDE), SeesColours()
    target = Target(torch.zeros(0), torch.zeros(0, length, 4), size, size)
    batch = VideoStream(iter(video), [target])
    (found,) = DetectionModule(model, options(window=4)).validation_step(batch, 0)
    assert [sorted(one.masks) for one in found] == [list(range(length))] * 3
    assert {tuple(mask["size"]) for one in found for mask in one.masks.values()} == {size}
    assert max(model.clips) == 4


@pytest.mark.parametrize(("length", "expected"), [(3, [3]), (8, [8]), (9, [8, 5]), (12, [8, 8]), (13, [8, 8, 5])])
def test_windows_share_frames(length, expected):
    clips = list(windows(iter(torch.arange(length)), 8, shared=4))
    assert [len(clip) for clip in clips] == expected
    for before, after in pairwise(clips):
        assert torch.equal(before[-SHARED:], after[:SHARED])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_overlaps_are_exact_under_autocast(dtype):
    """Validation runs under it: 70,000 shared pixels would become 70,144, or infinitely many."""
    ours = torch.zeros(1, 1, 300, 300, dtype=torch.bool)
    ours.view(-1)[:70_000] = True
    theirs = torch.ones_like(ours)
    with torch.autocast("cpu", dtype=dtype):
        assert overlaps(ours, theirs).item() == pytest.approx(70_000 / 90_000, rel=1e-6)


def test_overlaps_are_those_of_whole_tracks():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.rand(count, 3, 5, 6, generator=generator) > 0.5 for count in (4, 2))
    theirs[1] = False
    expected = torch.stack([torch.stack([(a & b).sum() / (a | b).sum() for b in theirs]) for a in ours])
    torch.testing.assert_close(overlaps(ours, theirs), expected)
    assert overlaps(theirs[1:], theirs[1:]).item() == 0


def test_tracks_go_on_in_those_of_their_class_at_the_greatest_total_overlap():
    masks = torch.zeros(3, 2, 1, 10, dtype=torch.bool)
    masks[0, ..., :6] = True
    masks[1, ..., :5] = True
    masks[2, ..., 6:] = True
    before = ClipTracks(torch.ones(3), torch.tensor([0, 0, 1]), masks)
    assert sorted(continued(before, before)) == [(0, 0), (1, 1), (2, 2)]
    # The first two exchanged, the third of another class; the frames after the shared ones do not matter.
    after = ClipTracks(torch.ones(3), torch.tensor([0, 0, 0]), torch.cat([masks[[1, 0, 2]], ~masks], 1))
    assert sorted(continued(before, after)) == [(0, 1), (1, 0)]
    assert continued(before, replace(after, labels=after.labels + 2)) == []
    assert continued(before, replace(after, masks=after.masks & (torch.arange(10) < 2))) == []  # too small an overlap
    nothing = ClipTracks(torch.ones(0), torch.zeros(0, dtype=torch.long), masks[:0])
    assert continued(nothing, after) == []
    assert continued(before, nothing) == []
