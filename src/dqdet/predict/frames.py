"""Videos: the frames of a file or a folder, and the frames with what was found drawn in as a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from PIL import Image

from dqdet.errors import DqdetError
from dqdet.formats.image_files import image_files, is_image_name, read_image

FOLDER_RATE = Fraction(6)  # frames a second of a folder of frames; that of YouTube-VIS
LARGEST_DENOMINATOR = 65535  # of a rate, in MPEG-4


class VideoFile:
    """The frames of a video file, upright. They are decoded anew, and one at a time, whenever they are iterated over.

    Attributes:
        name: of the file, without its suffix.
        rate: frames a second, on average.
        length: how many frames there are, as the file says; 0 where it does not.
        size: width and height of all frames.

    Raises:
        DqdetError: it cannot be read as a video, or has no frame; when iterated over: a frame is damaged or has
            another size than the first.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.name = file.stem
        with self._opened() as stream:
            self.rate = stream.average_rate or stream.guessed_rate or FOLDER_RATE
            self.length = stream.frames
            first = next(self._decoded(stream), None)
        if first is None:
            raise DqdetError(f"{file}: has no frame; give another video")
        self.size = first.size

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
                yield frame.to_image().rotate(frame.rotation, expand=True)
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


class FrameFolder:
    """Pictures of one size as the frames of a video; otherwise as `VideoFile`."""

    def __init__(self, name: str, files: list[Path]) -> None:
        self.files = files
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
                stream.width, stream.height = image.width // 2 * 2, image.height // 2 * 2
            frame = av.VideoFrame.from_image(image.crop((0, 0, stream.width, stream.height)))
            container.mux(stream.encode(frame))

        yield append
        container.mux(stream.encode())


def open_video(source: Path) -> VideoFile | FrameFolder:
    """A video file, the pictures of a folder in the order of their names, or a single picture.

    Raises:
        DqdetError: there is nothing of that.
    """
    return VideoFile(source) if is_video_file(source) else FrameFolder(source.resolve().stem, image_files(source))


def is_video_file(source: Path) -> bool:
    """Whether it is a file, but no picture."""
    if not source.is_file() or is_image_name(source):
        return False
    try:
        read_image(source)
    except DqdetError:
        return True
    return False


def _kinds(container: av.container.InputContainer) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "nothing"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
