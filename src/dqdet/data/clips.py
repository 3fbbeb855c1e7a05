"""Data sets of videos, and the clips that training cuts out of them.

A clip goes through the same transforms as an image: its frames are one ``tv_tensors.Video``, so that all of them
are flipped, resized and cropped alike, and each object of each frame in which it is visible is a row of boxes,
labels and masks, like the objects of an image. What the transforms leave of the rows is put together again to
objects with a box and a mask in every frame.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import query_size

from dqdet.config import DataConfig
from dqdet.data.dataset import DetectionDataset, Split
from dqdet.data.transforms import Sample
from dqdet.types import Target


class Clip(Sample):
    """T frames (``image [T, 3, H, W]``) with M boxes, labels and masks: one for each object and frame that shows it."""

    tracks: Tensor  # [M] which object of the video it is
    frames: Tensor  # [M] in which frame of the clip, 0..T-1


def draw_frames(length: int, reference: int, count: int, reach: int, neighbours: int = 0) -> list[int]:
    """The frames of a clip in order: ``reference`` and others, at most ``reach`` frames from it.

    Without ``neighbours`` they are drawn as in Mask2Former for video (Cheng et al., 2021). With them, as in SeqFormer
    (Wu et al., 2022): one frame before and one after the reference, at most ``neighbours`` away (at an end of the video
    the reference once more), and the others from what lies before and after these three, or, if that is too little,
    from everywhere. No frame of what is drawn from is taken twice before all are taken once, which matters for clips of
    more than two frames and for very short videos.
    """
    near = [frame for frame in range(reference - reach, reference + reach + 1) if 0 <= frame < length]
    others = [frame for frame in near if frame != reference] or [reference]
    chosen = [reference]
    if neighbours:
        before, after = (1 + torch.randint(neighbours, (2,))).tolist()
        chosen += [max(0, reference - before), min(length - 1, reference + after)]
        beyond = [frame for frame in near if not chosen[1] <= frame <= chosen[2]]
        others = beyond if len(beyond) >= count - len(chosen) else others
    order = torch.randperm(len(others)).tolist()
    return sorted([*chosen, *(others[order[i % len(others)]] for i in range(count - len(chosen)))])


class VideoDataset(DetectionDataset):
    """Videos with their objects, augmented.

    Items are ``(frames, target)``: frames ``[T, 3, h, w]`` of uint8, and a ``Target`` with boxes ``[N, T, 4]``,
    zero where an object is not visible, and masks ``[N, T, h, w]``. The objects are those that the augmented clip
    shows at all. Training items are clips, a new one in each epoch; validation items are whole videos, without
    masks, which their targets do not need. ``frame`` gives the frames of those one by one.

    A subclass sets ``classes`` and ``category_ids`` and calls ``set_videos``.
    """

    lengths: np.ndarray  # [videos] frames

    def __init__(self, config: DataConfig, split: Split, seed: int) -> None:
        super().__init__(config, split, seed)
        self.clips = config.clips if split == "train" else None

    def set_videos(self, video_ids: Sequence[int], lengths: np.ndarray, aspect_ratios: np.ndarray) -> None:
        """Make the list of items: an item a video, or in training one a frame, with ``clips.every_frame``."""
        self.lengths = lengths
        each_frame = self.clips is not None and self.clips.every_frame
        self.videos = np.repeat(np.arange(len(lengths)), lengths if each_frame else 1)  # [items]
        self.references = np.concatenate([np.arange(length) for length in lengths]) if each_frame else None  # [items]
        self.image_ids = [video_ids[video] for video in self.videos.tolist()]
        self.aspect_ratios = aspect_ratios[self.videos]

    @abstractmethod
    def read_clip(self, video: int, frames: Sequence[int], masks: bool) -> Clip:
        """Some frames of a video (RGB, not augmented) and its objects in them, without crowds; with masks or not."""

    def read(self, index: int) -> Sample:
        video = int(self.videos[index])
        length = int(self.lengths[video])
        if self.clips is None:
            return self.read_clip(video, range(length), masks=False)
        reference = torch.randint(length, ()) if self.references is None else self.references[index]
        options = self.clips
        frames = draw_frames(length, int(reference), options.frames, options.reach, options.neighbours)
        return self.read_clip(video, frames, masks=True)

    def frame(self, video: int, number: int) -> tuple[Tensor, tuple[int, int]]:
        """A frame ``[3, h, w]`` of a validation item, and its height and width before the resize."""
        clip = self.read_clip(video, [number], masks=False)
        height, width = query_size([clip["image"]])
        image = self.transform(clip)["image"]  # [1, 3, h, w]
        return image[0], (height, width)

    def target(self, sample: Sample, original_size: tuple[int, int], image_id: int) -> Target:
        return clip_target(super().target(sample, original_size, image_id), sample)  # type: ignore[arg-type]


def clip_target(rows: Target, clip: Clip) -> Target:
    """The objects of a clip, from a target with one row for each object and frame that shows it."""
    frames = len(clip["image"])
    tracks, objects = clip["tracks"].unique(return_inverse=True)  # [N], [M]

    def stacked(values: Tensor) -> Tensor:  # [M, ...] -> [N, T, ...]
        return values.new_zeros(len(tracks), frames, *values.shape[1:]).index_put((objects, clip["frames"]), values)

    return replace(
        rows,
        labels=rows.labels.new_zeros(len(tracks)).index_put((objects,), rows.labels),
        boxes=stacked(rows.boxes),
        masks=None if rows.masks is None else stacked(rows.masks),
    )
