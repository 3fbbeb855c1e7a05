"""ONNX, for ONNX Runtime and what else reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

from dqdet.exporting.tracing import INPUTS


def write(
    program: ExportedProgram,
    outputs: Sequence[str],
    texts: Mapping[str, str],
    file: Path,
    whole_images: bool = True,
) -> None:
    """Write a traced network.

    Args:
        program: of a `Network`.
        outputs: their names.
        texts: what the file says of itself.
        file: to write.
        whole_images: whether sizes may be left out, which means whole images.
    """
    import onnx_ir
    import torch

    made = torch.onnx.export(
        program, (), dynamo=True, input_names=INPUTS, output_names=list(outputs), optimize=True, verbose=False
    )
    assert made is not None
    made.model.metadata_props.update(texts)
    if whole_images:  # by sizes that are larger than any image
        sizes = next(value for value in made.model.graph.inputs if value.name == "sizes")
        sizes.const_value = onnx_ir.tensor(np.full((1, 2), 2**31 - 1), name="sizes")
        made.model.graph.register_initializer(sizes)
    made.save(file)


class Session:
    """An open file."""

    def __init__(self, file: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(file, options, providers=onnxruntime.get_available_providers())

    @property
    def texts(self) -> Mapping[str, str]:
        return self.session.get_modelmeta().custom_metadata_map

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        return self.session.run(None, {"images": images, "sizes": sizes})
