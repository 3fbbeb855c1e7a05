"""An exported model is as good as the run that it was made from, by the official metrics."""

from __future__ import annotations

from pathlib import Path

import pytest

import dqdet

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


@pytest.fixture
def metrics(tmp_path):
    """Trains a tiny model for some steps, exports it to ONNX for one size, and measures both."""

    def measure(preset: str, size: tuple[int, int], **options) -> tuple[dict[str, float], dict[str, float]]:
        options = {"data.workers": 0, "train.warmup": 5} | options
        run = dqdet.train(preset, out=tmp_path / "run", **options)
        file = dqdet.export(run, tmp_path / "model.onnx", size=size)
        return tuple(dqdet.evaluate(model, Path(tmp_path / name)) for name, model in (("a", run), ("b", file)))

    return measure


def assert_same(of_run, of_file, headline):
    assert of_run[headline] > 0.01
    assert of_file == pytest.approx(of_run, abs=5e-4, nan_ok=True)


def test_box_ap_on_blood_cells_is_that_of_the_run(shared, metrics):
    cells = {"data.kind": "coco", "data.root": str(shared / "data" / "bccd"), "train.steps": 120}
    sides = {"data.resize": [96], "data.val_resize": 96}  # 96x128, as all of these images have 480x640
    assert_same(*metrics("scenes_tiny", (96, 128), **cells, **sides, **{"queries.kind": "modulated"}), "AP")


def test_pq_on_scenes_is_that_of_the_run(metrics):
    scenes = {"data.scenes.train_images": 400, "data.scenes.val_images": 20, "train.steps": 120}
    young = {"inference.object_threshold": 0.05, "inference.overlap_threshold": 0.0}  # its scores are low
    sides = {"data.scenes.size": 64, "data.resize": [64], "data.val_resize": 64, "data.max_size": 64}
    assert_same(*metrics("scenes_tiny_panoptic", (64, 64), **scenes, **young, **sides), "PQ")
