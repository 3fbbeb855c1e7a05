"""Image files, found and opened in one place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS

from dqdet.errors import DqdetError
from dqdet.formats.writing import replacing


@contextmanager
def opened_image(file: str | Path, advice: str, what: str = "an image") -> Iterator[Image.Image]:
    """The image in a file; its pixels are read when they are used, inside the context.

    Args:
        file: its path.
        advice: what to do where it cannot be read, the end of the message.
        what: it should be, for the message.

    Raises:
        DqdetError: it cannot be opened, or its pixels cannot be read.
    """
    try:
        with Image.open(file) as image:
            yield image
    # Which of these Pillow raises depends on the format and on where the file is damaged.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DqdetError(f"{file}: cannot be read as {what} ({error}); {advice}") from error


def read_image(file: str | Path) -> Image.Image:
    """The RGB image in a file, upright.

    Raises:
        DqdetError: there is no such file, it is no image, or it is damaged.
    """
    if not Path(file).is_file():
        raise DqdetError(f"{file}: no such file; give the path of an image")
    with opened_image(file, "replace or remove the file") as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def image_files(source: Path) -> list[Path]:
    """The file itself, or the images in a folder in the order of their names.

    Raises:
        DqdetError: there is no such file or folder, or no image in it.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DqdetError(f"{source}: no such file or folder; give an image, a video or a folder of images")
    files = sorted(file for file in source.iterdir() if is_image_name(file) and file.is_file())
    if not files:
        raise DqdetError(f"{source}: no images in this folder; looked for {', '.join(IMG_EXTENSIONS)}")
    return files


def is_image_name(file: Path) -> bool:
    return file.suffix.lower() in IMG_EXTENSIONS and not file.name.startswith(".")


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
