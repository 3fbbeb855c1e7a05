"""The data of a training: the two splits, and where in them an interrupted training goes on."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from dqdet.config import Config
from dqdet.data.dataset import DetectionDataset
from dqdet.data.loader import BatchLoader, BatchSampler, make_loader
from dqdet.types import Batch


class DataModule(LightningDataModule):
    """Loaders of this process's share, and their position as the state that checkpoints keep.

    Args:
        config: of the run.
        train: the training split.
        val: the validation split.
    """

    def __init__(self, config: Config, train: DetectionDataset, val: DetectionDataset) -> None:
        super().__init__()
        self.config = config
        self.train_set = train
        self.val_set = val
        self.position = {"epoch": 0, "start": 0}  # of the next batch: epoch, and batches before it

    def train_dataloader(self) -> BatchLoader:
        loader = self._loader(self.train_set, train=True)
        assert isinstance(loader.batch_sampler, BatchSampler)
        self.batches = loader.batch_sampler
        self.batches.set_epoch(self.position["epoch"])
        self.batches.start = self.position["start"]
        return loader

    def start_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def val_dataloader(self) -> BatchLoader:
        return self._loader(self.val_set, train=False)

    def _loader(self, dataset: DetectionDataset, train: bool) -> BatchLoader:
        assert self.trainer is not None
        return make_loader(
            dataset,
            batch=self.config.train.batch // self.config.train.accumulate,
            train=train,
            seed=self.config.train.seed,
            workers=self.config.data.workers,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        epoch, seen = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1
        ended = seen == self.trainer.num_training_batches
        return {"epoch": epoch + 1, "start": 0} if ended else {"epoch": epoch, "start": seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict
