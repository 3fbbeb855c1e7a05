"""Reads files of published weights without executing anything that they name."""

from __future__ import annotations

import argparse
import io
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray, numeric
from safetensors.torch import load_file
from torch import Tensor

from dqdet.errors import DqdetError
from dqdet.weights.renaming import State


def read_checkpoint(file: Path) -> tuple[State, dict[str, Any]]:
    """The parameters in a file, and the arguments of the training that the official code keeps beside them.

    Args:
        file: ``.safetensors``; ``.pkl``, plain pickles as detectron2 publishes; anything else as PyTorch saves it.

    Raises:
        DqdetError: it is damaged, has no parameters, or reading it would execute code.
    """
    try:
        content = _content(file)
        state = content.get("model", content) if isinstance(content, dict) else {}
        state = {name: _tensor(value) for name, value in state.items()} if isinstance(state, dict) else {}
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise DqdetError("damaged, or not a checkpoint of PyTorch") from error
        raise DqdetError(
            f"refused, because reading it would execute code ({code[1]}); get it as plain tensors"
        ) from error
    except Exception as error:  # whatever reading damaged bytes brings
        raise DqdetError(f"damaged or cut short ({type(error).__name__}); get it again") from error
    if not state or not all(isinstance(name, str) and _is_plain(tensor) for name, tensor in state.items()):
        raise DqdetError("not a checkpoint of a detector: neither parameters nor an entry 'model' of them")
    arguments = content.get("args")
    return state, vars(arguments) if isinstance(arguments, argparse.Namespace) else {}


def _content(file: Path) -> Any:
    match file.suffix:
        case ".safetensors":
            return load_file(file)
        case ".pkl":
            with file.open("rb") as opened:
                return _PlainUnpickler(opened, encoding="latin1").load()
        case _:
            with torch.serialization.safe_globals([argparse.Namespace]):
                return torch.load(file, map_location="cpu", weights_only=True)


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_meta or value.is_complex())
    )


def _tensor(value: Any) -> Any:
    """Arrays of numbers as tensors; anything else as it is."""
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    return torch.from_numpy(np.require(value, requirements="W")) if numbers else value


class _PlainUnpickler(pickle.Unpickler):
    """Admits plain containers, arrays and tensors. None of what it calls for them executes what a file says."""

    def find_class(self, module: str, name: str) -> Any:
        admitted = _ADMITTED.get((module.replace("numpy.core", "numpy._core"), name))
        if admitted is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return admitted


def _bytes(text: str, encoding: str) -> bytes:
    """How older protocols write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


def _storage(content: bytes) -> Any:
    """The numbers of a tensor; PyTorch's own function for it would read any pickle."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_ADMITTED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): multiarray._reconstruct,
    ("numpy._core.multiarray", "scalar"): multiarray.scalar,
    ("numpy._core.numeric", "_frombuffer"): numeric._frombuffer,  # type: ignore[attr-defined]
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
}
