"""Batches: the same on any number of processes, after an interruption, and in worker processes."""

import gc
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dqdet.config import DataConfig, ScenesConfig
from dqdet.data import open_dataset
from dqdet.data.loader import EvaluationBatches, PlainLoader, TrainingBatches, killed_worker, make_loader
from dqdet.data.scenes.images import ScenesDataset
from dqdet.errors import DqdetError
from dqdet.types import Batch

SCENES = DataConfig(kind="scenes", scenes=ScenesConfig(size=48, train_images=14, val_images=7), resize=[32, 48])


class Shapes:
    """As much of a data set as the samplers see."""

    def __init__(self, aspect_ratios: list[float]) -> None:
        self.aspect_ratios = np.array(aspect_ratios)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.aspect_ratios)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


ratios = st.lists(st.sampled_from([0.5, 0.7, 1.0, 1.3, 2.0]), min_size=4, max_size=40)
seeds = st.integers(0, 1000)


def assert_equal(a: Batch, b: Batch) -> None:
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.padding, b.padding)
    for one, other in zip(a.targets, b.targets, strict=True):
        assert one.image_id == other.image_id
        assert one.size == other.size
        for name in ("labels", "boxes"):
            assert torch.equal(getattr(one, name), getattr(other, name))


@given(ratios, seeds, st.integers(0, 5))
def test_processes_divide_the_batches_of_one(shapes, seed, epoch):
    dataset = Shapes(shapes)
    samplers = [TrainingBatches(dataset, 4, seed, rank, world) for world in (1, 2, 4) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    one, *others = map(list, samplers)
    two, four = others[:2], others[2:]
    assert one == [list(chain(*parts)) for parts in zip(*two, strict=True)]
    assert one == [list(chain(*parts)) for parts in zip(*four, strict=True)]
    assert len(one) == len(samplers[0])


@given(ratios, seeds, st.integers(1, 4))
def test_an_epoch_has_every_image_once_but_for_an_unfilled_batch(shapes, seed, batch):
    batches = list(TrainingBatches(Shapes(shapes), batch, seed))
    assert {len(indices) for indices in batches} == {batch}
    indices = list(chain(*batches))
    assert len(set(indices)) == len(indices) > len(shapes) - batch
    assert set(indices) <= set(range(len(shapes)))
    mixed = [indices for indices in batches if len({shapes[i] >= 1 for i in indices}) == 2]
    assert len(mixed) <= 1


@given(ratios, seeds, st.integers(0, 10))
def test_start_skips_batches_and_changes_nothing_else(shapes, seed, start):
    sampler = TrainingBatches(Shapes(shapes), 2, seed)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.start = start
    assert list(sampler) == whole[start:]
    assert len(sampler) == len(whole)
    sampler.set_epoch(3)
    assert list(sampler) == whole


def test_order_depends_on_seed_and_epoch_alone():
    dataset = Shapes([1.5] * 30 + [0.5] * 30)

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = TrainingBatches(dataset, 4, seed)
        sampler.set_epoch(epoch)
        assert dataset.epoch == epoch
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    different = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_images_left_over_differ_between_epochs():
    """Also of the rarer shape, which alone never fills a batch."""
    dataset = Shapes([1.5] * 9 + [0.5] * 2)
    sampler = TrainingBatches(dataset, 4)
    seen = set()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        seen |= set(chain(*sampler))
    assert seen == set(range(11))


@given(ratios, st.integers(1, 3), st.integers(1, 4))
def test_evaluation_has_every_image_once_over_all_processes(shapes, share, world):
    samplers = [EvaluationBatches(Shapes(shapes), share * world, 0, rank, world) for rank in range(world)]
    batches = [list(sampler) for sampler in samplers]
    assert sorted(chain(*chain(*batches))) == list(range(len(shapes)))
    sizes = [len(indices) for process in batches for indices in process]
    assert 0 < min(sizes) <= max(sizes) <= share
    assert [len(process) for process in batches] == [len(sampler) for sampler in samplers]
    if share > 1:
        assert len({len(process) for process in batches}) == 1


def test_no_process_is_without_an_image():
    batches = [list(EvaluationBatches(Shapes([2.0, 1.0, 0.5]), 8, 0, rank, 4)) for rank in range(4)]
    assert batches == [[[2]], [[1]], [[0]], [[2]]]


def test_evaluation_needs_little_padding():
    dataset = Shapes([0.5, 2.0] * 8)
    for indices in EvaluationBatches(dataset, 4):
        assert len(set(dataset.aspect_ratios[indices])) == 1


def test_batch_is_its_padded_items():
    dataset = open_dataset(SCENES, "train")
    loader = make_loader(dataset, batch=4, train=True)
    loader.batch_sampler.set_epoch(2)
    different_sizes = False
    for batch, indices in zip(loader, loader.batch_sampler, strict=True):
        assert len(batch) == 4
        assert batch.images.dtype == torch.uint8
        for slot, padding, target, index in zip(batch.images, batch.padding, batch.targets, indices, strict=True):
            image, expected = dataset[index]
            height, width = image.shape[1:]
            assert torch.equal(slot[:, :height, :width], image)
            assert not padding[:height, :width].any()
            assert padding.sum() == padding.numel() - height * width
            assert slot.masked_fill(~padding, 0).abs().sum() == 0
            assert torch.equal(target.boxes, expected.boxes)
            assert torch.equal(target.labels, expected.labels)
            assert target.image_id == expected.image_id == index + 1
            assert target.size == (height, width)
        different_sizes |= bool(batch.padding.any())
    assert different_sizes


class Garbage:
    """Notes which process frees it, and cannot be freed without the garbage collector."""

    def __init__(self, notes: Path) -> None:
        self.notes = notes
        self.cycle = self

    def __del__(self) -> None:
        with self.notes.open("a") as notes:
            notes.write(f"{os.getpid()}\n")


class Collecting(ScenesDataset):
    def read(self, index: int):
        gc.collect()
        return super().read(index)


def test_workers_do_not_free_what_is_not_theirs(tmp_path):
    dataset = Collecting(SCENES, "train", 0)
    Garbage(tmp_path / "notes")
    assert len(list(make_loader(dataset, batch=4, train=True, workers=2)))
    assert (tmp_path / "notes").read_text() == f"{os.getpid()}\n"


def test_targets_of_a_batch_share_their_memory():
    """A tensor of its own for each would need as many file descriptors."""
    batch = next(iter(make_loader(open_dataset(SCENES, "train"), batch=8, train=True)))
    for name in ("labels", "boxes"):
        assert len({getattr(t, name).untyped_storage().data_ptr() for t in batch.targets}) == 1


def test_workers_and_interruption_change_nothing():
    """Two epochs with worker processes that stay alive, the second one resumed at its second batch."""
    expected = []
    loader = make_loader(open_dataset(SCENES, "train", seed=5), batch=4, train=True, seed=5)
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        expected.append(list(loader))
    assert not torch.equal(expected[0][0].images, expected[1][0].images)

    loader = make_loader(open_dataset(SCENES, "train", seed=5), batch=4, train=True, seed=5, workers=2)
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)
        loader.batch_sampler.start = epoch
        for one, other in zip(loader, expected[epoch][epoch:], strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize("train", [True, False])
def test_loading_leaves_the_global_generator_alone(train):
    loader = make_loader(open_dataset(SCENES, "train" if train else "val"), batch=4, train=train)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_items_do_not_depend_on_the_epoch():
    dataset = open_dataset(SCENES, "val")
    first = dataset[3][0]
    dataset.set_epoch(4)
    assert torch.equal(dataset[3][0], first)


def test_augmentation_depends_on_seed_epoch_and_item_alone():
    dataset = open_dataset(SCENES, "train", seed=1)
    dataset.set_epoch(2)
    expected = dataset[5][0]
    dataset.set_epoch(0)
    for index in (3, 5, 1):
        dataset[index]
    again = open_dataset(SCENES, "train", seed=1)
    again.set_epoch(2)
    torch.rand(3)
    assert torch.equal(again[5][0], expected)
    variants = set()
    for seed in range(3):
        for epoch in range(8):
            dataset = open_dataset(SCENES, "train", seed=seed)
            dataset.set_epoch(epoch)
            variants.add(dataset[5][0].numpy().tobytes())
    assert len(variants) > 3  # flipped or not, of three or more sizes


def broken_coco(root: Path) -> Path:
    """Eight images of which the last is no image; returns its file."""
    folder = root / "images/train"
    folder.mkdir(parents=True)
    for i in range(8):
        PIL.Image.new("RGB", (30, 20)).save(folder / f"{i}.png")
    (folder / "7.png").write_text("no image")
    images = [{"id": i, "file_name": f"{i}.png", "height": 20, "width": 30} for i in range(8)]
    (root / "annotations").mkdir()
    (root / "annotations/instances_train.json").write_text(
        json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "dot"}]})
    )
    return folder / "7.png"


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_is_named_in_one_line(tmp_path, workers):
    file = broken_coco(tmp_path)
    dataset = open_dataset(DataConfig(root=str(tmp_path), resize=[20]), "train")
    with pytest.raises(DqdetError) as caught:
        list(make_loader(dataset, batch=2, train=False, workers=workers))
    assert str(caught.value) == (
        f"{file}: cannot be read as an image (in no format that is known); "
        f"replace the file or remove image 7 from {tmp_path}/annotations/instances_train.json"
    )


