"""A CUDA device in pretence, which counts how often the CPU and the device exchange values.

PyTorch makes CUDA tensors without a GPU under ``FakeTensorMode``. Those here have values too, which lie on the CPU, so
that assignments and selections are real. As on a GPU, an operation with tensors on both sides is an error. Backward
passes are not possible: PyTorch's engine asks the driver for the device.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import dqdet

SOURCE = Path(dqdet.__file__).parent
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class OnDevice(Tensor):
    """A CUDA tensor whose values are ``on_host``."""

    on_host: Tensor

    @staticmethod
    def __new__(cls, on_host: Tensor) -> OnDevice:
        layout = {"strides": on_host.stride(), "storage_offset": on_host.storage_offset()}
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, on_host.shape, **layout, dtype=on_host.dtype, device=torch.device("cuda", 0)
        )
        wrapper.on_host = on_host
        return wrapper

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on the device outside of its pretence")


class Transfers(TorchDispatchMode):
    """Runs the operations of the device; ``places`` are the files of dqdet that made the CPU and it exchange values."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        ours = [x for x in tensors if isinstance(x, OnDevice)]
        theirs = [x for x in tensors if not isinstance(x, OnDevice)]
        to_device = bool(ours)
        if kwargs.get("device") is not None:
            to_device = torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = torch.device("cpu")
        if func is torch.ops.aten.copy_.default:
            to_device = isinstance(args[0], OnDevice)
        if func in COPIES:
            exchanged = (to_device and bool(theirs)) or (not to_device and bool(ours))
        else:
            if ours and any(x.dim() for x in theirs):
                raise RuntimeError(f"{func}: tensors on the device and on the CPU")
            exchanged = bool(ours) and waits(func, args)
        if exchanged:
            self.places.append(place())
        args, kwargs = tree_map_only(OnDevice, lambda x: x.on_host, (args, kwargs))
        with unset_fake_temporarily():
            result = func(*args, **kwargs)
        if not to_device:
            return result
        changed = {id(x.on_host): x for x in ours}  # what operations in place return
        return tree_map_only(Tensor, lambda x: changed.get(id(x)) if id(x) in changed else OnDevice(x), result)


def waits(func, args) -> bool:
    """Whether the CPU needs to know values of the operation's tensors, as for the shape of its result."""
    if func.name().startswith("aten::index"):
        return any(x.dtype == torch.bool for x in tree_leaves(args[1]) if isinstance(x, Tensor))
    return bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags))


def place() -> str:
    """The innermost file of dqdet that is running, relative to the library."""
    files = [Path(frame.filename) for frame in traceback.extract_stack()]
    return next((str(file.relative_to(SOURCE)) for file in reversed(files) if file.is_relative_to(SOURCE)), "elsewhere")


@contextmanager
def pretended_device() -> Iterator[Transfers]:
    """Where ``OnDevice`` tensors can be used and made."""
    # The choice between fused kernels of attention asks the driver for properties of the device.
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), Transfers() as transfers:
        yield transfers


def move(model: nn.Module) -> None:
    """Put the parameters and buffers on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(OnDevice(parameter.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)
