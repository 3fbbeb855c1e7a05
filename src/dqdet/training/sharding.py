"""Weights, gradients and the state of the optimiser divided among the processes of a training (FSDP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from dqdet.nn.checkpointing import repeated_layers


class ShardedStrategy(DDPStrategy):
    """As DDP, but every process keeps a part of everything, and gathers the weights of a layer while it computes it.

    Zhao et al., "PyTorch FSDP", 2023. Checkpoints hold whole tensors: a training goes on from them in any way. In a
    validation every process has all weights, because processes that wait for each other need as many forward passes,
    and videos, of different lengths, are not as many windows in each.
    """

    def setup(self, trainer: Trainer) -> None:
        if not self._is_divided():
            super().setup(trainer)
            return
        # A validation after the training; nothing has to be made the same.
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        self.model_to_device()
        self.setup_precision_plugin()

    def _is_divided(self) -> bool:
        assert self.lightning_module is not None
        return any(isinstance(parameter, DTensor) for parameter in self.lightning_module.parameters())

    def _setup_model(self, model: nn.Module) -> nn.Module:  # type: ignore[override]
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        detector = model.get_submodule("model")
        for parameter in detector.parameters():
            parameter.data = parameter.data.contiguous()  # others cannot be divided
        for layer in repeated_layers(detector):
            fully_shard(layer, mesh=mesh)
        fully_shard(detector, mesh=mesh)
        return model

    def _register_ddp_hooks(self) -> None:
        """There are none."""

    def on_validation_start(self) -> None:
        for part in self._parts():
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()

    def on_validation_end(self) -> None:
        for number, part in enumerate(self._parts()):
            part.reshard()
            part.set_reshard_after_forward(number > 0, recurse=False)  # with the detector a backward pass begins

    def _parts(self) -> list[FSDPModule]:
        """What is gathered at once, the detector first, then its layers; none where nothing is divided."""
        assert self.lightning_module is not None
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return tree_map(self._whole, super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return tree_map(self._whole, super().optimizer_state(optimizer))

    def _whole(self, value: Any) -> Any:
        """In the first process, which writes it, the whole of a tensor; all have to call it."""
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if self.is_global_zero else None  # together they need not fit into a device

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimiser, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            divided = {number: _like(parameters[number], values) for number, values in state["state"].items()}
            optimiser.load_state_dict({**state, "state": divided})


def _like(parameter: torch.Tensor, values: dict[str, Any]) -> dict[str, Any]:
    """What an optimiser keeps of a parameter, divided as that is."""
    if not isinstance(parameter, DTensor):
        return values
    mesh, placements = parameter.device_mesh, parameter.placements
    return {
        name: distribute_tensor(value.to(parameter.device).contiguous(), mesh, placements, src_data_rank=None)
        if value.shape == parameter.shape
        else value
        for name, value in values.items()
    }
