"""Exported files in use: the same results as the run, what they say of themselves, and clear answers to mistakes."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

import dqdet
from dqdet.data import open_dataset
from dqdet.errors import DqdetError
from dqdet.exporting.formats import FORMATS, format_of
from dqdet.models import create_model
from dqdet.predict.sources import predict
from dqdet.runs.folder import save_folder
from tiny import tiny, tiny_family

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIZE = 64
LIMIT = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose model was not trained: its scores are close to each other, which is the harder case."""
    config = tiny(queries__kind="modulated", inference__limit=LIMIT, data__max_size=96)
    dataset = open_dataset(config.data, "val", 0)
    config = config.model_copy(update={"classes": dataset.classes, "category_ids": dataset.category_ids})
    torch.manual_seed(0)
    model = create_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("run")
    save_folder(path, model, config, {})
    return path


@pytest.fixture(scope="module")
def file(folder, tmp_path_factory):
    return dqdet.export(folder, tmp_path_factory.mktemp("exported") / "model.onnx", size=SIZE)


@pytest.fixture
def pictures(tmp_path):
    """Squares, and a wide one that is padded."""
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate([(64, 64), (64, 64), (40, 80), (30, 30)]):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def assert_same_results(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert (one["image_id"], one["category_id"]) == (other["image_id"], other["category_id"])
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)  # pixels


def test_predictions_are_those_of_the_run(run, folder, file, pictures, tmp_path):
    options = ["data.val_fit=inside", f"data.val_size=[{SIZE},{SIZE}]", f"data.val_pad=[{SIZE},{SIZE}]"]
    status, _, err = run("predict", folder, pictures, *options, "--out", tmp_path / "run")
    assert status == 0, err
    status, _, err = run("predict", file, pictures, "--out", tmp_path / "file")
    assert status == 0, err
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("file", "run"))
    assert_same_results(ours, theirs)
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {e.name for e in (tmp_path / "file").iterdir()}


def test_evaluation_is_that_of_the_run(folder, file, tmp_path):
    of_run = dqdet.evaluate(folder, tmp_path / "run")
    of_file = dqdet.evaluate(file, tmp_path / "file")
    assert of_file == pytest.approx(of_run, abs=1e-3, nan_ok=True)
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("file", "run"))
    assert_same_results(ours, theirs)


def test_other_programs_need_the_file_alone(folder, file):
    session = onnxruntime.InferenceSession(file)
    said = session.get_modelmeta().custom_metadata_map
    assert json.loads(said["dqdet.classes"]) == dqdet.load(folder).config.classes
    assert json.loads(said["dqdet.size"]) == [SIZE, SIZE]
    inputs = [*session.get_inputs(), *session.get_overridable_initializers()]  # what must, and what may be given
    assert [*json.loads(said["dqdet.inputs"])] == [value.name for value in inputs]
    assert [*json.loads(said["dqdet.outputs"])] == [value.name for value in session.get_outputs()]
    images = np.random.default_rng(1).integers(0, 256, (3, 3, SIZE, SIZE), dtype=np.uint8)
    boxes, scores, labels = session.run(None, {"images": images})  # whole images need no sizes
    predictor = dqdet.load(folder, device="cpu")
    for number, image in enumerate(images):
        found = predictor(image.transpose(1, 2, 0), 0.0)
        np.testing.assert_allclose(scores[number], found.confidence, atol=1e-4)
        np.testing.assert_array_equal(labels[number], found.class_id)
        np.testing.assert_allclose(boxes[number], found.xyxy, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [one.suffix for one in FORMATS.values()])
def test_files_of_any_size_find_in_a_padded_batch_what_the_run_finds(folder, tmp_path, suffix):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    predictors = [dqdet.load(folder, device="cpu"), dqdet.load(dqdet.export(folder, tmp_path / f"model{suffix}"))]
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (height, 90, 3), dtype=np.uint8) for height in (64, 75, 101)]
    for wanted, got in zip(*(predictor(images, 0.0) for predictor in predictors), strict=True):
        np.testing.assert_allclose(got.confidence, wanted.confidence, atol=1e-4)
        np.testing.assert_array_equal(got.class_id, wanted.class_id)
        np.testing.assert_allclose(got.xyxy, wanted.xyxy, atol=0.02)


