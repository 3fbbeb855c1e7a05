"""Checkpoints of the ``rfdetr`` package, by the names of its own models: every size becomes the preset of that size.

The package is no dependency: ``pip install --no-deps --target DIR rfdetr pyDeprecate`` puts it beside the tests, which
find it with ``DQDET_RFDETR=DIR`` (version 1.11.2).
"""

from __future__ import annotations

import argparse
import os
import sys

import pytest
import torch

from dqdet.config import resolve
from dqdet.errors import DqdetError
from dqdet.runs.sources import load_model

SIZES = {
    "rf_detr_nano": "RFDETRNanoConfig",
    "rf_detr_small": "RFDETRSmallConfig",
    "rf_detr_medium": "RFDETRMediumConfig",
    "rf_detr_base": "RFDETRBaseConfig",
    "rf_detr_large": "RFDETRLargeConfig",
    "rf_detr_seg_preview": "RFDETRSegPreviewConfig",
    "rf_detr_seg_nano": "RFDETRSegNanoConfig",
    "rf_detr_seg_small": "RFDETRSegSmallConfig",
    "rf_detr_seg_medium": "RFDETRSegMediumConfig",
    "rf_detr_seg_large": "RFDETRSegLargeConfig",
    "rf_detr_seg_xlarge": "RFDETRSegXLargeConfig",
    "rf_detr_seg_2xlarge": "RFDETRSeg2XLargeConfig",
}


@pytest.fixture(scope="module")
def package():
    """The package's configurations and its function that makes a model."""
    folder = os.environ.get("DQDET_RFDETR")
    if folder is None:
        pytest.skip("the rfdetr package is not there; set DQDET_RFDETR, see the top of this file")
    sys.path.insert(0, folder)
    config = pytest.importorskip("rfdetr.config")
    return config, pytest.importorskip("rfdetr.models.lwdetr").build_model_from_config


def theirs(package, name: str, **options):
    """A model of the package with random weights, in evaluation mode, and its image size."""
    config, build = package
    torch.manual_seed(0)
    options = getattr(config, SIZES[name])(pretrain_weights="none.pth", device="cpu", **options)
    model = build(options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        # Of hundreds of cells, two look so alike that rounding decides their order: with equal queries it is no matter.
        for table in (model.query_feat.weight, model.refpoint_embed.weight):
            table.copy_(table[:1].expand_as(table))
    return model, options


QUICK = ("rf_detr_nano", "rf_detr_base", "rf_detr_seg_nano")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SIZES]
)
def test_a_checkpoint_becomes_the_preset_of_its_size(package, tmp_path, name):
    """Key for key, with the same outputs, masks included."""
    model, options = theirs(package, name)
    torch.save({"model": model.state_dict(), "args": argparse.Namespace(epochs=3)}, tmp_path / "theirs.pth")
    ours, config, _ = load_model(tmp_path / "theirs.pth")
    preset = resolve(name)
    assert config.preset == name
    assert config.model.model_copy(update={"backbone": preset.model.backbone}) == preset.model
    assert config.model.backbone == preset.model.backbone.model_copy(update={"pretrained": True})
    assert (config.queries.kind, config.queries.count, config.queries.ratio) == ("grouped", preset.queries.count, 12)
    assert (config.classes[1], config.category_ids[1], len(config.classes)) == ("person", 1, 91)
    assert options.resolution == preset.data.val_resize
    assert options.patch_size * options.num_windows == ours.divisor

    image = torch.randn(1, 3, options.resolution, options.resolution)
    with torch.no_grad():
        expected = model(image)
        final = ours(image, torch.zeros(1, *image.shape[2:], dtype=torch.bool)).final
    order = torch.cdist(expected["pred_boxes"][0], final.boxes[0, 0]).argmin(1)
    assert len(order.unique()) == preset.queries.count
    torch.testing.assert_close(final.logits[0, 0, order], expected["pred_logits"][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(final.boxes[0, 0, order], expected["pred_boxes"][0], rtol=1e-4, atol=1e-4)
    assert ("pred_masks" in expected) == (preset.model.family == "rf_detr_seg")
    if final.masks is not None:
        found = final.masks.of(0, 0, order)
        torch.testing.assert_close(found, expected["pred_masks"][0], rtol=1e-4, atol=1e-3)


def test_a_checkpoint_of_no_published_size_is_refused(package, tmp_path):
    model, _ = theirs(package, "rf_detr_nano", dec_layers=1)
    torch.save(model.state_dict(), tmp_path / "theirs.pth")
    with pytest.raises(DqdetError) as error:
        load_model(tmp_path / "theirs.pth")
    assert "has the sizes of no published rf_detr (backbone.name=vit_small_patch14_dinov2" in str(error.value)
    assert "\n" not in str(error.value)
