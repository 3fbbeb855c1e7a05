"""The data of a training: the two splits, and where in them an interrupted training goes on."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from dqdet.config import Config
from dqdet.data.clips import VideoDataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.loader import BatchLoader, BatchSampler, TrainingBatches, VideoLoader, make_loader
from dqdet.errors import DqdetError, value_text
from dqdet.formats.records import is_id
from dqdet.types import Batch, VideoStream


def validation_loader(config: Config, dataset: DetectionDataset, rank: int, world: int) -> BatchLoader | VideoLoader:
    """Every image once, in batches as in training; videos one at a time on each process, and their frames, too."""
    if isinstance(dataset, VideoDataset):
        return VideoLoader(dataset, config.data.workers, rank, world)
    batch = config.train.batch // config.train.accumulate
    return make_loader(dataset, batch=batch, train=False, workers=config.data.workers, rank=rank, world=world)


class DataModule(LightningDataModule):
    """Loaders of this process's share, and their position as the state that checkpoints keep.

    Args:
        config: of the run.
        train: the training split.
        val: the validation split.

    Raises:
        DqdetError: there are fewer images than a step needs.
    """

    def __init__(self, config: Config, train: DetectionDataset, val: DetectionDataset) -> None:
        super().__init__()
        self.config = config
        self.train_set = train
        self.val_set = val
        self.position = {"epoch": 0, "start": 0}  # of the next batch: epoch, and batches before it
        self.steps_per_epoch = TrainingBatches(train, config.train.batch).steps

    def train_dataloader(self) -> BatchLoader:
        assert self.trainer is not None
        loader = make_loader(
            self.train_set,
            batch=self.config.train.batch,
            train=True,
            seed=self.config.train.seed,
            workers=self.config.data.workers,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            accumulate=self.config.train.accumulate,
        )
        assert isinstance(loader.batch_sampler, BatchSampler)
        self.batches = loader.batch_sampler
        self.batches.set_epoch(self.position["epoch"])
        self.batches.start = self.position["start"]
        return loader

    def start_epoch(self, epoch: int) -> None:
        self.batches.set_epoch(epoch)

    def val_dataloader(self) -> BatchLoader | VideoLoader:
        assert self.trainer is not None
        return validation_loader(self.config, self.val_set, self.trainer.global_rank, self.trainer.world_size)

    def transfer_batch_to_device(
        self, batch: Batch | VideoStream, device: torch.device, dataloader_idx: int
    ) -> Batch | VideoStream:
        return batch.to(device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        epoch, seen = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1
        ended = seen == self.trainer.num_training_batches
        return {"epoch": epoch + 1, "start": 0} if ended else {"epoch": epoch, "start": seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        position = [state_dict.get(entry, -1) for entry in self.position]
        if not all(is_id(number) and number >= 0 for number in position):
            raise DqdetError(f"the checkpoint to go on from has the position {value_text(state_dict)} in the data")
        self.position = state_dict
