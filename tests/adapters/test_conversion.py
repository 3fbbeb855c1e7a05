"""Models of dqdet as models of ``transformers``, and back: the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dqdet.adapters import transformers as adapter
from dqdet.config import Config, resolve
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
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
}


def build(name: str) -> tuple[Detector, Config]:
    torch.manual_seed(0)
    config = resolve(name.split()[0], SMALL | MODULATED[name])
    model = create_model(config).eval()
    with torch.no_grad():  # away from initial values that hide mistakes
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model, config


def found_by_ours(model: Detector, images: Tensor, padding: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        final = model(images, padding).final
    found = {"logits": final.logits[0]}
    return found | ({"boxes": final.boxes[0]} if final.masks is None else {"masks": final.masks.all()[0]})


def found_by_theirs(model: transformers.PreTrainedModel, images: Tensor, padding: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(pixel_values=images, pixel_mask=(~padding).long())
    if "masks_queries_logits" in output:
        return {"logits": output.class_queries_logits, "masks": output.masks_queries_logits}
    return {"logits": output.logits, "boxes": output.pred_boxes}


@pytest.mark.parametrize("name", MODULATED)
def test_there_and_back(name, tmp_path):
    model, config = build(name)
    save_folder(tmp_path / "ours", model, config, {})
    images = torch.randn(2, 3, 96, 128)
    padding = torch.zeros(2, 96, 128, dtype=torch.bool)
    padding[1, :, 90:] = True
    images[1, :, :, 90:] = 0
    expected = found_by_ours(model, images, padding)

    adapter.convert(tmp_path / "ours", tmp_path / "theirs")
    if config.queries.kind == "static":
        theirs = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "theirs")
    else:
        theirs = adapter.load(tmp_path / "theirs")
    assert list(theirs.config.id2label.values()) == config.classes
    found = found_by_theirs(theirs, images, padding)
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        scale = wanted.abs().max().clamp(min=1).item()
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=1e-5 * scale, msg=lambda m, key=key: f"{key}: {m}")

    back = load_model(tmp_path / "theirs")
    assert back.config.queries.kind == config.queries.kind
    if config.queries.kind != "static":
        assert back.config.queries == config.queries
        assert back.config.loss.beta == config.loss.beta
    assert back.config.classes == config.classes
    for key, wanted in found_by_ours(back.model, images, padding).items():
        scale = wanted.abs().max().clamp(min=1).item()
        torch.testing.assert_close(wanted, expected[key], rtol=0, atol=1e-5 * scale)


def test_families_and_backbones_that_are_not_there(tmp_path):
    config = resolve("smca_detr_r50", SMALL)
    with pytest.raises(DqdetError, match="transformers has no smca_detr; it has detr, "):
        adapter.to_transformers(create_model(config), config)
    config = resolve("detr_r50", SMALL | {"model.backbone.name": "test_resnet"})
    with pytest.raises(DqdetError, match=r"model.backbone.name=test_resnet: models with resnet18, .* converted only"):
        adapter.to_transformers(create_model(config), config)
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