@pytest.mark.slow
def test_half_precision_halves_the_weights_and_finds_the_same(folder, file, tmp_path):
    half = dqdet.export(folder, tmp_path / "half.onnx", size=SIZE, half=True)
    weights = {value.name: value for value in onnx.load(half).graph.initializer}
    kinds = Counter()
    for value in weights.values():
        kinds[value.data_type] += math.prod(value.dims)
    assert kinds[onnx.TensorProto.FLOAT16] > 5 * kinds[onnx.TensorProto.FLOAT]  # which are heads
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    wanted, got = (dqdet.load(path)(image, 0.0) for path in (file, half))
    np.testing.assert_allclose(got.confidence, wanted.confidence, atol=0.01)
    assert np.median(np.abs(got.xyxy - wanted.xyxy)) < 0.5  # pixels; of equal scores the order may change


def unkind(images):
    raise Exception("no such kernel\non this processor")  # a runtime has exceptions of its own


def without_memory(images):
    raise MemoryError


def without_memory_in_onnxruntime(images):
    """Which shall fill 10^15 numbers."""
    shape = onnx.helper.make_tensor_value_info("shape", onnx.TensorProto.INT64, [1])
    filled = onnx.helper.make_tensor_value_info("filled", onnx.TensorProto.FLOAT, [None])
    node = onnx.helper.make_node("ConstantOfShape", ["shape"], ["filled"])
    graph = onnx.helper.make_graph([node], "graph", [shape], [filled])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {"shape": np.array([10**15])})


def without_memory_in_openvino(images):
    raise RuntimeError(
        "Exception from src/inference/src/cpp/infer_request.cpp:224:\n"
        "[CPU] Broadcast node with name 'y' Check 'ptr' failed at src/plugins/intel_cpu/src/cpu_memory.cpp:257:\n"
        "Failed to allocate 4000000000000 bytes of memory\n"
    )


@pytest.mark.parametrize(
    ("fail", "expected"),
    [
        (unkind, "model.onnx: fails on images of 64x64 pixels (no such kernel on this processor)"),
        (without_memory, "not enough memory for 64x64 pixels"),
        (without_memory_in_onnxruntime, "not enough memory for 64x64 pixels"),
        (without_memory_in_openvino, "not enough memory for another 4000000000000 bytes for 64x64 pixels"),
    ],
)
def test_an_image_that_a_runtime_fails_on_costs_no_other(file, pictures, tmp_path, monkeypatch, fail, expected):
    Image.new("RGB", (SIZE, SIZE), "white").save(pictures / "white.png")
    predictor = dqdet.load(file)
    run = predictor.model.session.run

    def run_or_fail(images, sizes):
        if (images == 255).all((1, 2, 3)).any():
            fail(images)
        return run(images, sizes)

    monkeypatch.setattr(predictor.model.session, "run", run_or_fail)
    (failure,) = predict(predictor, [pictures], tmp_path / "out")
    assert str(failure).startswith("white.png: ")
    assert expected in str(failure)
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["0.png", "1.png", "2.png", "3.png"]


def test_fewer_objects_can_be_asked_for_and_not_more(file):
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    assert len(dqdet.load(file, inference={"limit": 3})(image, 0.0)) == 3
    with pytest.raises(DqdetError, match=f"inference.limit={LIMIT + 1}.*selects {LIMIT} objects"):
        dqdet.load(file, inference={"limit": LIMIT + 1})
    with pytest.raises(DqdetError, match=r"inference\.window=2 has no effect with data\.task=detection"):
        dqdet.load(file, inference={"window": 2})


def test_a_file_of_one_size_takes_no_other(file):
    with pytest.raises(DqdetError, match=f"data.val_resize: .*{SIZE}x{SIZE} pixels"):
        dqdet.load(file, data={"val_resize": 96})


