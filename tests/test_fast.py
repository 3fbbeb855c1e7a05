"""Networks made fast for inference: the same outputs as those that were trained."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import dqdet
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.fast import folded, made_fast
from dqdet.nn.heads import in_float32
from tiny import tiny_family

PRESETS = [
    *("detr_r50", "conditional_detr_r50", "smca_detr_r50", "dab_detr_r50", "deformable_detr_r50_refine"),
    *("dab_deformable_detr_r50", "dino_r50", "mask2former_r50_coco_instance", "video_mask2former_r50", "seqformer_r50"),
]
CHANNELS = 96  # of the last map of test_resnet
every_family = pytest.mark.parametrize("preset", PRESETS)


def family(preset: str, **options):
    """A model whose heads are no longer at their start, and images of two sizes for it."""
    torch.manual_seed(0)
    config = tiny_family(preset, classes=["cat", "dog"], **{"queries__kind": "modulated"} | options)
    model = create_model(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight += 0.02 * torch.randn_like(module.weight)
            elif isinstance(module, nn.BatchNorm2d):  # not the identity that it starts as
                module.running_mean += 0.1 * torch.randn_like(module.running_mean)
                module.running_var *= 1 + 0.5 * torch.rand_like(module.running_var)
    frames = (2,) if config.data.task == "video" else ()
    images, padding = torch.randint(256, (2, *frames, 3, 64, 96), dtype=torch.uint8), torch.zeros(2, 64, 96).bool()
    padding[1, :, 64:] = True
    return model, images, padding


def count_norms(model) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.backbone.modules())


@every_family
@torch.inference_mode()
def test_folded_norms_change_nothing(preset):
    model, images, padding = family(preset, model__backbone__freeze=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected, found = model(images, padding), folded(model)(images, padding)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    if expected.boxes is not None:
        torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-5)
    assert count_norms(folded(model)) < count_norms(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())  # a copy was made


@every_family
@pytest.mark.usefixtures("same_proposals")
@torch.inference_mode()
def test_half_precision_keeps_scores_and_boxes_in_single_precision(preset):
    model, images, padding = family(preset)
    fast = made_fast(model, "bf16")
    assert {parameter.dtype for parameter in fast.backbone.parameters()} == {torch.bfloat16}
    expected, found = model(images, padding), fast(images, padding)
    assert found.logits.dtype == torch.float32
    assert (found.logits != found.logits.bfloat16()).float().mean() > 0.9
    assert (found.logits - expected.logits).abs().mean() < 0.05
    if expected.boxes is not None:
        assert found.boxes.dtype == torch.float32
        assert (found.boxes - expected.boxes).abs().mean() < 2e-3


@every_family
@torch.inference_mode()
def test_half_precision_keeps_all_heads_that_run_in_float32(preset, monkeypatch):
    model, images, padding = family(preset)
    heads = []

    def recorded(head, x):
        heads.append(head)
        return in_float32(head, x)

    for name, module in list(sys.modules.items()):
        if name.startswith("dqdet.") and vars(module).get("in_float32") is in_float32:
            monkeypatch.setattr(module, "in_float32", recorded)
    made_fast(model, "bf16")(images, padding)
    assert {parameter.dtype for head in heads for parameter in head.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["static", "modulated", "generated", "shared"])
@torch.inference_mode()
def test_half_precision_keeps_places_and_coefficients_of_queries(kind):
    model, *_ = family("dab_deformable_detr_r50", queries__kind=kind)
    fast = made_fast(model, "bf16")
    feature, padding = torch.randn(2, CHANNELS, 3, 4).bfloat16(), torch.zeros(2, 3, 4, dtype=torch.bool)
    exact, found = model.queries(feature.float(), padding), fast.queries(feature, padding)
    assert torch.equal(found["anchor"], exact["anchor"])
    assert torch.equal(found["content"], exact["content"].bfloat16())
    assert found["content"].dtype == torch.bfloat16
    if exact.coefficients is not None:
        assert torch.equal(found.coefficients, exact.coefficients)


@torch.inference_mode()
def test_anchors_of_half_precision_do_not_move_boxes():
    """Rounded themselves, they move boxes of an image of 1,333 pixels by up to 2 of these here."""
    model, images, padding = family("dab_deformable_detr_r50")
    expected, found = model(images, padding), made_fast(model, "bf16")(images, padding)
    assert (found.boxes - expected.boxes).abs().max() * 1333 < 1


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_is_equal():
    model, images, padding = family("deformable_detr_r50_refine")
    expected, found = model(images, padding), made_fast(model, compiled=True)(images, padding)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=0, atol=1e-4)


def test_load_takes_a_precision(small_run):
    images = [torch.randint(256, (3, 64, 96), dtype=torch.uint8)]
    exact = dqdet.load(small_run, device="cpu")(images, threshold=0)[0]
    predictor = dqdet.load(small_run, device="cpu", precision="bf16")
    found = predictor(images, threshold=0)[0]
    assert next(predictor.model.backbone.parameters()).dtype == torch.bfloat16
    assert abs(found.confidence[0] - exact.confidence[0]) < 0.01
    assert next(predictor.trained.backbone.parameters()).dtype == torch.float32  # what is published


def test_a_model_that_nothing_is_asked_of_stays_itself():
    model, *_ = family("detr_r50")
    assert made_fast(model) is model


def said_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("dqdet")]


@pytest.mark.parametrize("there", [False, True])
def test_a_cpu_without_half_precision_is_said(small_run, tmp_path, monkeypatch, caplog, there):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("dqdet.models.fast._cpu_has", lambda precision: there)
    dqdet.load(small_run)
    dqdet.export(small_run, tmp_path / "model.onnx", half=True)  # for another machine
    assert said_of(caplog) == []
    dqdet.load(small_run, precision="bf16")
    said = ["precision=bf16: this CPU computes without it, many times slower than fp32"]
    assert said_of(caplog) == ([] if there else said)


def test_unknown_precisions_are_refused(small_run):
    with pytest.raises(DqdetError, match="precision=int8: should be one of fp32, bf16, fp16"):
        dqdet.load(small_run, precision="int8")
