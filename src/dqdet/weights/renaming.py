"""Steps by which parameters of other implementations become ours: renaming, and the few that change tensors."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from dqdet.errors import DqdetError

State = dict[str, Tensor]
Rule = tuple[str, str]  # pattern and replacement of re.sub, applied to a parameter's name


def rename(state: State, rules: Sequence[Rule]) -> State:
    """Apply all rules in order to every name; what becomes empty is left out.

    Names that become one must hold equal tensors (shared parameters).

    Raises:
        DqdetError: if two different tensors end under one name.
    """
    renamed: State = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        if not new:
            continue
        if new in renamed and not torch.equal(renamed[new], tensor):
            raise DqdetError(f"{name}: differs from another parameter that also becomes {new}")
        renamed[new] = tensor
    return renamed


def split_queries(state: State, name: str) -> State:
    """Split a table ``[n, 2 * f]`` into positions and contents of queries, ``[n, f]`` each."""
    state = dict(state)
    if name in state:
        position, content = state.pop(name).chunk(2, 1)
        state |= {"queries.table.position": position.clone(), "queries.table.content": content.clone()}
    return state


def merge_projections(state: State) -> State:
    """Stack ``<name>.q``, ``<name>.k`` and ``<name>.v``, those that exist, as ``<name>``."""
    merged: State = {}
    for name, tensor in state.items():
        stack, _, part = name.rpartition(".")
        if part not in ("q", "k", "v"):
            merged[name] = tensor
        elif stack not in merged:
            merged[stack] = torch.cat([state[f"{stack}.{p}"] for p in "qkv" if f"{stack}.{p}" in state])
    return merged


def fold_norms(state: State, prefix: str = "backbone.body.", eps: float = 1e-5) -> State:
    """Fold a ResNet's frozen batch norms (torchvision's names) into ``scale`` and ``shift`` of its convolutions."""
    folded: State = {}
    for name, tensor in state.items():
        norm = re.fullmatch(rf"({re.escape(prefix)}.*?)(bn(\d)|downsample\.1)\.(\w+)", name)
        if norm is None:
            folded[name] = tensor
        elif norm[4] == "running_var":
            base = norm[1] + norm[2]
            conv = norm[1] + (f"conv{norm[3]}" if norm[3] else "downsample.0")
            scale = state[f"{base}.weight"] * (tensor + eps).rsqrt()
            folded[f"{conv}.scale"] = scale
            folded[f"{conv}.shift"] = state[f"{base}.bias"] - state[f"{base}.running_mean"] * scale
    return folded


def count_modules(state: State, prefix: str) -> int:
    """How many numbered modules there are whose names begin with ``prefix``."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if re.match(rf"{re.escape(prefix)}\d", name)})
