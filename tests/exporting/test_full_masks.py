"""Masks at the resolution of the images: what is found in pixels, without any code of dqdet behind the file."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from small_models import small_config, small_model, some_images

import dqdet
from dqdet.exporting.meaning import outputs
from dqdet.exporting.network import Network
from dqdet.formats.rle import encode
from dqdet.inference import infer
from dqdet.runs.folder import save_folder


@pytest.mark.parametrize(
    ("name", "height", "width"), [("mask2former", 96, 72), ("mask2former", 90, 71), ("rf_detr_seg", 96, 96)]
)
def test_they_are_what_is_found_in_images_of_that_size(name, height, width):
    config = small_config(name, "modulated")
    model = small_model(config)
    images, _ = some_images(1, height, width)
    sizes = torch.tensor([[height, width]])
    with torch.inference_mode():
        found = dict(zip(outputs(config), Network(model, config, "full")(images, sizes), strict=True))
        prediction = model(images, torch.zeros(1, height, width, dtype=torch.bool))
        (expected,) = infer(prediction, [(height, width)], [(height, width)], config)
    assert found["masks"].shape[2:] == (height, width)
    scores, order = found["scores"][0].sort(descending=True, stable=True)
    assert len(scores) == len(expected.scores) > 5
    torch.testing.assert_close(scores, expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found["boxes"][0, order], expected.boxes, rtol=0, atol=1e-3)
    assert encode(found["masks"][0, order] > 0) == expected.masks.rles
    assert torch.equal(found["labels"][0, order], expected.labels)


@pytest.mark.slow
def test_a_file_with_them_says_so_and_predicts_what_the_run_does(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    config = small_config("mask2former", "static")
    config.classes = ["cat", "dog", "bird"]
    save_folder(tmp_path / "run", small_model(config), config, {})
    file = dqdet.export(tmp_path / "run", tmp_path / "model.onnx", size=64, masks="full")
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(file)
    said = json.loads(session.get_modelmeta().custom_metadata_map["dqdet.outputs"])
    assert "[batch, objects, height, width]" in said["masks"]
    masks = dict(zip(said, session.run(None, {"images": image.transpose(2, 0, 1)[None]}), strict=True))["masks"]
    assert masks.shape[2:] == (64, 64)
    wanted, got = (dqdet.load(model, device="cpu")(image, 0.0) for model in (tmp_path / "run", file))
    np.testing.assert_allclose(got.confidence, wanted.confidence, atol=1e-4)
    assert (got.mask != wanted.mask).mean() < 1e-4
