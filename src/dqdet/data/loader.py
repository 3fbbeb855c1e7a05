"""Batches: which images go together, on which process, and how they are put into one tensor.

A batch is always formed over all processes first and then divided, so that any number of processes learns from
the same batches as one.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing.util
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cache, partial
from itertools import chain, groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dqdet.data.clips import VideoDataset
from dqdet.data.dataset import DetectionDataset
from dqdet.errors import DqdetError
from dqdet.types import Batch, Target, VideoStream, pad_images

STOPPING = (signal.SIGINT, signal.SIGTERM)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # options of mallopt


def check_parts(batch: int, world: int, accumulate: int) -> None:
    """Raise DqdetError unless ``batch`` images can be divided among processes, and among the parts of each."""
    if batch % (world * accumulate):
        raise DqdetError(
            f"train.batch={batch} is not divisible by {world} processes times train.accumulate={accumulate}; use a "
            f"multiple of {world * accumulate}"
        )


class BatchSampler(Sampler[list[int]], ABC):
    """Indices of each batch of one process.

    ``start`` is the first batch that the next iteration yields: the batches before it are skipped, the others
    are what they would have been. ``set_epoch`` sets it back to 0. The length is that of the whole epoch.

    Args:
        dataset: its aspect ratios are read, and its epoch is set by ``set_epoch``.
        batch: images over all processes.
        seed: of the order, not negative.
        rank: this process.
        world: processes.
        accumulate: parts of a step that each process gets one after the other; a step has the same ``batch`` images,
            however many parts and processes they are divided among.

    Raises:
        DqdetError: ``batch`` cannot be divided.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        check_parts(batch, world, accumulate)
        self.dataset = dataset
        self.batch = batch
        self.seed = seed
        self.rank = rank
        self.world = world
        self.accumulate = accumulate
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, and the data set's augmentation, of the next iteration."""
        self.epoch = epoch
        self.start = 0
        self.dataset.set_epoch(epoch)

    @abstractmethod
    def batches(self) -> list[list[int]]:
        """All batches of this process in this epoch."""

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches()[self.start :]


class TrainingBatches(BatchSampler):
    """Shuffled batches; the images of a step are all wide or all tall, which need the least padding.

    An epoch has every image once, except for a few drawn anew each time that would not fill a last step.

    Raises:
        DqdetError: there are fewer images than a step needs, or they cannot be divided.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
    ) -> None:
        super().__init__(dataset, batch, seed, rank, world, accumulate)
        if len(dataset) < batch:
            raise DqdetError(
                f"train.batch={batch} is more than the {len(dataset)} images of the training split; lower it"
            )

    def batches(self) -> list[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        steps: list[list[int]] = []
        wide: list[int] = []
        tall: list[int] = []
        for index in random.permutation(len(self.dataset))[: self.steps * self.batch].tolist():
            alike = wide if self.dataset.aspect_ratios[index] >= 1 else tall
            alike.append(index)
            if len(alike) == self.batch:
                steps.append(alike.copy())
                alike.clear()
        # The rest of both is either nothing or exactly one more step.
        if wide or tall:
            steps.append(random.permutation(wide + tall).tolist())
        share = self.batch // self.world
        part = share // self.accumulate
        own = [step[self.rank * share : (self.rank + 1) * share] for step in steps]
        return [images[first : first + part] for images in own for first in range(0, share, part)]

    @property
    def steps(self) -> int:
        return len(self.dataset) // self.batch

    def __len__(self) -> int:
        return self.steps * self.accumulate


class EvaluationBatches(BatchSampler):
    """Every image exactly once over all processes, ordered by aspect ratio, which needs the least padding.

    The images are divided evenly: no batch is larger than ``batch / world``, and all processes have the same
    number of batches, unless that would leave some of them empty. Of fewer images than processes, those without one
    have the first, too, which counts once: Lightning validates with no process that has none.
    """

    def batches(self) -> list[list[int]]:
        order = np.argsort(self.dataset.aspect_ratios, kind="stable")
        steps = -(-len(order) // self.batch)
        batches = [batch.tolist() for batch in np.array_split(order, steps * self.world)]
        return [batch for batch in batches[self.rank :: self.world] if batch] or batches[:1]

    def __len__(self) -> int:
        return len(self.batches())


def _sharing_memory(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors as views of one."""
    flat = torch.cat([tensor.flatten() for tensor in tensors]).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(flat, tensors, strict=True)]


def collate(items: list[tuple[Tensor, Target]], size: tuple[int, int] | None = None) -> Batch:
    """Pad and stack the images; each field of all targets, such as the boxes, becomes views of one tensor.

    With ``size``, height and width, they are padded to that.

    On its way from a worker a tensor occupies a file descriptor, of which small machines allow 1,024 or fewer.
    """
    images, targets = zip(*items, strict=True)
    stacked, padding = pad_images(images, size=size)
    names = [field.name for field in fields(Target) if isinstance(getattr(targets[0], field.name), Tensor)]
    columns = [_sharing_memory([getattr(target, name) for target in targets]) for name in names]
    return Batch(
        images=stacked,
        padding=padding,
        targets=[
            replace(target, **dict(zip(names, tensors, strict=True)))
            for target, *tensors in zip(targets, *columns, strict=True)
        ],
        counts=[len(target.labels) for target in targets],
    )


def _with_counts(batches: Iterator[Batch], accumulate: int) -> Iterator[Batch]:
    """The same batches with the ``counts`` of their whole steps, of which they wait for the last batch."""
    while step := list(islice(batches, accumulate)):
        counts = [count for batch in step for count in batch.counts]
        yield from (replace(batch, counts=counts) for batch in step)


