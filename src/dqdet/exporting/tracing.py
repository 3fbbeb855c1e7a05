"""A model as a program of PyTorch's export, which all formats are written from."""

from __future__ import annotations

import warnings

import torch
from torch.export import Dim, ExportedProgram

from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.exporting.network import Network
from dqdet.models.detector import Detector

INPUTS = ["images", "sizes"]
LEAST_SIDE = 256  # of images to trace with: a map of one row would be taken for one that always has one


def trace(network: Network, model: Detector, config: Config, size: tuple[int, int] | None) -> ExportedProgram:
    """The network for batches of any number of images, of one size or any.

    Raises:
        DqdetError: the model cannot take images of this size.
    """
    example = examples(model, config, size)
    if size is not None:
        try:
            with torch.inference_mode():
                network(*(x[:1] for x in example))
        except (DqdetError, ValueError, RuntimeError) as error:
            raise DqdetError(f"--size {size[0]}x{size[1]}: the model cannot take such images ({error})") from error
    batch, *sides = (Dim.DYNAMIC for _ in range(3))
    images: dict[int, object] = {0: batch}
    if config.data.task == "video":
        images[1] = Dim.DYNAMIC
    if size is None:
        axes = example[0].dim()
        images |= {axes - 2: sides[0], axes - 1: sides[1]}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(network, example, dynamic_shapes=(images, {0: batch}), strict=False)


def examples(model: Detector, config: Config, size: tuple[int, int] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images (clips of three frames) and their sizes to trace a network with, as large as the model knows them."""
    if size is None:
        side = max(LEAST_SIDE, *(config.data.val_size or (config.data.val_resize,)))
        side = -(-side // 64) * 64
        size = side, side + 64 * model.divisor
    frames = (3,) if config.data.task == "video" else ()
    images = torch.zeros(2, *frames, 3, *size, dtype=torch.uint8)
    return images, torch.tensor([size, size])
