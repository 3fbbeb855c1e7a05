"""Streams of cameras and of the network: frames that come once, until the stream ends or a person ends it."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from types import FrameType

import av
from PIL import Image

from dqdet.errors import DqdetError
from dqdet.formats.remote import public
from dqdet.predict.addresses import CAMERA
from dqdet.predict.frames import Video, said_rate, upright

WAIT = 10.0  # seconds without anything that a stream may take to open, or between two frames
RATE = Fraction(25)  # frames a second, of streams that do not say it, or say what cannot be


class Stream(Video):
    """What a camera or an address sends; it can be iterated over once, which Ctrl-C or SIGTERM end in order.

    Damaged packets, such as those before the first key frame, are left out.

    Args:
        source: as `is_stream` knows it.

    Raises:
        DqdetError: there is no such stream, or nothing comes; when iterated over: it breaks off, nothing comes, or the
            size of frames changes.
    """

    def __init__(self, source: str) -> None:
        self.address = public(source)
        self.name = re.sub(r"\W+", "-", self.address.partition("?")[0].rpartition("//")[2]).strip("-")
        self.length = 0
        options = {"rtsp_transport": "tcp"} if source.lower().startswith("rtsp") else {}  # which loses no packets
        try:
            place, form = _place(source)
            self.container = av.open(place, format=form, options=options, timeout=(WAIT, WAIT))
        except (av.FFmpegError, OSError) as error:
            raise DqdetError(
                f"{self.address}: no stream ({_reason(error)}); check address, connection and camera"
            ) from error
        if not self.container.streams.video:
            self.container.close()
            raise DqdetError(f"{self.address}: has no pictures; give another stream")
        stream = self.container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate = said_rate(stream) or RATE
        self.coming = self._decoded(stream)
        first = next(self.coming, None)
        if first is None:
            raise DqdetError(f"{self.address}: ended before its first frame; give another stream")
        self.size = first.size
        self.coming = chain([first], self.coming)

    def _decoded(self, stream: av.VideoStream) -> Iterator[Image.Image]:
        with self.container:
            try:
                for packet in self.container.demux(stream):
                    try:
                        frames = packet.decode()
                    except av.InvalidDataError:
                        continue
                    yield from map(upright, frames)
            except av.FFmpegError as error:
                raise DqdetError(f"{self.address}: broke off ({_reason(error)})") from error

    def __iter__(self) -> Iterator[Image.Image]:
        with _stopping() as stopped:
            for image in self.coming:
                if image.size != self.size:
                    raise DqdetError(f"{self.address}: changed from {self.size} to {image.size} pixels")
                yield image
                if stopped():
                    return


def _place(source: str) -> tuple[str, str | None]:
    """What FFmpeg opens, and as which format."""
    camera = CAMERA.fullmatch(source)
    if camera is None:
        return source, None
    if sys.platform != "linux":
        raise DqdetError(f"{source}: cameras are read on Linux alone; give the address of a stream")
    return f"/dev/video{camera['number']}", "v4l2"


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError | TimeoutError):
        return f"nothing came for {WAIT:g} s"
    return str(getattr(error, "strerror", None) or error)


@contextmanager
def _stopping() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came, of which the second one interrupts as ever."""
    came = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield lambda: came
    finally:
        restore()
