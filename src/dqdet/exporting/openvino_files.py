"""OpenVINO's own files, a pair of ``.xml`` and ``.bin``, made from ONNX."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock

import numpy as np
from torch.export import ExportedProgram

from dqdet.exporting import onnx_files

TEXTS = "dqdet"  # the entry of the file's information that says what it is


def write(program: ExportedProgram, outputs: Sequence[str], texts: Mapping[str, str], file: Path) -> None:
    """Write a traced network; arguments as of `dqdet.exporting.onnx_files.write`."""
    import openvino

    with TemporaryDirectory() as folder:
        onnx = Path(folder) / "network.onnx"
        onnx_files.write(program, outputs, {}, onnx, whole_images=False)
        model = openvino.convert_model(onnx)
        model.set_rt_info(json.dumps(dict(texts)), [TEXTS])
        openvino.save_model(model, file, compress_to_fp16=False)


class Session:
    """An open file."""

    def __init__(self, file: Path) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(file)
        told = model.has_rt_info([TEXTS])
        self.texts: Mapping[str, str] = json.loads(model.get_rt_info([TEXTS]).value) if told else {}
        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = core.compile_model(model, "CPU", precision)
        # A request cannot be used by two threads, and two that use the library for the first time at the same moment
        # may wait for each other forever.
        self.one_at_a_time = Lock()

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        with self.one_at_a_time:
            return [*self.compiled({"images": images, "sizes": sizes}).values()]
