"""Scenes in motion: the videos of the built-in data set.

A scene is one moment in the life of its objects. Each of them gets a motion that leads through this moment: cars
drive along their lane, boats bob on the water, kites swing in the sky. So the scene still tells where to look for
what, while objects enter and leave the picture and hide one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from dqdet.config import DataConfig
from dqdet.data.clips import Clip, VideoDataset
from dqdet.data.dataset import Split
from dqdet.data.scenes.scene import CLASSES, Scene, SceneObject, draw_scene, render
from dqdet.formats.rle import encode
from dqdet.types import Rle

# Lower edge of the far lane's cars at most, as ``scenes.street`` places them; those below drive to the right.
LANES = 0.9


class Habit(NamedTuple):
    """How the objects of a class move. Lengths in heights of the object, times in lengths of the video."""

    speed: tuple[float, float]  # least and greatest along x
    climb: float  # greatest speed along y
    swing: tuple[float, float]  # greatest amplitude along x and y
    turn: float  # greatest amplitude of the angle, radians
    gait: float  # greatest amplitude of the pose
    frequency: tuple[float, float]  # of swing, turn and gait


HABITS = {
    "person": Habit((0.8, 3.0), 0.0, (0.0, 0.02), 0.02, 1.0, (2.0, 3.0)),
    "car": Habit((4.0, 9.0), 0.0, (0.0, 0.01), 0.0, 0.0, (2.0, 3.0)),
    "sheep": Habit((0.2, 2.5), 0.2, (0.0, 0.03), 0.04, 0.8, (1.0, 2.0)),
    "boat": Habit((0.6, 2.6), 0.0, (0.0, 0.08), 0.12, 0.0, (1.0, 2.0)),
    "kite": Habit((0.0, 1.2), 0.0, (0.6, 0.3), 0.4, 0.8, (0.7, 1.5)),
    "balloon": Habit((0.5, 2.5), 0.5, (0.0, 0.04), 0.05, 0.0, (0.7, 1.2)),
    "plate": Habit((0.0, 0.0), 0.0, (0.0, 0.0), 0.0, 0.0, (1.0, 1.0)),
    "cup": Habit((0.4, 2.5), 0.3, (0.0, 0.0), 0.0, 0.0, (1.0, 1.0)),
}


@dataclass(frozen=True)
class Motion:
    """How one object moves over time (0..1, the whole video). Lengths in 0..1 of the image."""

    moment: float  # at which it is where its description says
    velocity: np.ndarray  # [2]
    swing: np.ndarray  # [2]
    turn: float
    gait: float
    frequency: float
    phase: np.ndarray  # [2] of swing along x; of all else

    def moved(self, thing: SceneObject, time: float) -> SceneObject:
        """``thing``, which is as described at ``moment``, at another time."""
        now, then = (np.sin(2 * np.pi * self.frequency * t + self.phase) for t in (time, self.moment))
        x, y = [thing.x, thing.y] + self.velocity * (time - self.moment) + self.swing * (now - then)
        wave = (now - then)[1]
        pose = 1 - abs((thing.look.pose + self.gait * wave + 1) % 4 - 2)  # turns back at -1 and at 1
        return replace(thing, x=x, y=y, angle=thing.angle + self.turn * wave, look=replace(thing.look, pose=pose))


def draw_motion(random: np.random.Generator, thing: SceneObject) -> Motion:
    """A motion as is usual for the class of ``thing``, in the direction that it faces."""
    habit = HABITS[thing.category]
    speed = -random.uniform(*habit.speed) if thing.mirrored else random.uniform(*habit.speed)
    return Motion(
        moment=random.uniform(),
        velocity=thing.height * np.array([speed, random.uniform(-habit.climb, habit.climb)]),
        swing=thing.height * random.uniform(0.3, 1) * np.array(habit.swing),
        turn=random.uniform(0.3, 1) * habit.turn,
        gait=random.uniform(0.3, 1) * habit.gait,
        frequency=random.uniform(*habit.frequency),
        phase=random.uniform(0, 2 * np.pi, 2),
    )


@dataclass(frozen=True)
class SceneVideo:
    """A scene and the motion of each of its objects."""

    scene: Scene
    motions: list[Motion]

    def at(self, time: float) -> Scene:
        """The scene at a time in 0..1; its objects are the same ones in the same order at any time."""
        things = [motion.moved(thing, time) for thing, motion in zip(self.scene.objects, self.motions, strict=True)]
        grain = self.scene.grain + round(time * 1e6)  # the noise of each frame is its own
        return replace(self.scene, objects=things, grain=grain)


def draw_video(*seed: int) -> SceneVideo:
    """A video of a scene; a pure function of the numbers in ``seed``."""
    scene = draw_scene(*seed)
    for i, thing in enumerate(scene.objects):
        if thing.category == "car":
            scene.objects[i] = replace(thing, mirrored=thing.y + thing.height / 2 < LANES)
    random = np.random.default_rng([*seed, 1])
    return SceneVideo(scene, [draw_motion(random, thing) for thing in scene.objects])


class SceneVideosDataset(VideoDataset):
    """Videos of scenes. A frame is a pure function of (``config.scenes.seed``, split, index, frame).

    With more frames a video is the same at a higher frame rate. Masks and boxes are those of the visible pixels;
    objects that no frame shows are no objects.
    """

    def __init__(self, config: DataConfig, split: Split, seed: int = 0) -> None:
        super().__init__(config, split, seed)
        self.scenes = config.scenes
        self.split_number = ("train", "val").index(split)
        count = self.scenes.train_images if split == "train" else self.scenes.val_images
        self.classes = CLASSES
        self.category_ids = list(range(1, len(CLASSES) + 1))
        self.video_ids = list(range(1, count + 1))
        self.set_videos(self.video_ids, np.full(count, self.scenes.frames), np.ones(count))

    def _drawn(self, video: int, frames: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures ``[T, 3, H, W]`` (uint8), and of all objects visible masks ``[N, T, H, W]`` and labels ``[N]``."""
        drawn = draw_video(self.scenes.seed, self.split_number, video)
        numbers = len(drawn.scene.regions) + torch.arange(len(drawn.scene.objects))
        times = [frame / max(self.scenes.frames - 1, 1) for frame in frames]
        pictures, segments = zip(*(render(drawn.at(time), self.scenes.size) for time in times), strict=True)
        labels = torch.tensor([CLASSES.index(thing.category) for thing in drawn.scene.objects])
        return (
            torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2),
            torch.from_numpy(np.stack(segments)) == numbers[:, None, None, None],
            labels,
        )

    def read_clip(self, video: int, frames: Sequence[int], masks: bool) -> Clip:
        pictures, all_masks, labels = self._drawn(video, frames)
        tracks, positions = all_masks.flatten(2).any(2).nonzero(as_tuple=True)  # [M]
        visible = all_masks[tracks, positions]  # [M, size, size]
        boxes = masks_to_boxes(visible) + torch.tensor([0, 0, 1, 1])  # [M, 4]
        clip: Clip = {
            "image": tv_tensors.Video(pictures),
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=visible.shape[1:]),
            "labels": labels[tracks],
            "tracks": tracks,
            "frames": positions,
        }
        if masks:
            clip["masks"] = tv_tensors.Mask(visible.to(torch.uint8))
        return clip

    def ground_truth(self) -> dict[str, Any]:
        size, length = self.scenes.size, self.scenes.frames
        videos: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for video, video_id in enumerate(self.video_ids):
            names = [f"{video_id}/{frame}.png" for frame in range(length)]
            videos.append({"id": video_id, "height": size, "width": size, "length": length, "file_names": names})
            masks: dict[int, list[Rle | None]] = {}  # by object, a frame each
            for frame in range(length):
                _, drawn, labels = self._drawn(video, [frame])  # [N, 1, size, size]
                visible = drawn.flatten(1).any(1).tolist()  # [N]
                for thing, (rle, shown) in enumerate(zip(encode(drawn[:, 0]), visible, strict=True)):
                    masks.setdefault(thing, []).append(rle if shown else None)
            for thing, of_frames in masks.items():
                if any(of_frames):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "video_id": video_id,
                            "category_id": self.category_ids[int(labels[thing])],
                            "iscrowd": 0,
                            "segmentations": of_frames,
                        }
                    )
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        return {"info": {}, "videos": videos, "annotations": annotations, "categories": categories}
