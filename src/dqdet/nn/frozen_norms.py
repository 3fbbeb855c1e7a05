"""Batch norms that no longer train, as a part of the convolutions before them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise, zip_longest
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dqdet.nn.probe import probe

SIDE = 64  # of an image that shows which layer reads which


class FrozenNormConv2d(nn.Conv2d):
    """A convolution with the frozen batch norm that follows it.

    Frozen, the norm is an affine map with constants, so it is applied to the weights instead of the outputs. The
    weights themselves are kept as they are in checkpoints: learning rates and weight decay mean the same. A bias of the
    convolution is one more constant.
    """

    scale: Tensor  # [out]
    shift: Tensor  # [out]

    @classmethod
    def of(cls, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> FrozenNormConv2d:
        fused = cls.__new__(cls)
        fused.__dict__.update(conv.__dict__)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias.detach()
        scale = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        fused.register_buffer("scale", scale)
        fused.register_buffer("shift", norm.bias.detach() - mean * scale)
        fused.bias = None
        return fused

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.scale[:, None, None, None], self.shift)

    def folded(self) -> nn.Conv2d:
        """A plain convolution with the same outputs, which does not train as this one does."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        conv.__dict__.update({**self.__dict__, "_parameters": {}, "_buffers": {}})
        conv.weight = nn.Parameter(self.weight * self.scale[:, None, None, None], requires_grad=False)
        conv.bias = nn.Parameter(self.shift.clone(), requires_grad=False)
        return conv


class Follower(NamedTuple):
    """A batch norm that is defined right after a convolution, in the same module."""

    parent: nn.Module
    conv: str
    norm: str

    def pair(self) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
        return getattr(self.parent, self.conv), getattr(self.parent, self.norm)


def freeze_norms(backbone: nn.Module) -> None:
    """Replace each convolution and the batch norm after it, in place, by one :class:`FrozenNormConv2d`.

    Norms that have an activation inside, as those of many families of timm, stay where they are. So do norms of more
    than a convolution's output, and all of a network that cannot take a small image.
    """
    followers = [
        Follower(parent, conv_name, norm_name)
        for parent in backbone.modules()
        for (conv_name, conv), (norm_name, norm) in pairwise(parent.named_children())
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d
    ]
    for follower in _only_readers(backbone, followers):
        fused = FrozenNormConv2d.of(*follower.pair())
        setattr(follower.parent, follower.conv, fused)
        setattr(follower.parent, follower.norm, nn.Identity())


def _only_readers(backbone: nn.Module, followers: Sequence[Follower]) -> list[Follower]:
    """Those whose norm, and nothing else, reads the convolution's output, as a small image shows."""
    if not followers:
        return []
    made, given = defaultdict(list), defaultdict(list)  # outputs of each convolution, inputs of each norm
    reads = _Reads()

    def note_output(conv: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        made[conv].append(output)
        reads.count[output] = 0

    def note_input(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        given[norm].append(inputs[0])

    handles = []
    for conv, norm in (follower.pair() for follower in followers):
        handles += [conv.register_forward_hook(note_output), norm.register_forward_pre_hook(note_input)]
    with reads:
        probe(backbone, SIDE)
    for handle in handles:
        handle.remove()

    def alone(conv: nn.Module, norm: nn.Module) -> bool:
        both = zip_longest(made[conv], given[norm])
        return bool(made[conv]) and all(output is read and reads.count[output] == 1 for output, read in both)

    return [follower for follower in followers if alone(*follower.pair())]


class _Reads(TorchFunctionMode):
    """Counts the operations that make other tensors of certain ones."""

    def __init__(self) -> None:
        super().__init__()
        self.count: dict[Tensor, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) for x in tree_leaves(made)):
            for x in tree_leaves((args, kwargs)):
                if isinstance(x, Tensor) and x in self.count:
                    self.count[x] += 1
        return made
