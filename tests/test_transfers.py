"""Forward, loss and inference of every family stay on the device, and the CPU waits for it only where it has to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import Config, DataConfig, InferenceConfig
from dqdet.nn.sampling import sample_reference
from dqdet.training import callbacks, progress
from dqdet.training import module as training
from dqdet.training.callbacks import LastCheckpoint
from dqdet.training.module import DetectionModule
from dqdet.training.progress import TrainingProgress
from dqdet.types import Batch, VideoStream, pad_images
from pretended_device import OnDevice, move, pretended_device
from small_families import CHANNELS, CLASSES, CLIPS, CONFIGS, FRAMES, IMAGES, build, make_targets, reads_clips
from test_families import loss_config

every_family = pytest.mark.parametrize("name", CONFIGS)
CLASS_NAMES = [f"class {i}" for i in range(CLASSES)]

# Costs to the CPU and pairs back. Losses of masks also send the sizes of the images' masks.
STEP = {
    "boxes": {"losses/matching.py": 2},
    "sequences": {"losses/matching.py": 2},
    "masks": {"losses/matching.py": 2, "losses/masks.py": 1},
    "instances": {"losses/matching.py": 2, "losses/masks.py": 1},
}
LIMIT = 8
# What is selected has to be known; detection reports a fixed number.
INFERENCE: dict[str, dict[str, int]] = {
    "detection": {},
    # Masks leave the device compressed, and in which order; a window of a video is copied to it.
    "instance": {"inference/masks.py": 2 * len(IMAGES), "formats/rle.py": len(IMAGES)},
    "panoptic": {"inference/masks.py": 15 * len(IMAGES), "formats/rle.py": len(IMAGES)},
    "video": {
        "inference/masks.py": 2,
        "inference/windows.py": 3 + 2 * LIMIT,
        "formats/rle.py": LIMIT,
    },
}


def tasks(name: str) -> list[str]:
    if reads_clips(build(name)):
        return ["video"]
    return list(CONFIGS[name].tasks)


class Pyramid(nn.Module):
    """A backbone of nothing but pooling."""

    def __init__(self, strides: tuple[int, ...]):
        super().__init__()
        self.strides = strides
        self.convs = nn.ModuleList(nn.Conv2d(3, CHANNELS[stride], 1) for stride in strides)

    def forward(self, images: Tensor) -> list[Tensor]:
        pooled = (F.avg_pool2d(images, stride, ceil_mode=True) for stride in self.strides)
        return [conv(x) for conv, x in zip(self.convs, pooled, strict=True)]


def module_and_batch(name: str, task: str, **options) -> tuple[DetectionModule, Batch]:
    """A family's model in training, and images of several sizes with 0, 3 and 1 objects."""
    model = build(name, **options)
    model.backbone = Pyramid(model.strides)
    config = Config(
        preset="test",
        model=CONFIGS[name],
        loss=loss_config(name),
        data=DataConfig(task=task, kind="youtube_vis" if task == "video" else "coco"),
        inference=InferenceConfig(limit=LIMIT, object_threshold=0.0, overlap_threshold=0.0),
        classes=CLASS_NAMES,
        stuff=CLASS_NAMES[:1] if task == "panoptic" else [],
    )
    sizes, frames = (CLIPS, FRAMES) if reads_clips(model) else (IMAGES, None)
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(256, (*((frames,) if frames else ()), 3, *size), dtype=torch.uint8, generator=generator)
        for size in sizes
    ]
    targets = make_targets(sizes, (0, 3, 1)[: len(sizes)], frames)
    return DetectionModule(model, config), Batch(*pad_images(images), targets)


@pytest.fixture(autouse=True)
def any_device(monkeypatch):
    monkeypatch.setattr("dqdet.nn.deformable.sample", sample_reference)  # the faster forms are for real devices


class Arrived:
    """Of the loss that is looked at a step later, in memory that only a real device has: never asked for here."""

    def __init__(self, scalar: Tensor):
        assert scalar.is_cuda
        assert scalar.on_host.isfinite()


def places_of_a_step(name: str, monkeypatch, step: int = 0, **options) -> Counter:
    module, batch = module_and_batch(name, tasks(name)[0], **options)
    monkeypatch.setattr(training, "Arriving", Arrived)
    monkeypatch.setattr(module, "log_dict", lambda values, batch_size: None)
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor)
    module._trainer = SimpleNamespace(global_step=step, current_epoch=0, strategy=strategy)
    with pretended_device() as transfers:
        move(module)
        batch = batch.map(OnDevice)
        transfers.places.clear()
        loss = module.train().training_step(batch, 0)
        assert loss.is_cuda
        return Counter(transfers.places)


@every_family
def test_a_step_waits_for_the_matching_alone(name, monkeypatch):
    assert places_of_a_step(name, monkeypatch) == STEP[CONFIGS[name].loss]


@pytest.mark.parametrize("kind", ["static", "generated", "grouped", "shared"])
def test_a_step_waits_for_the_matching_alone_whatever_the_queries(kind, monkeypatch):
    assert places_of_a_step("detr", monkeypatch, kind=kind) == STEP["boxes"]


def test_proposals_are_matched_together_with_the_others(monkeypatch):
    options = {"changes": {"refine": True, "two_stage": True}, "kind": "static"}
    assert places_of_a_step("deformable_detr_refine", monkeypatch, **options) == STEP["boxes"]


