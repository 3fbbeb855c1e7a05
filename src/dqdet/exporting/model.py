"""An exported file in use: it predicts batches as the model did that it was exported from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from dqdet.config import Config, Overrides, override_some, parse_overrides
from dqdet.errors import DqdetError, UnfitImage, lack_of_memory
from dqdet.exporting.formats import FORMATS, check_installed
from dqdet.exporting.meaning import Meaning, outputs
from dqdet.formats.image_files import one_line
from dqdet.nn.padding import valid_sizes
from dqdet.runs.folder import PREPARED
from dqdet.types import Candidates, Masks, Predictions

# What ONNX Runtime and OpenVINO say, in exceptions of their own, where there is not enough memory.
NO_MEMORY = re.compile(r"failed to allocate|out of memory|bad[ _]alloc", re.I)


class Session(Protocol):
    """An open file of one runtime."""

    @property
    def texts(self) -> Mapping[str, str]:
        """What the file says of itself."""

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        """The outputs of the network, in order."""


@dataclass
class GivenMasks(Masks):
    """Masks that are there already: the embedding of a query is its mask, ``[L, B, Q, h, w]``; features are empty."""

    def of(self, layer: int | Tensor, image: int, queries: Tensor) -> Tensor:
        return self.embeddings[layer, image, queries]

    def chosen(self, queries: Tensor) -> Tensor:
        return torch.stack([masks[of_image] for masks, of_image in zip(self.embeddings[0], queries, strict=True)])


class FullMasks(GivenMasks):
    """The same, of pixels."""

    stride = 1


class ExportedModel(nn.Module):
    """A `dqdet.types.BatchModel` without parameters, which runs on the CPU, or where its runtime does.

    Args:
        file: written by `dqdet.export`.

    Raises:
        DqdetError: there is no such file, it is damaged or not from dqdet, or its runtime is not installed.
    """

    def __init__(self, file: Path):
        super().__init__()
        self.file = file
        self.session = open_session(file)
        self.meaning = Meaning.from_text(self.session.texts, str(file))
        self.config = self.meaning.config

    def refuse_changes(self, precision: str, compiled: bool) -> None:
        """Raise DqdetError if another precision or a compilation is asked for, which are made by the export."""
        if precision != "fp32" or compiled:
            given = f"precision={precision}" if precision != "fp32" else "compile"
            raise DqdetError(f"{given}: {self.file} is what it was exported to; `dqdet export` has --half")

    def configured(self, overrides: Overrides, allowed: Sequence[str], reason: str) -> Config:
        """Its configuration with overrides, as `override_some`.

        Raises:
            DqdetError: as there, or the network has been made for another size or fewer objects.
        """
        sizes = [name for name in parse_overrides(overrides) if name in PREPARED]
        if sizes and self.meaning.size is not None:
            height, width = self.meaning.size
            raise DqdetError(
                f"{sizes[0]}: {self.file} takes images of {height}x{width} pixels; export with another --size"
            )
        config = override_some(self.config, overrides, allowed, reason)
        limit, most = config.inference.limit, self.config.inference.limit
        if limit > most and "scores" in outputs(config):
            raise DqdetError(
                f"inference.limit={limit}: {self.file} selects {most} objects; ask for no more, or load the run"
            )
        return config

    def forward(self, images: Tensor, padding: Tensor) -> Predictions | Candidates:
        size = (images.shape[-2], images.shape[-1])
        if self.meaning.size not in (None, size):
            height, width = self.meaning.size or size
            raise UnfitImage(
                f"{self.file}: takes images of {height}x{width} pixels, not of {size[0]}x{size[1]}; export it with "
                "--dynamic"
            )
        sizes = valid_sizes(padding).flip(-1).cpu()  # [B, 2]
        try:
            arrays = self.session.run(images.cpu().numpy(), sizes.numpy())
        except Exception as error:  # each runtime has its own
            if lack_of_memory(error) or NO_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            raise UnfitImage(
                f"{self.file}: fails on images of {size[0]}x{size[1]} pixels ({one_line(error)})"
            ) from error
        names = outputs(self.config)
        found = {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}
        masks = None
        if "masks" in found:
            kind = FullMasks if self.meaning.masks == "full" else GivenMasks
            masks = kind(found["masks"][None], found["masks"].new_empty(0))
        if "logits" in found:
            logits = found["logits"]
            return Predictions(logits[None], None, {"exported": logits.shape[1]}, masks)
        boxes = box_convert(found["boxes"], "xyxy", "cxcywh") / sizes.flip(-1).repeat(1, 2)[:, None]
        return Candidates(found.get("class_scores", found["scores"]), found["labels"], boxes[None], masks)


def open_session(file: Path) -> Session:
    """Raises DqdetError: there is no such file, it is damaged, or its runtime is not installed."""
    if not file.is_file():
        raise DqdetError(f"{file}: no such file")
    kind = next(one for one in FORMATS.values() if one.suffix == file.suffix)
    check_installed(str(file), kind, kind.opening)
    module = import_module(f"dqdet.exporting.{kind.module}")
    try:
        return module.Session(file)
    except Exception as error:  # whatever a runtime finds wrong with a file
        raise DqdetError(f"{file}: damaged, cut short, or not of this format ({error}); export it again") from error
