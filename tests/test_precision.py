"""Half precision: places stay exact, and every family runs in it, learns in it, and can be cast to it."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dqdet.config import QueriesConfig
from dqdet.losses import make_loss
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.nn.position import sine_position
from dqdet.queries import SharedQueries, combine, mix
from dqdet.types import Predictions
from small_families import CLIPS, CONFIGS, FRAMES, IMAGES, build, inputs, make_targets, reads_clips
from test_families import loss_config
from tiny import tiny_family

every_family = pytest.mark.parametrize("name", CONFIGS)
predicts_boxes = pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.loss != "masks"])


def predict(model: Detector, dtype: torch.dtype | None = None) -> Predictions:
    features, padding = inputs(model)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        return model.forward_features(features, padding)


@predicts_boxes
@pytest.mark.usefixtures("same_proposals")
def test_boxes_under_autocast_are_those_of_float32(name):
    """But for what the decoder's activations lose: rounded to 8 bits, boxes alone would be off by up to 2e-3."""
    model = build(name).eval()
    exact, mixed = predict(model), predict(model, torch.bfloat16)
    assert mixed.boxes.dtype == torch.float32
    assert mixed.logits.dtype == torch.bfloat16  # the rest follows autocast
    difference = (mixed.boxes - exact.boxes).abs()
    assert difference.mean() < 1e-3
    assert difference.max() < 6e-3
    assert (mixed.boxes != mixed.boxes.bfloat16()).float().mean() > 0.9


@every_family
def test_coefficients_under_autocast_are_those_of_float32(name):
    model = build(name).eval()
    assert torch.equal(predict(model, torch.bfloat16).coefficients, predict(model).coefficients)


def test_queries_are_combined_in_float32():
    basic, coefficients = torch.randn(12, 4), torch.rand(2, 3, 4).softmax(-1)
    expected = combine(basic, coefficients)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = combine(basic, coefficients)
    assert torch.equal(found, expected)


class Products(TorchDispatchMode):
    """Counts matrix products, which GPUs round to TF32 in trainings."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm")
        return func(*args, **(kwargs or {}))


def test_places_of_shared_patterns_are_not_rounded_to_tf32():
    patterns, coefficients = torch.randn(12, 4), torch.rand(2, 3, 12).softmax(-1)
    with Products() as for_places, torch.autocast("cpu", dtype=torch.bfloat16):
        places = mix(patterns, coefficients, exactly=True)
    with Products() as for_contents:
        contents = mix(patterns, coefficients, exactly=False)
    assert (for_places.count, for_contents.count) == (0, 1)
    torch.testing.assert_close(places, contents)

    queries = SharedQueries({"anchor": 4, "change": 4, "content": 8}, 16, QueriesConfig(kind="shared", count=5))
    with Products() as for_all:
        queries(torch.randn(2, 16, 3, 3), torch.zeros(2, 3, 3, dtype=torch.bool))
    assert for_all.count == 2 + 1  # those of the coefficients, and that of the content


def test_bytes_are_normalised_in_float32_whatever_the_model():
    model = build("detr")
    pixels, padding = torch.randint(256, (1, 3, 8, 8), dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.bool)
    exact, _ = model.prepare(pixels, padding)
    rounded, _ = model.bfloat16().prepare(pixels, padding)
    assert torch.equal(rounded, exact.bfloat16())


def test_centres_of_masks_are_pixels_of_large_frames():
    """With 8 bits, a place at 1,000 pixels would be known to 4 pixels only."""
    model = build("seqformer").eval()
    exact, mixed = predict(model), predict(model, torch.bfloat16)
    assert mixed.masks.centres.dtype == mixed.masks.embeddings.dtype == torch.float32
    torch.testing.assert_close(mixed.masks.centres[0], exact.masks.centres[0], rtol=1e-6, atol=1e-5)


def test_position_encodings_are_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sine_position(torch.zeros(1, 4, 5, dtype=torch.bool), 8).dtype == torch.float32


@pytest.mark.parametrize(
    "preset",
    [
        "detr_r50",
        "conditional_detr_r50",
        "smca_detr_r50",
        "dab_detr_r50",
        "deformable_detr_r50",
        "deformable_detr_r50_refine",
        "dab_deformable_detr_r50",
        "dino_r50",
        "mask2former_r50_coco_instance",
        "video_mask2former_r50",
        "seqformer_r50",
    ],
)
@pytest.mark.parametrize("kind", ["static", "modulated"])
@pytest.mark.usefixtures("same_proposals")
def test_a_model_cast_to_bfloat16_runs(preset, kind):
    torch.manual_seed(0)
    config = tiny_family(preset, classes=["cat", "dog"], queries__kind=kind)
    model = create_model(config).eval()
    frames = (2,) if config.data.task == "video" else ()
    images, padding = torch.randn(2, *frames, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, :, 64:] = True
    with torch.inference_mode():
        exact = model(images, padding)
        found = model.bfloat16()(images.bfloat16(), padding)
    assert found.logits.dtype == torch.bfloat16
    assert (found.logits.float() - exact.logits).abs().mean() < 0.02  # at the most uncertain cells masks differ
    if exact.boxes is not None:
        assert found.boxes.dtype == torch.float32
        torch.testing.assert_close(found.boxes, exact.boxes, rtol=0, atol=0.02)


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16-mixed", "16-mixed"])
def test_a_step_in_mixed_precision_has_finite_gradients(name, dtype):
    model = build(name).train()
    sizes, frames = (CLIPS, FRAMES) if reads_clips(model) else (IMAGES, None)
    targets = make_targets(sizes, (2, 3, 1)[: len(sizes)], frames)
    features, padding = inputs(model)
    torch.manual_seed(0)  # of the points in masks
    with torch.autocast("cpu", dtype=dtype):
        losses = make_loss(loss_config(name))(model.forward_features(features, padding), targets)
    assert losses.total.dtype == torch.float32
    losses.total.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    assert not [key for key, gradient in gradients.items() if not gradient.isfinite().all()]
