"""Models of dqdet as models of ``transformers``, and back: the same outputs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from dqdet.adapters import transformers as adapter
from dqdet.config import Config, resolve
from dqdet.data.transforms import input_size
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.models.lw_detr import LwDetr
from dqdet.runs.folder import save_folder
from dqdet.runs.sources import load_model

SMALL: dict[str, Any] = {
    "model.backbone.name": "resnet18",
    "model.backbone.pretrained": False,
    "model.hidden": 64,
    "model.heads": 4,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.feedforward": 48,
    "model.dropout": 0.0,
    "queries.count": 7,
    "queries.ratio": 3,
    "queries.hidden": 16,
    "classes": ["a", "b", "c", "d"],
}
MODULATED: dict[str, dict[str, Any]] = {
    "detr_r50": {},
    "conditional_detr_r50": {"queries.context": "memory"},
    "dab_detr_r50": {"queries.pool": "max"},
    "dab_detr_r50 patterns": {"model.patterns": 2, "model.activation": "relu", "queries.basic": "groups"},
    "deformable_detr_r50": {"queries.context": "projected"},
    "deformable_detr_r50_refine": {"queries.context": "memory", "loss.beta": 0.5},
    "mask2former_r50_coco_instance": {"model.see_padding": True, "category_ids": [1, 2, 3, 4]},
    "mask2former_r50_coco_instance memory": {
        "model.see_padding": True,
        "queries.context": "memory",
        "category_ids": [1, 2, 3, 4],
    },
    "detr_r50 shared": {"queries.kind": "shared", "queries.patterns": 5},
    "deformable_detr_r50 none": {"queries.context": "none"},
    "deformable_detr_r50 static": {"queries.kind": "static"},
    "detr_r50 trained norms": {"model.backbone.freeze": False, "loss.beta": None},
    "dab_detr_r50 denoising": {"queries.denoising": 6},
}
OF_RESNETS = ("model.backbone.name", "model.encoder_layers")
WITHOUT_ENCODER = {option: value for option, value in SMALL.items() if option not in OF_RESNETS}
LW_DETR: dict[str, Any] = {
    "model.backbone.name": "cae_tiny",
    "model.backbone.positions": 3,
    "model.backbone.global_blocks": [0],
    "model.backbone.taps": [1, 3],
    "model.cross_heads": 8,
}
RF_DETR: dict[str, Any] = {
    "model.backbone.positions": 4,
    "model.backbone.global_blocks": [2],
    "model.backbone.taps": [1, 3],
    "model.cross_heads": 8,
    "data.square": False,
}
GROUPS = {
    "lw_detr_tiny": LW_DETR,
    "lw_detr_tiny levels": LW_DETR | {"model.scales": [2.0, 0.5], "queries.context": "projected"},
    "lw_detr_tiny none": LW_DETR | {"queries.context": "none"},
    "lw_detr_tiny grouped": LW_DETR | {"queries.kind": "grouped"},
    "lw_detr_tiny static": LW_DETR | {"queries.kind": "static"},
    "rf_detr_nano": RF_DETR,
    "rf_detr_seg_nano": RF_DETR | {"model.backbone.windows": 2, "queries.context": "projected", "data.val_resize": 288},
}


def build(name: str) -> tuple[Detector, Config]:
    torch.manual_seed(0)
    options = SMALL | MODULATED[name] if name in MODULATED else WITHOUT_ENCODER | GROUPS[name]
    config = resolve(name.split()[0], options)
    model = create_model(config).eval()
    with torch.no_grad():  # away from initial values that hide mistakes
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.2 * torch.rand_like(buffer)
    return model, config


def inputs(model: Detector) -> tuple[Tensor, Tensor]:
    """Two images, the second with padding. Theirs of whole windows must be square, or RF-DETR's are mixed up."""
    height, width = (128 // model.divisor * model.divisor,) * 2 if isinstance(model, LwDetr) else (96, 128)
    images = torch.randn(2, 3, height, width)
    padding = torch.zeros(2, height, width, dtype=torch.bool)
    padding[1, :, 90:] = True
    images[1, :, :, 90:] = 0
    return images, padding


def found_by_ours(model: Detector, images: Tensor, padding: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        final = model(images, padding).final
    found = {"logits": final.logits[0]} | ({} if final.boxes is None else {"boxes": final.boxes[0]})
    return found | ({} if final.masks is None else {"masks": final.masks.all()[0]})


def found_by_theirs(model: transformers.PreTrainedModel, images: Tensor, padding: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(pixel_values=images, pixel_mask=(~padding).long())
    if "masks_queries_logits" in output:
        return {"logits": output.class_queries_logits, "masks": output.masks_queries_logits}
    found = {"logits": output.logits, "boxes": output.pred_boxes}
    return found | ({"masks": output.pred_masks} if "pred_masks" in output else {})


SLOW = (
    *("rf_detr_seg_nano", "detr_r50 shared", "deformable_detr_r50 static", "deformable_detr_r50 none"),
    *("mask2former_r50_coco_instance memory", "dab_detr_r50"),
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODULATED | GROUPS]
)
def test_there_and_back(name, tmp_path):
    model, config = build(name)
    save_folder(tmp_path / "ours", model, config, {})
    images, padding = inputs(model)
    expected = found_by_ours(model, images, padding)

    adapter.convert(tmp_path / "ours", tmp_path / "theirs")
    architecture = json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"][0]
    if config.queries.kind == "static" or (name in GROUPS and config.queries.kind == "grouped"):
        theirs = getattr(transformers, architecture).from_pretrained(tmp_path / "theirs")
    else:
        theirs = adapter.load(tmp_path / "theirs")
    assert type(theirs).__name__ == architecture
    assert list(theirs.config.id2label.values()) == config.classes
    found = found_by_theirs(theirs, images, padding)
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        scale = wanted.abs().max().clamp(min=1).item()
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=1e-5 * scale, msg=lambda m, key=key: f"{key}: {m}")

    image = Image.effect_noise((96, 64), 90).convert("RGB")
    prepared = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")(image, return_tensors="pt")
    size = [-(-side // model.divisor) * model.divisor for side in input_size(64, 96, config.data)]
    assert list(prepared["pixel_values"].shape[2:]) == size
    back = load_model(tmp_path / "theirs")
    assert list(input_size(64, 96, back.config.data)) == size
    torch.testing.assert_close(back.config.data.std, config.data.std)
    assert back.config.queries.kind == config.queries.kind
    if isinstance(theirs, adapter.Modulated):
        assert back.config.queries == config.queries.model_copy(update={"denoising": 0})  # no queries of a model
        assert back.config.loss.beta == config.loss.beta
    assert back.config.classes == config.classes
    for key, wanted in found_by_ours(back.model, images, padding).items():
        scale = wanted.abs().max().clamp(min=1).item()
        torch.testing.assert_close(wanted, expected[key], rtol=0, atol=1e-5 * scale)


@torch.no_grad()
def test_groups_find_the_same_in_training():
    """Every group of queries of LW-DETR, with the proposals of its own head."""
    model, config = build("lw_detr_tiny")
    theirs = adapter.to_transformers(model, config)
    images, padding = inputs(model)
    for one in (model, theirs):
        one.train()
        for norm in one.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.eval()
    expected, found = model(images, padding), found_by_theirs(theirs, images, padding)
    assert expected.logits.shape[2] == 7 * (1 + 3)
    torch.testing.assert_close(found["logits"], expected.logits[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["boxes"], expected.boxes[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries.basic": "whole"}, "queries.kind=modulated with queries.basic=whole: lw_detr of transformers trains"),
        ({"queries.kind": "generated"}, "queries.kind=generated with .* can be converted"),
        ({"queries.context": "memory"}, "context=memory: it has no such map; there are backbone, projected, none"),
    ],
)
def test_queries_that_their_groups_have_no_place_for(options, message):
    config = resolve("lw_detr_tiny", WITHOUT_ENCODER | LW_DETR | options)
    with pytest.raises(DqdetError, match=message):
        adapter.to_transformers(create_model(config), config)


def test_families_and_backbones_that_are_not_there(tmp_path):
    config = resolve("smca_detr_r50", SMALL)
    with pytest.raises(DqdetError, match="transformers has no smca_detr; it has detr, "):
        adapter.to_transformers(create_model(config), config)
    config = resolve("detr_r50", SMALL | {"model.backbone.name": "test_resnet"})
    with pytest.raises(DqdetError, match=r"model.backbone.name=test_resnet: models with resnet18, .* converted only"):
        adapter.to_transformers(create_model(config), config)
    config = resolve("rf_detr_nano", WITHOUT_ENCODER | RF_DETR)
    model, config.model.backbone.name = create_model(config), "test_vit"
    with pytest.raises(DqdetError, match=r"name=test_vit: models with vit_small_patch14_dinov2, .* converted only"):
        adapter.to_transformers(model, config)
    config = resolve("dab_detr_r50", SMALL | {"model.temperature": 20.5})
    with pytest.raises(DqdetError, match=r"model.temperature=20.5: transformers has whole numbers only"):
        adapter.to_transformers(create_model(config), config)
    config = resolve("detr_r50", SMALL)
    model = create_model(config)
    config.model.backbone.name = "resnet34"
    with pytest.raises(DqdetError, match=r"the detr of transformers has other parameters: \d+ unknown"):
        adapter.to_transformers(model, config)
    save_folder(tmp_path, model, config.model_copy(update={"classes": ["a", "b", "c", "d"]}), {})
    with pytest.raises(DqdetError, match=str(tmp_path)):
        adapter.convert(tmp_path, tmp_path / "out")
