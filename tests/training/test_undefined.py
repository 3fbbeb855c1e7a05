"""What cannot be measured is no score: the newest model is kept then, and of equal ones, too."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from recorder import Recorder
from safetensors.torch import load_file

from dqdet import cli
from dqdet.config import resolve
from dqdet.metrics.detection import DetectionMetric
from dqdet.metrics.scores import is_kept, is_score, shown
from dqdet.predict.predictor import Predictor
from dqdet.predict.sources import predict
from dqdet.runs.folder import load_folder, load_metrics
from dqdet.training.engine import train
from dqdet.training.evaluation import evaluate
from dqdet.types import ImageDetections
from tiny import TINY, tiny

NAN = float("nan")


class Weights(Recorder):
    """Keeps the weights after every epoch, and the names of what the last validation logged."""

    def on_validation_end(self, trainer, pl_module):
        self.logged = set(trainer.callback_metrics)

    def on_validation_start(self, trainer, pl_module):
        self.weights = [*getattr(self, "weights", []), {n: t.clone() for n, t in pl_module.model.state_dict().items()}]


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([0.3, 0.5, 0.4], 2),
        ([-1, -1, -1], 3),  # nothing to measure
        ([NAN, NAN, NAN], 3),
        ([0.0, 0.0, 0.0], 3),  # equal
        ([0.5, 0.5, 0.4], 2),
        ([-1, 0.0, -1], 2),  # any score is more than none
        ([0.3, NAN, 0.2], 1),
    ],
)
def test_the_best_model_is_the_newest_of_equals_and_has_a_score_if_any_has(scores, kept, tmp_path, monkeypatch):
    given = iter(scores)
    monkeypatch.setattr(DetectionMetric, "compute", lambda self: {"AP": next(given)})
    train(tiny(), tmp_path, [recorder := Weights()])
    assert load_metrics(tmp_path)["step"] == 3 * kept
    saved = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in recorder.weights[kept - 1].items())


@pytest.mark.parametrize(
    ("found", "best", "kept"),
    [({"AP": 0.1}, {}, True), ({}, {}, True), ({}, {"AP": 0.1}, False), ({"AP": 0.1}, {"step": 3}, True)],
)
def test_metrics_that_are_absent_are_no_scores(found, best, kept):
    assert is_kept(found, best, "AP") == kept


def test_what_is_no_score_is_shown_as_a_dash():
    assert [shown(value) for value in (-1, -1.0, NAN, None, 0.0, 0.12345)] == ["-", "-", "-", "-", "0.000", "0.123"]
    assert [is_score(value) for value in (-1, NAN, None, 0.0)] == [False, False, False, True]


def black(folder, image_ids=(1, 2, 3, 4), annotated=(), category_id=1) -> None:
    """A split of black images, of which some show a square, it is said."""
    folder.mkdir(parents=True)
    images = [{"id": number, "file_name": f"{number}.png", "width": 64, "height": 64} for number in image_ids]
    for image in images:
        Image.new("RGB", (64, 64)).save(folder / image["file_name"])
    objects = [
        {"id": number, "image_id": number, "category_id": category_id, "bbox": [4, 4, 20, 20], "area": 400}
        | {"iscrowd": 0, "segmentation": [[4, 4, 24, 4, 24, 24, 4, 24]]}
        for number in annotated
    ]
    document = {"images": images, "annotations": objects, "categories": [{"id": category_id, "name": "cat"}]}
    (folder / "_annotations.coco.json").write_text(json.dumps(document))


SMALL = {name: value for name, value in TINY.items() if not name.startswith("data.scenes")} | {"data.kind": "coco"}


def test_a_validation_without_objects_keeps_the_newest_and_says_so(tmp_path, capsys):
    for split, annotated in (("train", (1, 2, 3, 4)), ("val", ())):
        black(tmp_path / "data" / split, annotated=annotated)
    config = resolve("scenes_tiny", SMALL | {"data.root": str(tmp_path / "data")})
    train(config, tmp_path / "run", [recorder := Weights()])
    err = capsys.readouterr().err
    assert err.count("AP is not defined on the validation split, which has nothing to measure it on: the newest") == 1
    assert re.findall(r"^epoch (\d)/3 .*  AP -(?: |$)", err, re.M) == ["1", "2", "3"]
    assert load_metrics(tmp_path / "run")["step"] == 3
    saved = load_file(tmp_path / "run/model.safetensors")
    assert torch.equal(saved["queries.basic.content"], recorder.weights[-1]["queries.basic.content"])
    assert "val/AP" not in recorder.logged
    assert evaluate(tmp_path / "run")["AP"] == -1


def test_the_command_line_shows_no_score_as_a_dash(tmp_path, capsys):
    for split, annotated in (("train", (1, 2, 3, 4)), ("val", ())):
        black(tmp_path / "data" / split, annotated=annotated)
    options = {name: value for name, value in SMALL.items() if name != "model.refine"} | {"train.epochs": 1}
    words = [f"{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in options.items()]
    arguments = ["train", "scenes_tiny", *words, f"data.root={tmp_path / 'data'}", "--out", str(tmp_path / "run")]
    cli.app(arguments, standalone_mode=False)
    assert capsys.readouterr().out == f"{tmp_path / 'run'}: AP -, AP50 - (last validation, step 1)\n"


HUGE = 2**53


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_ids_beyond_doubles_are_kept_apart(task, tmp_path):
    """2**53 and 2**53 + 1 are the same double; results are those of small ids, and have the true ones."""
    measured = {}
    for name, first in (("small", 1), ("huge", HUGE)):
        ids = range(first, first + 4)
        for split in ("train", "val"):
            annotated = ids if split == "train" else ids[:2]
            black(tmp_path / name / split, image_ids=ids, annotated=annotated, category_id=first)
        preset = "scenes_tiny" if task == "detection" else "scenes_tiny_panoptic"
        options = {k: v for k, v in SMALL.items() if task == "detection" or k != "model.refine"}
        config = resolve(preset, options | {"data.task": task, "data.root": str(tmp_path / name), "train.steps": 1})
        train(config, tmp_path / name / "run")
        measured[name] = evaluate(tmp_path / name / "run")
    assert measured["huge"] == measured["small"]
    assert measured["huge"]["AP"] >= 0

    run = tmp_path / "huge" / "run"
    predict(Predictor(*load_folder(run)), [tmp_path / "huge" / "val"], tmp_path / "out")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert {entry["category_id"] for entry in results} == {HUGE}
    assert {entry["image_id"] for entry in results} == set(range(HUGE, HUGE + 4))  # the names of the files


def test_perfect_results_of_huge_ids_are_perfect():
    ids = [HUGE, HUGE + 1, HUGE + 2]
    images = [{"id": number, "height": 64, "width": 64} for number in ids]
    categories = [{"id": number, "name": str(number)} for number in ids]
    truth = [
        {"id": n, "image_id": number, "category_id": number, "bbox": [4 * n, 4, 9, 9], "area": 81, "iscrowd": 0}
        for n, number in enumerate(ids)
    ]
    metric = DetectionMetric({"images": images, "categories": categories, "annotations": truth}, ids)
    for n, number in enumerate(ids):
        box = torch.tensor([[4.0 * n, 4, 4 * n + 9, 13]])
        metric.update([number], [ImageDetections(torch.ones(1), torch.tensor([n]), box)])
    assert [metric.compute()[f"AP/{number}"] for number in ids] == pytest.approx([1] * 3, abs=1e-9)
    assert np.isclose(metric.compute()["AP"], 1)