@pytest.mark.parametrize("name", ["dab_detr", "dab_deformable_detr", "dino"])
def test_denoising_queries_send_their_places(name, monkeypatch):
    assert places_of_a_step(name, monkeypatch, denoising=5) == STEP["boxes"] | {"denoising.py": 1}


def test_logging_waits_once_for_all_losses(monkeypatch):
    ninth, tenth = (places_of_a_step("detr", monkeypatch, step=step) for step in (8, 9))
    assert tenth - ninth == {"training/module.py": 1}
    assert ninth == STEP["boxes"]


def test_showing_the_loss_waits_for_nothing(monkeypatch):
    monkeypatch.setattr(progress, "Arriving", Arrived)
    bar = TrainingProgress(batch=4, metric="AP")
    bar.training = bar.bars.add_task("", batch=4, metrics={})
    trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=1, current_epoch=0, max_epochs=3)
    with pretended_device() as transfers:
        bar.on_train_batch_end(trainer, None, {"loss": OnDevice(torch.tensor(3.0))}, None, 0)
    assert transfers.places == []
    assert bar.last is not None


def test_asking_other_processes_for_signals_waits_for_nothing(monkeypatch):
    asked = []

    class Answer(Arrived):
        def __init__(self, scalar: Tensor):
            super().__init__(scalar)
            asked.append(scalar.on_host.item())
            self.item = lambda: scalar.on_host.item()

    monkeypatch.setattr(callbacks, "Arriving", Answer)
    last = LastCheckpoint(Path("last.ckpt"), None, print)
    others = iter([0.0, 1.0, 0.0])
    strategy = SimpleNamespace(root_device="cuda", reduce=lambda tensor, reduce_op: tensor + next(others))
    trainer = SimpleNamespace(world_size=2, strategy=strategy)
    with pretended_device() as transfers:
        assert [last._anyone_signalled(trainer) for _ in range(3)] == [False, False, True]
    assert asked == [0, 1, 0]
    assert transfers.places == []


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in CONFIGS for task in tasks(name)])
def test_inference_waits_for_what_is_selected_alone(name, task, monkeypatch):
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)  # in which tensors of other types cannot be wrapped
    module, batch = module_and_batch(name, task)
    with pretended_device() as transfers, torch.no_grad():
        move(module)
        stream = VideoStream(iter(batch.images[0]), batch.targets[:1])  # whole videos come one at a time
        batch = batch.map(OnDevice)
        transfers.places.clear()
        found = module.eval().validation_step(stream if task == "video" else batch, 0)
    assert len(found) == (1 if task == "video" else len(batch))
    assert Counter(transfers.places) <= Counter(INFERENCE[task])


def test_every_exchange_with_the_device_is_counted():
    """As far as the library is concerned: what PyTorch does to make or read values."""
    on_host = torch.tensor([[1.0, 0.0], [2.0, 3.0]])
    exchanges = {
        "to the device": lambda x: on_host.to(x.device),
        "from the device": lambda x: x.cpu(),
        "new_tensor": lambda x: x.new_tensor([1.0]),
        "tensor": lambda x: torch.tensor(1.0, device=x.device),
        "list as index": lambda x: x[[0, 1]],
        "copy_": lambda x: x.copy_(on_host),
        "copy_ back": lambda x: torch.zeros(2, 2).copy_(x),
        "item": lambda x: x.sum().item(),
        "float": lambda x: float(x[0, 0]),
        "bool": lambda x: bool((x > 0).any()),
        "tolist": lambda x: x.tolist(),
        "nonzero": lambda x: x.nonzero(),
        "mask as index": lambda x: x[x > 0],
        "assignment by mask": lambda x: x.index_put_((x > 0,), x.sum()),
        "unique": lambda x: x.unique(),
        "bincount": lambda x: x.long().flatten().bincount(minlength=4),
        "repetitions": lambda x: x.repeat_interleave(x[0].long(), 0),
    }
    for name, exchange in exchanges.items():
        with pretended_device() as transfers:
            exchange(OnDevice(on_host.clone()))
        assert len(transfers.places) == 1, name


def test_what_stays_on_the_device_is_not_counted():
    with pretended_device() as transfers:
        x = OnDevice(torch.tensor([[1.0, 0.0], [2.0, 3.0]]))
        made = [torch.arange(2, device=x.device), torch.full((2,), 3.0, device=x.device), x.new_zeros(2)]
        y = (x + torch.stack([m.float() for m in made]).sum()).masked_fill(x > 1, 0.0).where(x > 0, x)
        x[:, 0] = 5.0
        z = torch.nn.functional.pad(y.to(torch.float64), (0, 1)).topk(2).values[x.long().clamp(max=1)]
    assert transfers.places == []
    assert z.is_cuda
    assert x.on_host.tolist() == [[5, 0], [5, 3]]


def test_tensors_of_two_devices_do_not_meet():
    with pretended_device():
        x = OnDevice(torch.ones(2))
        for meet in (lambda: x + torch.ones(2), lambda: x[torch.tensor([0, 1])], lambda: torch.cat([torch.ones(2), x])):
            with pytest.raises(RuntimeError, match="tensors on the device and on the CPU"):
                meet()
        assert (x + torch.tensor(1.0)).on_host.tolist() == [2, 2]
