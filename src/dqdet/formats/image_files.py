"""Pictures, read in one place and in one way, whether they are for training, for evaluation or for use.

- All become RGB of 8 bits a channel. What is transparent keeps its colour. Whole numbers of more than 8 bits and
  fractions are scaled by the range that they are in: that of 8, 12 or 16 bits, or 0..1 for fractions.
- The orientation in EXIF turns them upright. Where a data set records a size that is only that of the picture as
  stored, it stays as stored, because that is what was annotated.
- Only regular files are read: pipes and devices may never end.
- A file of several frames or pages (GIF, APNG, WebP, TIFF) is no picture, but can be used as a video. What accompanies
  a picture, such as a preview, does not count.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2.functional import pil_to_tensor

from dqdet.errors import DqdetError
from dqdet.formats.folders import has_suffix
from dqdet.formats.writing import replacing

Size = tuple[int, int]  # width, height

REPLACE = "replace or remove the file"

# Files in folders and shards that are taken for pictures; of other formats only those that are named one by one.
IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif", ".jp2", ".jpe", ".mpo")

ORIENTATION = 0x0112  # the tag of EXIF
AS_STORED = 1
UPRIGHT = {  # what turns a picture with this orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TURNED: dict[int, Callable[[Tensor], Tensor]] = {  # the same of pixels [3, H, W]
    AS_STORED: lambda pixels: pixels,
    2: lambda pixels: pixels.flip(2),
    3: lambda pixels: pixels.flip(1, 2),
    4: lambda pixels: pixels.flip(1),
    5: lambda pixels: pixels.transpose(1, 2),
    6: lambda pixels: pixels.transpose(1, 2).flip(2),
    7: lambda pixels: pixels.transpose(1, 2).flip(1, 2),
    8: lambda pixels: pixels.transpose(1, 2).flip(1),
}
BACK = {**UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # and what undoes that
PARTS = (8, 4, 2)  # of height and width, that decoders of JPEG can make alone
SIDEWAYS = 5  # the first orientation that exchanges width and height

WHOLE_RANGES, FRACTION_RANGES = (255, 4095, 65535), (1, 255, 4095, 65535)  # greatest values
ACCOMPANIED = ("MPO", "PSD")  # formats whose other pictures are previews and layers of the first
SUBFILE_TYPE, REDUCED_OR_MASK = 254, 0b101  # of a page in a TIFF

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Encoded(NamedTuple):
    """An image file in memory; its text is what messages call it."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


@contextmanager
def opened_image(file: str | Path | Encoded, advice: str, what: str = "an image") -> Iterator[Image.Image]:
    """The image in a file; its pixels are read when they are used, inside the context.

    Args:
        file: its path, or what is in it.
        advice: what to do where it cannot be read, the end of the message.
        what: it should be, for the message.

    Raises:
        DqdetError: it is no regular file, it cannot be opened, or its pixels cannot be read.
    """
    if not isinstance(file, Encoded) and (reason := irregular(file)):
        raise DqdetError(f"{file}: {reason}; {advice}")
    try:
        with Image.open(BytesIO(file.content) if isinstance(file, Encoded) else file) as image:
            yield image
    except DqdetError:
        raise
    # What damage makes the decoders raise depends on the format and the place: OSError, SyntaxError, KeyError, ...
    except Exception as error:
        raise DqdetError(f"{file}: cannot be read as {what} ({one_line(error)}); {advice}") from error


def read_image(
    file: str | Path | Encoded,
    advice: str = REPLACE,
    recorded: Size | None = None,
    in_doubt: Callable[[], None] = lambda: None,
) -> Image.Image:
    """The picture in a file, as this module's docstring says.

    Args:
        file: its path, or what is in it.
        advice: what to do where it cannot be read, the end of the message.
        recorded: what a data set says about its size, which may be that of the picture as stored.
        in_doubt: is called where the orientation matters, but both sizes are the recorded one.

    Raises:
        DqdetError: there is no such file, it is no image, it is damaged, or it has several frames or pages.
    """
    with opened_image(file, advice) as image:
        return as_rgb(image, upright=_is_wanted_upright(image, file, recorded, in_doubt))


