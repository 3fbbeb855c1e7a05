"""Mask2Former for video: Cheng et al., "Mask2Former for Video Instance Segmentation", 2021.

A query is one object of a clip: it reads the cells of all frames together and predicts one class and a mask in every
frame. B clips of T frames; the frames of a clip follow each other in what is computed for each frame alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from dqdet.models.mask2former import Level, Mask2Former
from dqdet.nn.padding import of_frames, resize_padding
from dqdet.nn.position import frame_position
from dqdet.types import Predictions, Target


class VideoMask2Former(Mask2Former):
    """Mask2Former whose cells have a third coordinate, time. The context is pooled over time and space.

    Its parameters are those of the image model, whose weights it starts from.
    """

    def forward_features(self, features: list[Tensor], padding: Tensor, targets: Sequence[Target] = ()) -> Predictions:
        clips = features[0].shape[:2]  # B, T
        features, padding = [x.flatten(0, 1) for x in features], of_frames(padding, clips[1])
        pixels = self.pixels(features, padding)
        contexts = {"backbone": features[-1], "projected": pixels.projected, "memory": pixels.maps[0]}
        context = contexts[self.queries.context].unflatten(0, clips).transpose(1, 2)  # [B, C, T, h, w]
        queries = self.queries(context, resize_padding(padding, features[-1]).unflatten(0, clips))
        levels = [joined(level, clips[1]) for level in self.levels(pixels)]
        return self.decode(queries, levels, pixels.mask_features.unflatten(0, clips))


def joined(level: Level, frames: int) -> Level:
    """The cells of all frames as one level, from those of each frame: ``[B*T, S, ...] -> [B, T*S, ...]``.

    Keys get the encoding of time in addition to that of their place.
    """
    clips = (-1, frames)
    time = frame_position(frames, level.keys.shape[-1], level.keys.device).to(level.keys)  # [T, c]
    return replace(
        level,
        keys=(level.keys.unflatten(0, clips) + time[:, None]).flatten(1, 2),
        values=level.values.unflatten(0, clips).flatten(1, 2),
        padding=level.padding.unflatten(0, clips).flatten(1, 2),
        mask_features=level.mask_features.unflatten(0, clips).transpose(1, 2).flatten(2),  # [B, c, T*S]
    )
