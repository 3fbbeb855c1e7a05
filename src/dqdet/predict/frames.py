"""Videos: the frames of a file or a folder, and the frames with what was found drawn in as a video file."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import SideData
from PIL import Image, ImageOps

from dqdet.errors import DqdetError
from dqdet.formats.image_files import (
    REPLACE,
    as_rgb,
    count_pages,
    image_files,
    is_image_name,
    opened_image,
    pages,
    read_image,
)

FOLDER_RATE = Fraction(6)  # frames a second of a folder of frames; that of YouTube-VIS
FASTEST = 240  # frames a second that a container may say; above are the units of its times
LARGEST_DENOMINATOR = 65535  # of a rate, in MPEG-4


class Video(ABC):
    """Frames of one size, upright. They are read anew, and one at a time, whenever they are iterated over.

    Attributes:
        name: of the file, without its suffix, or of the folder.
        rate: frames a second, on average.
        length: how many frames there are, as the file says; 0 where it does not.
        size: width and height of all frames.
        file_names: of the frames, where each is a file.

    Raises:
        DqdetError: it cannot be read as a video, or has no frame; when iterated over: a frame is damaged or has
            another size than the first.
    """

    name: str
    rate: Fraction
    length: int
    size: tuple[int, int]
    file_names: list[str] | None = None

    @abstractmethod
    def __iter__(self) -> Iterator[Image.Image]: ...


class VideoFile(Video):
    """A file that FFmpeg can read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.name = file.stem
        with self._opened() as stream:
            rate = said_rate(stream)
            self.length = stream.frames
            first = next(self._decoded(stream), None)
        if first is None:
            raise DqdetError(f"{file}: has no frame; give another video")
        self.size = first.size
        self.rate = rate or self._measured_rate()

    def _measured_rate(self) -> Fraction:
        """Frames a second by the times of all frames, where there are several."""
        times = []
        with self._opened() as stream, suppress(av.FFmpegError):  # up to where it is damaged
            container = stream.container
            assert isinstance(container, av.container.InputContainer)
            for packet in container.demux(stream):
                if packet.pts is not None:
                    times.append(packet.pts * packet.time_base)
        duration = max(times, default=0) - min(times, default=0)
        return (len(times) - 1) / Fraction(duration) if duration else FOLDER_RATE

    @contextmanager
    def _opened(self) -> Iterator[av.VideoStream]:
        try:
            container = av.open(self.file)
        except (av.FFmpegError, OSError) as error:
            raise DqdetError(
                f"{self.file}: cannot be read as a video ({error.strerror}); give a video or an image"
            ) from error
        with container:
            if not container.streams.video:
                raise DqdetError(f"{self.file}: has no pictures, only {_kinds(container)}; give another file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield stream

    def _decoded(self, stream: av.VideoStream) -> Iterator[Image.Image]:
        container = stream.container
        assert isinstance(container, av.container.InputContainer)
        number = 1
        try:
            for frame in container.decode(stream):
                yield upright(frame)
                number += 1
        except av.FFmpegError as error:
            raise DqdetError(
                f"{self.file}: frame {number} cannot be decoded ({error.strerror}); repair the video or cut it there"
            ) from error

    def __iter__(self) -> Iterator[Image.Image]:
        with self._opened() as stream:
            for number, image in enumerate(self._decoded(stream), 1):
                if image.size != self.size:
                    raise DqdetError(
                        f"{self.file}: frame {number} is {_size(image.size)}, the first one {_size(self.size)}; "
                        "convert the video to one size"
                    )
                yield image


class FrameFolder(Video):
    """Pictures of one size."""

    def __init__(self, name: str, files: list[Path]) -> None:
        self.files = files
        self.file_names = [file.name for file in files]
        self.name = name
        self.rate = FOLDER_RATE
        self.length = len(files)
        self.size = read_image(files[0]).size

    def __iter__(self) -> Iterator[Image.Image]:
        for file in self.files:
            image = read_image(file)
            if image.size != self.size:
                raise DqdetError(
                    f"{file}: is {_size(image.size)}, {self.files[0].name} {_size(self.size)}; give frames of one size"
                )
            yield image


class PageFile(Video):
    """The frames of an animation (GIF, APNG, WebP), or the pages of a TIFF."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.name = file.stem
        with opened_image(file, REPLACE) as image:
            numbers = pages(image)
            self.length = len(numbers)
            self.size = as_rgb(image).size
            durations = []  # ms
            with suppress(Exception):  # of Pillow, see opened_image: up to where it is damaged
                for page in numbers:
                    image.seek(page)
                    image.load()  # before, that of a WebP is not known
                    durations.append(image.info.get("duration", 0))
            duration = round(sum(durations))
            self.rate = Fraction(1000 * len(durations), duration) if duration > 0 else FOLDER_RATE

    def __iter__(self) -> Iterator[Image.Image]:
        with opened_image(self.file, REPLACE) as image:
            for page in pages(image):
                image.seek(page)
                frame = as_rgb(image)
                if frame.size != self.size:
                    raise DqdetError(
                        f"{self.file}: page {page + 1} is {_size(frame.size)}, the first one {_size(self.size)}; "
                        "save each page as a file of its own"
                    )
                yield frame


@contextmanager
def video_writer(file: Path, rate: Fraction) -> Iterator[Callable[[Image.Image], None]]:
    """Gives a function that appends a frame to a new video; all frames have the size of the first.

    Args:
        file: of a container that FFmpeg knows by the suffix.
        rate: frames a second.

    Raises:
        OSError: it cannot be written.
    """
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(file, "w") as container:
        stream = container.add_stream(codec, rate=rate.limit_denominator(LARGEST_DENOMINATOR))
        assert isinstance(stream, av.VideoStream)
        stream.pix_fmt = "yuv420p"  # which all players know; it needs even sides

        def append(image: Image.Image) -> None:
            if not stream.codec_context.is_open:
                stream.width, stream.height = (max(2, side // 2 * 2) for side in image.size)
            frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(frame))

        yield append
        container.mux(stream.encode())


def open_video(source: Path) -> Video:
    """A video file, the pictures of a folder in the order of their numbers, or a single picture.

    Raises:
        DqdetError: there is nothing of that.
    """
    if is_video_file(source):
        return PageFile(source) if count_pages(source) else VideoFile(source)
    files = sorted(image_files(source), key=lambda file: natural(file.name))
    return FrameFolder(source.resolve().stem, files)


def is_video_file(source: Path) -> bool:
    """Whether it is a file, but no single picture."""
    if not os.path.isfile(source):
        return False
    count = count_pages(source)
    return count > 1 or (count == 0 and not is_image_name(source))


def natural(name: str) -> list[tuple[str, int]]:
    """A key that sorts the numbers in names by value: 2.png before 10.png."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def said_rate(stream: av.VideoStream) -> Fraction | None:
    """Frames a second, on average, as the container says; None where it does not, or says what cannot be."""
    rate = stream.average_rate or stream.guessed_rate
    return rate if rate and 1 <= rate <= FASTEST else None


def upright(frame: av.VideoFrame) -> Image.Image:
    """A frame as its display matrix says: mirrored, where that turns it over, and rotated."""
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    assert isinstance(matrix, SideData)
    # x' = a x + c y, y' = b x + d y, with y downwards; the other entries move and scale.
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    if a * d < b * c:
        image = ImageOps.mirror(image)  # x becomes -x
        a, b = -a, -b
    return image.rotate(-math.degrees(math.atan2(b, a)), expand=True)  # PIL's angles are counterclockwise


def _kinds(container: av.container.InputContainer) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
