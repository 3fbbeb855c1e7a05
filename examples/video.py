"""Tracks in a video: train a small Mask2Former on generated videos, then follow objects through a new one.

    python examples/video.py --out FOLDER [--video FILE] [--preset scenes_tiny_video] [OPTION=VALUE ...]

Without FILE a video is drawn that no training saw.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from torchvision.transforms.v2.functional import to_pil_image

import dqdet
from dqdet.config import Config, parse_overrides
from dqdet.data import open_dataset
from dqdet.predict.frames import video_writer
from dqdet.predict.sources import predict


def draw_video(config: Config, file: Path) -> None:
    """The first video of the validation split."""
    frames, _ = open_dataset(config.data, "val")[0]  # [T, 3, H, W]
    with video_writer(file, Fraction(5)) as append:
        for frame in frames:
            append(to_pil_image(frame))


def main(arguments: Sequence[str] | None = None) -> Path:
    """The folder with the run, and in ``found`` the video with its tracks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/video"))
    parser.add_argument("--video", type=Path)
    parser.add_argument("--preset", default="scenes_tiny_video")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    given = parser.parse_args(arguments)

    run = dqdet.train(given.preset, out=given.out / "run", **parse_overrides(given.options))
    metrics = dqdet.evaluate(run)
    predictor = dqdet.load(run)
    video = given.video
    if video is None:
        video = given.out / "video.mp4"
        draw_video(predictor.config, video)
    predict(predictor, [video], given.out / "found", threshold=0.3, say=print)
    print(f"AP of tracks {metrics['AP']:.3f}; one colour a track in {given.out / 'found'}")
    return given.out


if __name__ == "__main__":
    main()
