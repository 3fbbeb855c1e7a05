"""What happens to images before the backbone: the same for every family."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from dqdet.config import LwDetrConfig
from dqdet.types import Batch, Target, pad_images
from small_families import CLIPS, CONFIGS, IMAGES, assert_same, build, outputs, reads_clips
from test_transfers import Pyramid

every_family = pytest.mark.parametrize("name", CONFIGS)
# As published: torchvision's own operations, with the statistics of ImageNet.
PUBLISHED = v2.Compose(
    [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)


def pictures(sizes: list[tuple[int, int]], frames: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    leading = () if frames is None else (frames,)
    return [torch.randint(256, (*leading, 3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@every_family
def test_bytes_give_what_normalised_images_give(name):
    model = build(name).eval()
    model.backbone = Pyramid(model.strides)
    images = pictures(CLIPS, 2) if reads_clips(model) else pictures(IMAGES)
    with torch.no_grad():
        found = model(*pad_images(images))
        expected = model(*pad_images([PUBLISHED(image) for image in images]))
    assert_same(outputs(found), outputs(expected))


@every_family
def test_without_padding_nothing_is_padded(name):
    model = build(name).eval()
    model.backbone = Pyramid(model.strides)
    images = torch.stack(pictures([(60, 90)] * 2, 2 if reads_clips(model) else None))
    with torch.no_grad():
        found, expected = model(images), model(images, torch.zeros(2, 60, 90, dtype=torch.bool))
    assert_same(outputs(found), outputs(expected))


class LogitsAndBoxes(nn.Module):
    """What `torch.export` can take: a model whose outputs are tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        predictions = self.model(images)
        return predictions.logits, predictions.boxes


def test_models_without_padding_are_exported_and_compiled():
    model = build("detr").eval()
    model.backbone = Pyramid(model.strides)
    model = LogitsAndBoxes(model)
    images, others = torch.stack(pictures([(64, 96)] * 5)).split([2, 3])
    batch = {0: torch.export.Dim("batch", min=2, max=8)}
    exported = torch.export.export(model, (images,), dynamic_shapes=(batch,), strict=False).module()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        for run in exported, compiled:
            torch.testing.assert_close(run(others), model(others))


@pytest.mark.parametrize("frames", [None, 3])
def test_bytes_are_normalised_as_published_and_zero_where_padded(frames):
    images = pictures([(40, 50), (30, 64)], frames)
    expected, padding = pad_images([PUBLISHED(image) for image in images])
    stacked, _ = pad_images(images)
    padded = padding.view(2, *[1] * (stacked.dim() - 3), 40, 64)
    found, same = build("detr").prepare(stacked.masked_fill(padded, 77), padding)  # whatever is there
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert torch.equal(same, padding)


@every_family
def test_images_are_padded_to_what_the_published_model_divides_by(name):
    """Mask2Former's ``SIZE_DIVISIBILITY``, and patch times windows; the other detectors and SeqFormer have none."""
    model = build(name)
    divisor = 32 if CONFIGS[name].loss == "masks" or isinstance(CONFIGS[name], LwDetrConfig) else 1
    for size, whole in (((50, 70), (64, 96)), ((64, 96), (64, 96)), ((360, 640), (384, 640))):
        height, width = whole if divisor == 32 else size
        for of_type in (torch.uint8, torch.float32):
            images = torch.full((2, 3, *size), 255).to(of_type)
            found, padding = model.prepare(images, torch.zeros(2, *size, dtype=torch.bool))
            assert found.shape == (2, 3, height, width)
            assert padding.shape == (2, height, width)
            valid = torch.zeros(height, width, dtype=torch.bool)
            valid[: size[0], : size[1]] = True
            assert torch.equal(padding, ~valid.expand_as(padding))
            assert (found != 0).equal(valid.expand_as(found))


def test_normalised_images_are_taken_as_they_are():
    images = torch.randn(2, 3, 40, 50)
    found, _ = build("detr").prepare(images, torch.zeros(2, 40, 50, dtype=torch.bool))
    assert torch.equal(found, images)


@every_family
def test_checkpoints_have_nothing_of_it(name):
    assert not {"mean", "std"} & build(name).state_dict().keys()


def test_a_pinned_batch_is_pinned_whole(monkeypatch):
    """Masks are the largest part of a batch."""
    pinned = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor.clone())
    target = Target(torch.zeros(2), torch.zeros(2, 4), (8, 8), (8, 8), image_id=7, masks=torch.zeros(2, 8, 8).bool())
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8).bool(), [target])
    (copied,) = batch.pin_memory().targets
    assert {id(tensor) for tensor in pinned} == {
        id(tensor) for tensor in (batch.images, batch.padding, target.labels, target.boxes, target.masks)
    }
    assert copied.masks is not target.masks
    assert (copied.image_id, copied.size) == (7, (8, 8))