class PlainLoader(DataLoader[Any]):
    """A ``DataLoader`` that raises a worker's DqdetError without the worker's traceback in it."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self.num_workers:
            # Garbage of this process is not the workers' to collect: freeing the decoder of a video waits for its
            # threads, which a forked process does not have.
            gc.collect()
            _end_workers_at_exit(os.getpid())
        try:
            with _signals_held_back():
                batches = super().__iter__()
            yield from batches
        except DqdetError as error:
            *traceback, message = str(error.args[0]).splitlines()
            if not traceback:
                raise
            name = f"{DqdetError.__module__}.{DqdetError.__qualname__}: "
            # Without its own traceback, which is a cycle that holds the iterator: when the garbage collector ends
            # the workers instead of the last reference, they do not hear of it for ten seconds.
            raise DqdetError(message.removeprefix(name)) from error.with_traceback(None)
        except (ConnectionError, EOFError):
            # A worker that is killed closes its connections, and only then does PyTorch hear that it died, and say so.
            time.sleep(1)
            torch._C._error_if_any_worker_fails()
            raise


def killed_worker(error: BaseException, go_on: str = "") -> DqdetError | None:
    """What to say where a process of a loader was killed, or None: the error is another one.

    PyTorch notices it wherever the main process is then, so that no loader can say it.

    Args:
        error: of whatever was under way.
        go_on: what to do then, beside using less memory.
    """
    if not isinstance(error, RuntimeError) or not str(error).startswith("DataLoader worker (pid"):
        return None
    reason = str(error).splitlines()[0].rstrip(" .")
    return DqdetError(
        f"a process that reads images has died, most likely for lack of memory ({reason}); lower data.workers or "
        f"train.batch{go_on}"
    )


class BatchLoader(PlainLoader):
    """A loader of ``Batch``."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        assert isinstance(self.batch_sampler, BatchSampler)
        yield from _with_counts(super().__iter__(), self.batch_sampler.accumulate)


class Frames(Dataset[tuple[int, Tensor, tuple[int, int]]]):
    """The frames of a data set of videos, by their video and number: the video and what ``VideoDataset.frame`` says."""

    def __init__(self, dataset: VideoDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, Tensor, tuple[int, int]]:
        return place[0], *self.dataset.frame(*place)


class VideoLoader:
    """The videos of a validation split, each once; workers read a few frames ahead, so that none is whole in memory.

    Args:
        dataset: of validation items.
        workers: processes that read.
        rank: this process.
        world: processes that share the videos.
    """

    def __init__(self, dataset: VideoDataset, workers: int = 0, rank: int = 0, world: int = 1) -> None:
        self.dataset = dataset
        self.videos = [video for (video,) in EvaluationBatches(dataset, world, rank=rank, world=world)]
        self.frames = PlainLoader(
            Frames(dataset),
            sampler=[(video, frame) for video in self.videos for frame in range(int(dataset.lengths[video]))],
            batch_size=None,
            collate_fn=tuple,  # of a frame: nothing else
            num_workers=workers,
            worker_init_fn=start_worker,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    def __len__(self) -> int:
        return len(self.videos)

    def __iter__(self) -> Iterator[VideoStream]:
        for video, items in groupby(self.frames, key=lambda item: item[0]):
            first = next(items)
            _, image, original_size = first
            target = Target(
                labels=torch.zeros(0, dtype=torch.int64),
                boxes=torch.zeros(0, int(self.dataset.lengths[video]), 4),
                size=(image.shape[1], image.shape[2]),
                original_size=original_size,
                image_id=self.dataset.image_ids[video],
            )
            yield VideoStream((image for _, image, _ in chain([first], items)), [target])


def start_worker(worker: int) -> None:
    """What a process of a loader does first."""
    leave_signals_to_the_main_process()
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Let the allocator of this process keep the memory of images that are gone, up to 64 MiB.

    By default it gives all large pieces back, and for every image anew the system finds and clears their pages: as long
    as it takes to collate a batch twice. Only that of the GNU C library can be told so.
    """
    with suppress(AttributeError, OSError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it takes
        allocator.mallopt(M_TRIM_THRESHOLD, 2**26)


def leave_signals_to_the_main_process() -> None:
    """Ctrl-C and SIGTERM may reach all processes of a group, but the batches that are under way are still wanted.

    Workers end when they are told to, or when the main process has died.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


@cache
def _end_workers_at_exit(process: int) -> None:
    """A process that ends asks its workers by SIGTERM to end, too, and waits for them."""

    def end() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    multiprocessing.util.Finalize(None, end, exitpriority=1)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Workers that are started here do not meet a signal with the handlers that they inherit."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_loader(
    dataset: DetectionDataset,
    *,
    batch: int,
    train: bool,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
) -> BatchLoader:
    """Batches of ``dataset`` for one process; ``loader.batch_sampler`` is the ``BatchSampler``.

    Args:
        dataset: what to load; for whole videos there is `VideoLoader`.
        batch: images (or clips) a batch, in training a step, over all processes.
        train: shuffled, without the last images that do not fill a batch; otherwise every image once.
        seed: of the order, not negative.
        workers: processes that read and augment; PyTorch gives each of them one thread.
        rank: this process.
        world: processes.
        accumulate: batches that make a step of training, on each process.

    Raises:
        DqdetError: see ``TrainingBatches``; while iterating: an image cannot be read.
    """
    sampler: BatchSampler
    if train:
        sampler = TrainingBatches(dataset, batch, seed, rank, world, accumulate)
    else:
        sampler = EvaluationBatches(dataset, batch, seed, rank, world)
    return BatchLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=partial(collate, size=dataset.padded_size),
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=train and workers > 0,
        # Its own generator: otherwise every epoch would draw from the global one, which dropout uses.
        generator=torch.Generator(),
    )
