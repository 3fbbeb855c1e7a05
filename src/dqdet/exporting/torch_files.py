"""Programs of `torch.export`, for PyTorch without the code of dqdet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

TEXTS = "dqdet.json"  # the member of the archive that says what the file is


def write(program: ExportedProgram, outputs: Sequence[str], texts: Mapping[str, str], file: Path) -> None:
    """Write a traced network; arguments as of `dqdet.exporting.onnx_files.write`."""
    torch.export.save(program, file, extra_files={TEXTS: json.dumps(dict(texts))})


class Session:
    """An open file."""

    def __init__(self, file: Path) -> None:
        extra = {TEXTS: ""}
        # Guards are of the size that it was traced with, such as whether a map has an even number of rows.
        self.module = torch.export.load(file, extra_files=extra).module(check_guards=False)
        self.texts: Mapping[str, str] = json.loads(extra[TEXTS] or "{}")

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        with torch.inference_mode():
            return [found.numpy() for found in self.module(torch.from_numpy(images), torch.from_numpy(sizes))]
