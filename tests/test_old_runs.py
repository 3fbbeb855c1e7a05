"""Run folders that earlier versions wrote load, predict the same, and can be trained further."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dqdet

FOLDERS = sorted((Path(__file__).parent / "old_runs").iterdir())
every_version = pytest.mark.parametrize("folder", FOLDERS, ids=[folder.name for folder in FOLDERS])


@every_version
def test_predictions_are_those_of_the_version_that_wrote_it(folder):
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    expected = json.loads((folder / "expected.json").read_text())
    predictor = dqdet.load(folder, device="cpu")
    found = predictor(Image.fromarray(pixels), threshold=0.0)
    np.testing.assert_allclose(found.confidence, expected["confidence"], atol=1e-5)
    assert found.class_id.tolist() == expected["class_id"]
    np.testing.assert_allclose(found.xyxy, expected["xyxy"], atol=1e-3)
    np.testing.assert_allclose(
        predictor.coefficients([Image.fromarray(pixels)])[0], expected["coefficients"], atol=1e-5
    )


@every_version
def test_a_training_goes_on(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    dqdet.train(resume=tmp_path / "run", **{"train.epochs": 2})
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 2
