"""What a person watches during a training: patience, curves, pictures of validations, scores of classes in the log."""

import csv
import io
import re

import numpy as np
import PIL.Image
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dqdet.drawing.curves import curves
from dqdet.training import engine
from dqdet.training.logs import CsvLog
from dqdet.training.monitoring import Curves
from tiny import TINY, tiny

DRAW = Curves.draw


class Scripted:
    """An evaluation that finds what a test says."""

    best = "AP"

    def __init__(self, scores):
        self.scores = iter(scores)

    def reset(self):
        pass

    def update(self, image_ids, outcomes):
        pass

    def compute(self):
        score = next(self.scores)
        return {"AP": score, "AP/cat, small": score / 2, "AR100/cat, small": 0.9, "AP/dog": -1.0}


@pytest.fixture
def scripted(monkeypatch):
    def script(*scores):
        monkeypatch.setattr(engine, "make_metric", lambda config, dataset: Scripted(scores))

    return script


def rows_of(run):
    return list(csv.DictReader((run / "logs/csv/version_0/metrics.csv").open()))


def test_a_training_ends_when_validations_stop_getting_better(tmp_path, scripted, capsys):
    scripted(0.1, 0.3, 0.2, 0.3, 0.4, 0.5)
    run = engine.train(tiny(train__epochs=6, train__patience=2, train__drop=[5.0]), tmp_path / "run")
    assert [float(row["val/AP"]) for row in rows_of(run) if row["val/AP"]] == pytest.approx([0.1, 0.3, 0.2, 0.3])
    assert "AP has not become better in 2 validations (train.patience=2): the training ends after step 12" in (
        capsys.readouterr().err
    )
    before = (run / "model.safetensors").read_bytes()
    engine.resume(run)  # it has ended
    assert len([row for row in rows_of(run) if row["val/AP"]]) == 4
    assert (run / "model.safetensors").read_bytes() == before
    scripted(0.6, 0.7)
    engine.resume(run, {"train.patience": 3})
    assert len([row for row in rows_of(run) if row["val/AP"]]) == 6


def test_the_log_has_the_scores_of_classes_whatever_their_names(tmp_path, scripted):
    scripted(0.1, 0.2)
    run = engine.train(tiny(train__epochs=2, train__drop=[1.0]), tmp_path / "run")
    rows = [row for row in rows_of(run) if row["val/AP"]]
    assert [float(row["val/AP/cat, small"]) for row in rows] == pytest.approx([0.05, 0.1])
    assert not any("AR100/" in name or "dog" in name for name in rows[0])
    assert CsvLog(run / "logs/csv/version_0/metrics.csv").has_validation(6)


def test_curves_are_those_of_the_log_and_are_in_the_folder_of_the_run(tmp_path, scripted, monkeypatch):
    monkeypatch.setattr(Curves, "draw", DRAW)
    scripted(0.1, 0.3)
    run = engine.train(tiny(train__epochs=2, train__drop=[1.0], train__batch=2), tmp_path / "run")
    with PIL.Image.open(run / "curves.png") as picture:
        assert picture.size == (1200, 400)
        assert np.asarray(picture.convert("L")).std() > 10  # not blank
    rows = rows_of(run)
    losses, rates, scores = curves(rows, "AP").axes
    shown = {line.get_label(): line.get_xydata().tolist() for line in scores.lines}
    steps = [int(row["step"]) for row in rows if row["val/AP"]]
    np.testing.assert_allclose(shown["AP"], list(zip(steps, [0.1, 0.3], strict=True)))
    np.testing.assert_allclose(shown["cat, small"], list(zip(steps, [0.05, 0.15], strict=True)))
    logged = [(int(row["step"]), float(row["train/loss"])) for row in rows if row["train/loss"]]
    np.testing.assert_allclose(losses.lines[0].get_xydata(), logged)
    assert len(rates.lines) == sum(name.startswith("lr-") for name in rows[0])


def test_the_same_validation_images_are_drawn_with_what_the_model_finds(tmp_path):
    options = {"train__epochs": 2, "train__drop": [1.0], "train__pictures": 2, "data__scenes__val_images": 5}
    run = engine.train(tiny(**options), tmp_path / "run")
    files = sorted((run / "logs/pictures").iterdir())
    assert [file.name for file in files] == ["epoch_0001.jpg", "epoch_0002.jpg"]
    events = EventAccumulator(str(run / "logs/tensorboard/version_0")).Reload()
    images = events.Images("val/pictures")
    assert [image.step for image in images] == [3, 6]
    with PIL.Image.open(files[1]) as drawn, PIL.Image.open(io.BytesIO(images[1].encoded_image_string)) as logged:
        assert drawn.size == logged.size
        # The first and the last image of the split, each with truth and prediction of 480 pixels.
        assert drawn.size == (12 + 2 * 492, 40 + 2 * 492)
        difference = np.abs(np.asarray(drawn, dtype=int) - np.asarray(logged.convert("RGB"), dtype=int))
        assert difference.mean() < 5  # of JPEG


def test_a_rehearsal_says_what_a_training_needs_and_keeps_nothing(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"{name}={value}" for name, value in TINY.items() if not isinstance(value, str)]
    status, out, err = run("train", "scenes_tiny", *options, "model.backbone.name=test_resnet", "--dry-run")
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 4, out
    data, memory, time, whole = out.splitlines()
    assert re.fullmatch(
        r"scenes_tiny with modulated queries, 0.4 M parameters, 12 training and 4 validation images, 8 classes", data
    )
    assert re.fullmatch(r"memory: at most \d+ MiB of .*", memory)
    assert re.fullmatch(r"time: [\d.e-]+ s a step of 4, [\d.e-]+ s an image in validation", time)
    assert re.fullmatch(r"in all: 9 steps and 3 validations, about \d+:\d\d:\d\d", whole)
    assert list(tmp_path.iterdir()) == []
    assert run("train", "--dry-run")[2] == ("error: --dry-run takes a preset and options alone; it writes nothing\n")