def read_pixels(
    file: str | Path,
    advice: str = REPLACE,
    recorded: Size | None = None,
    in_doubt: Callable[[], None] = lambda: None,
) -> Tensor:
    """The pixels of `read_image`, ``[3, H, W]`` uint8, in less time where they are those of a JPEG."""
    return read_shrunk(file, None, advice, recorded, in_doubt).pixels


class Decoded(NamedTuple):
    """Pixels, as they were decoded."""

    pixels: Tensor  # [3, h, w] uint8
    size: Size  # of the whole picture
    part: int  # pixel x is made of those from part * x on, within a pixel if turned; h and w are rounded up


def read_shrunk(
    file: str | Path | Encoded,
    least: int | None,
    advice: str = REPLACE,
    recorded: Size | None = None,
    in_doubt: Callable[[], None] = lambda: None,
) -> Decoded:
    """The picture of `read_image`, of which a large JPEG is decoded in part.

    It becomes an eighth, a quarter or a half as high and wide, the least that leaves ``least`` pixels of the shorter
    side: its blocks of 8 x 8 pixels are made of frequencies, and the high ones are not computed. None: it is whole.
    """
    with opened_image(file, advice) as image:
        upright = _is_wanted_upright(image, file, recorded, in_doubt)
        whole = sizes(image)[upright]
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            width, height = image.size
            part = next((p for p in PARTS if least is not None and min(width, height) // p >= least), 1)
            if part > 1:
                image.draft(None, (width // part, height // part))
                return Decoded(pil_to_tensor(as_rgb(image, upright)), whole, part)
            # Damage that this decoder does not read past is Pillow's to judge, below.
            with suppress(RuntimeError):
                pixels = decode_jpeg(_content(file), ImageReadMode.RGB)
                return Decoded(TURNED[orientation(image)](pixels) if upright else pixels, whole, 1)
        return Decoded(pil_to_tensor(as_rgb(image, upright)), whole, 1)


def _content(file: str | Path | Encoded) -> Tensor:
    """All bytes of a file."""
    if isinstance(file, Encoded):
        return torch.frombuffer(bytearray(file.content), dtype=torch.uint8)
    return torch.from_numpy(np.fromfile(file, dtype=np.uint8))


def _is_wanted_upright(
    image: Image.Image, file: str | Path | Encoded, recorded: Size | None, in_doubt: Callable[[], None]
) -> bool:
    """Whether the picture in a file is to be turned as EXIF says; raises DqdetError if it is one of several."""
    if (count := len(pages(image))) > 1:
        raise DqdetError(
            f"{file}: has {count} frames or pages, of which only one would be used; save each as a file of its "
            "own, or give the file alone to `dqdet predict`, which takes it as a video"
        )
    stored, upright = sizes(image)
    if recorded == stored == upright and orientation(image) != AS_STORED:
        in_doubt()
    return recorded != stored or recorded == upright


def as_rgb(image: Image.Image, upright: bool = True) -> Image.Image:
    """A copy in RGB of 8 bits a channel, upright or as stored, without anything but its pixels.

    Raises:
        ValueError: values have no range that is known; and what Pillow raises, if it is not loaded yet.
    """
    turn = orientation(image)
    by_pillow = _turned_when_loaded(image)
    image.load()
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_of_eight_bits(np.asarray(image)))
    elif image.mode == "PA" or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
    rgb = image.convert("RGB")
    if turn != AS_STORED and upright != by_pillow:
        rgb = rgb.transpose((UPRIGHT if upright else BACK)[turn])
    rgb.info = {}  # of the file: its orientation, colour profile, compression
    return rgb


def _of_eight_bits(values: np.ndarray) -> np.ndarray:
    """Numbers ``[H, W]``, scaled to 0..255 from the smallest range that has them all."""
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError("has values that are negative or not finite")
    ranges = FRACTION_RANGES if values.dtype.kind == "f" else WHOLE_RANGES
    greatest = values.max()
    top = next((top for top in ranges if greatest <= top), None)
    if top is None:
        raise ValueError(f"has values up to {greatest:g}; at most {ranges[-1]} are scaled")
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


def orientation(image: Image.Image) -> int:
    """1..8 as in EXIF, 1 for upright."""
    value = image.getexif().get(ORIENTATION)
    return value if value in UPRIGHT else AS_STORED


def sizes(image: Image.Image) -> tuple[Size, Size]:
    """The size as stored, and that of the upright picture; of an image whose pixels are not read yet."""
    turned = image.size[::-1] if orientation(image) >= SIDEWAYS else image.size
    return (turned, image.size) if _turned_when_loaded(image) else (image.size, turned)


def _turned_when_loaded(image: Image.Image) -> bool:
    return image.format == "TIFF"  # by Pillow itself, which has the size of the upright picture from the start


def pages(image: Image.Image) -> list[int]:
    """The numbers of the frames or pages of a file, without those that accompany a picture."""
    count = 1 if image.format in ACCOMPANIED else getattr(image, "n_frames", 1)
    if image.format != "TIFF" or count == 1:
        return list(range(count))
    kinds = []
    for page in range(count):
        image.seek(page)
        kinds.append(image.tag_v2.get(SUBFILE_TYPE, 0))  # type: ignore[attr-defined]
    image.seek(0)
    return [page for page, kind in enumerate(kinds) if not kind & REDUCED_OR_MASK]


def count_pages(file: Path) -> int:
    """How many frames or pages a file has; 0 where it is no image that can be read."""
    try:
        with opened_image(file, REPLACE) as image:
            image.load()  # Pillow knows formats, among them MPEG, that it cannot read
            return len(pages(image))
    except DqdetError:
        return 0


def image_files(source: Path) -> list[Path]:
    """The file itself, or the images in a folder in the order of their names.

    What has the name of an image but is no regular file is among them, so that reading it says so.

    Raises:
        DqdetError: there is no such file or folder, or no image in it.
    """
    if os.path.isdir(source):
        try:
            files = sorted(file for file in source.iterdir() if is_image_name(file) and not file.is_dir())
        except OSError as error:
            raise DqdetError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
        if not files:
            raise DqdetError(f"{source}: no images in this folder; looked for {', '.join(IMAGE_SUFFIXES)}")
        return files
    if reason := irregular(source):
        raise DqdetError(
            f"{source}: {reason.replace('file', 'file or folder')}; give an image, a video or a folder of images"
        )
    return [source]


def is_image_name(file: Path) -> bool:
    return has_suffix(file, IMAGE_SUFFIXES)


def irregular(file: str | Path) -> str | None:
    """Why a path is not that of a regular file, or None."""
    try:
        mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "no such file"
    except (OSError, ValueError) as error:
        return f"cannot be read ({one_line(error)})"
    return None if stat.S_ISREG(mode) else f"is {KINDS.get(stat.S_IFMT(mode), 'something else')}, no regular file"


def one_line(error: Exception) -> str:
    """The message of an exception that others raise, for one of ours."""
    if isinstance(error, UnidentifiedImageError):  # that of Pillow has the name again, or the address of an object
        return "in no format that is known"
    return " ".join(str(error).split()) or type(error).__name__


def write_image(file: Path, image: Image.Image) -> None:
    """Write a picture in the format of the file's suffix, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    # Encoded first: Pillow does not notice when the disk takes only a part of the last bytes.
    content = BytesIO()
    image.save(content, Image.registered_extensions()[file.suffix.lower()], quality=92)  # of formats that have it
    with replacing(file) as unfinished:
        unfinished.write_bytes(content.getbuffer())