def test_a_worker_that_dies_while_it_hands_over_a_batch_is_said_to_have_died(monkeypatch):
    iterator = iter(PlainLoader(range(8), num_workers=1))
    next(iterator)

    def hand_over(batches, timeout=0):
        (worker,) = batches._workers
        threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
        raise ConnectionResetError("of its socket, which closes before the system calls it dead")

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_get_data", hand_over)
    with pytest.raises(RuntimeError, match="DataLoader worker") as raised:
        next(iterator)
    assert "lack of memory" in str(killed_worker(raised.value))


def test_batch_that_cannot_be_divided():
    with pytest.raises(DqdetError) as caught:
        make_loader(open_dataset(SCENES, "train"), batch=5, train=True, world=2)
    assert str(caught.value) == (
        "train.batch=5 is not divisible by 2 processes times train.accumulate=1; use a multiple of 2"
    )


def test_batch_larger_than_the_data_set():
    with pytest.raises(DqdetError) as caught:
        make_loader(open_dataset(SCENES, "train"), batch=16, train=True)
    assert str(caught.value) == "train.batch=16 is more than the 14 images of the training split; lower it"


FAULTS = """
import resource
import torch
from dqdet.data.loader import start_worker

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    images = [torch.empty(2**22, dtype=torch.uint8).fill_(1) for _ in range(8)]
    del images
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
plain = [faults() for _ in range(3)]
start_worker(0)
kept = [faults() for _ in range(3)]
print(plain[-1], kept[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators cannot be told")
@pytest.mark.slow
def test_workers_keep_the_memory_of_images():
    process = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    plain, kept = map(int, process.stdout.split())
    assert plain > 100
    assert kept < plain / 10