def test_an_exported_file_has_no_coefficients_and_is_not_published(file):
    predictor = dqdet.load(file)
    for use in (lambda: predictor.coefficients([np.zeros((9, 9, 3), np.uint8)]), lambda: predictor.push_to_hub("a/b")):
        with pytest.raises(DqdetError, match="exported"):
            use()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--format", "tflite", "--out", "m.onnx"], "--format tflite: no such format; there are onnx"),
        (["--out", "m.bin"], "m.bin: no format is known by its suffix"),
        (["--format", "onnx", "--out", "m.pt2"], "m.pt2: files of format onnx end in .onnx"),
        (["--size", "big", "--out", "m.onnx"], "--size big: not a size"),
        (["--size", "64", "--dynamic", "--out", "m.onnx"], "leave out one of them"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_heavy_is_imported(run, folder, monkeypatch, arguments, answer):
    monkeypatch.setitem(sys.modules, "dqdet.exporting.export", None)  # importing it would fail
    status, _, err = run("export", folder, *arguments)
    assert status == 1
    assert answer in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("task", ["detection", "panoptic", "video"])
def test_masks_that_a_model_does_not_give_are_refused_before_anything_heavy_is_imported(
    run, tmp_path, monkeypatch, format, task
):
    if format == "openvino":
        pytest.importorskip("openvino")
    preset = {"detection": "detr_r50", "panoptic": "mask2former_r50_coco_panoptic", "video": "video_mask2former_r50"}
    config = tiny_family(preset[task], classes=["cat", "dog"])
    save_folder(tmp_path / "run", create_model(config), config, {})
    for name in [*filter(heavy, sys.modules)]:
        monkeypatch.delitem(sys.modules, name)
    file = tmp_path / f"model{FORMATS[format].suffix}"
    status, _, err = run("export", tmp_path / "run", "--out", file, "--masks", "full")
    assert status == 1
    assert err.startswith(f"error: --masks full: a model of data.task={task} ")
    assert err.count("\n") == 1
    assert [*filter(heavy, sys.modules)] == []


def heavy(module: str) -> bool:
    """Whether a module is one of the packages that write files."""
    return module.split(".")[0] in ("onnx", "onnx_ir", "onnxscript", "openvino") or module.startswith(
        ("torch.onnx._internal.exporter", "dqdet.exporting.onnx_files", "dqdet.exporting.openvino_files")
    )


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("dqdet.exporting.formats.find_spec", lambda name: None)
    with pytest.raises(DqdetError, match=r"onnx and onnxscript: pip install 'dqdet\[export\]'"):
        format_of("onnx", tmp_path / "m.onnx")


def test_an_exported_file_is_exported_only_once(run, file, tmp_path):
    status, _, err = run("export", file, "--out", tmp_path / "again.onnx")
    assert status == 1
    assert "is exported already" in err


def test_a_file_of_another_library_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [result])
    model = onnx.helper.make_model(graph, ir_version=9, opset_imports=[onnx.helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(DqdetError, match="was not exported by dqdet"):
        dqdet.load(tmp_path / "other.onnx")


@pytest.mark.parametrize("suffix", [one.suffix for one in FORMATS.values()])
def test_a_damaged_file_is_refused(file, tmp_path, suffix):
    if suffix == ".xml":
        pytest.importorskip("openvino")
    content = file.read_bytes()
    damaged = tmp_path / f"model{suffix}"
    damaged.write_bytes(content[: len(content) // 2])
    with pytest.raises(DqdetError, match="damaged, cut short, or not of this format") as error:
        dqdet.load(damaged)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DqdetError, match="no such file"):
        dqdet.load(tmp_path / "nothing.onnx")


def test_a_size_that_the_model_cannot_take_is_refused(tmp_path):
    config = tiny_family("dino_r50", queries__count=100, model__hidden=64).model_copy(
        update={"classes": ["cat", "dog"]}
    )
    save_folder(tmp_path / "run", create_model(config), config, {})
    with pytest.raises(DqdetError, match=r"--size 32x48: the model cannot take such images .*queries\.count=100"):
        dqdet.export(tmp_path / "run", tmp_path / "model.onnx", size=(32, 48))
    assert not (tmp_path / "model.onnx").exists()
