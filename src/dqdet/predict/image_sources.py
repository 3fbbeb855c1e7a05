"""Images in all forms that a predictor takes: files, addresses, bytes, arrays, tensors, and those of Pillow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dqdet.errors import DqdetError, value_text
from dqdet.formats.image_files import Encoded, as_rgb, one_line, read_image
from dqdet.formats.remote import public
from dqdet.predict.addresses import fetch, is_download

if TYPE_CHECKING:
    from typing_extensions import TypeIs

ImageSource = str | Path | Image.Image | np.ndarray | Tensor | bytes | bytearray | IO[bytes]
FORMS = "a path or address, bytes, a file object, a PIL image, an array or a tensor, or a list of these"


def is_image(source: object) -> TypeIs[ImageSource]:
    """Whether it is one image in any of the forms that a predictor takes, not a list of them."""
    forms = str | Path | Image.Image | np.ndarray | Tensor | bytes | bytearray
    return isinstance(source, forms) or hasattr(source, "read")


def as_images(sources: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    """A list of one image, or the images that were given as several; raises DqdetError for what is neither."""
    if is_image(sources):
        return [sources]
    if not isinstance(sources, Iterable) or isinstance(sources, Mapping):
        raise DqdetError(f"{value_text(sources)}: is no image; give {FORMS}")
    return sources


def as_image(source: ImageSource) -> Image.Image:
    """An RGB image from any of the forms that a predictor takes.

    Raises:
        DqdetError: it is no image, has no pixels, or cannot be read or fetched; an array is not ``[H, W, 3]`` of uint8,
            or a tensor not ``[3, H, W]`` of uint8 or of numbers in 0..1.
    """
    if not is_image(source):
        raise DqdetError(f"{value_text(source)}: is no image; give {FORMS}")
    image = _as_image(source)
    if 0 in image.size:
        raise DqdetError(f"an image of {image.width} x {image.height} pixels is empty; leave it out")
    return image


def _as_image(source: ImageSource) -> Image.Image:
    if isinstance(source, str) and is_download(source):
        with TemporaryDirectory() as folder:
            return read_image(Encoded(public(source), fetch(source, Path(folder) / "fetched").read_bytes()))
    if isinstance(source, str | Path):
        return read_image(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if not isinstance(source, np.ndarray | Image.Image):
        return _from_bytes(bytes(source) if isinstance(source, bytes | bytearray) else _content(source))
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise DqdetError(
                f"an image array has shape {list(source.shape)} and type {source.dtype}; "
                "give one of shape [H, W, 3] and type uint8, RGB"
            )
        return Image.fromarray(source)
    return _from_pillow(source, getattr(source, "filename", "") or "a PIL image")


def _content(file: IO[bytes]) -> object:
    """All that a file object gives; raises DqdetError where it gives nothing, such as a closed one."""
    try:
        return file.read()
    except (OSError, ValueError) as error:
        raise DqdetError(f"a file object cannot be read ({error}); open it again") from error


def _from_pillow(image: Image.Image, name: str) -> Image.Image:
    try:
        return as_rgb(image)
    except Exception as error:  # of Pillow, see opened_image
        raise DqdetError(f"{name}: cannot be read as an image ({one_line(error)}); give another one") from error


def _from_tensor(image: Tensor) -> Image.Image:
    # Others have no numbers, or not all of them.
    shaped = image.dim() == 3 and len(image) == 3 and image.layout == torch.strided and not image.is_meta
    if shaped and image.is_floating_point() and image.numel() and image.min() >= 0 and image.max() <= 1:
        image = (image.detach() * 255).round().to(torch.uint8)
    if not shaped or image.dtype != torch.uint8:
        raise DqdetError(
            f"an image tensor has shape {list(image.shape)} and type {image.dtype}; give one of shape [3, H, W], RGB, "
            "of uint8 or of floating-point numbers in 0..1"
        )
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())  # [H, W, 3]


def _from_bytes(content: object) -> Image.Image:
    if not isinstance(content, bytes):
        raise DqdetError(f"a file object gives {type(content).__name__}, no bytes; open the file with mode 'rb'")
    return read_image(Encoded(f"{len(content)} bytes", content), "give other ones")
