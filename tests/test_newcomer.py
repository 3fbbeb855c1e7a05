"""A newcomer's path: the README's commands for own data, on real images, from a look at the files to a report."""

import csv
import json
import re
from pathlib import Path

import PIL.Image
import pytest

from documentation import ROOT, as_words, blocks
from dqdet.metrics.scores import shown
from dqdet.training import evaluation, report

WRITE = report.write_report  # which is left out in other tests
SIZES = {  # of scenes_tiny, which learns on a CPU
    "model.backbone.name": "test_resnet",
    "model.backbone.pretrained": False,
    "model.backbone.freeze": False,
    "model.hidden": 64,
    "model.heads": 4,
    "model.encoder_layers": 1,
    "model.decoder_layers": 2,
    "model.feedforward": 128,
    "model.levels": 3,
    "queries.count": 30,
    "queries.hidden": 64,
    "data.resize": [96],
    "data.val_resize": 96,
    "data.max_size": 128,
    "data.workers": 0,
    "train.lr": 1e-3,
    "train.backbone_lr": 1e-3,
    "train.warmup": 10,
    "train.epochs": 4,
}


def own_data_commands() -> list[list[str]]:
    """Those of the section "Your own data", in the README's order."""
    text = (ROOT / "README.md").read_text()
    first = text.count("\n", 0, text.index("## Your own data")) + 1
    block = next(block for block in blocks(ROOT / "README.md") if block.line > first)
    return [words[1:] for words in block.commands()]


@pytest.mark.slow
def test_from_the_readme_to_a_report(run, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "write_report", WRITE)
    monkeypatch.chdir(tmp_path)
    bccd = shared / "data" / "bccd"
    places = {"/data/cells": str(bccd), "RUN": "runs/deformable_detr_r50", "photos/": str(bccd / "images" / "val")}
    done = []
    for words in own_data_commands():
        words = [re.sub("^(data.root=|)/data/cells$", lambda found: f"{found[1]}{bccd}", word) for word in words]
        words = [places.get(word, word) for word in words if word != "init=RUN_OR_CHECKPOINT"]  # from nothing
        words += as_words(SIZES) if words[0] == "train" else []
        status, _, err = run(*words)
        assert status == 0, f"dqdet {' '.join(words)}: {err}"
        done.append(words[0])
    assert list(dict.fromkeys(done)) == ["data", "train", "eval", "predict"]

    assert "RBC" in (tmp_path / "cells.html").read_text()
    folder = tmp_path / "runs" / "deformable_detr_r50"
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    assert metrics["AP"] > 0.01  # it has learned something
    page = (folder / "eval" / "report.html").read_text()
    assert re.search(r"<td>AP</td>\s*<td>(.*?)</td>", page)[1] == shown(metrics["AP"])
    with (folder / "eval" / "classes.csv").open() as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"RBC", "WBC", "Platelets"}

    images = sorted(file.name for file in (bccd / "images" / "val").iterdir())
    pictures = [file for file in sorted((tmp_path / "DIR").iterdir()) if file.suffix == ".jpg"]
    assert [file.name for file in pictures] == images
    assert all(PIL.Image.open(file).size == (640, 480) for file in pictures[:3])
    thresholds = json.loads((folder / "thresholds.json").read_text())
    assert all(0 <= threshold <= 1 for threshold in thresholds.values())


def test_the_path_is_the_one_that_the_readme_describes():
    commands = own_data_commands()
    assert list(dict.fromkeys(words[0] for words in commands)) == ["data", "train", "eval", "predict"]
    assert all(Path(word).suffix != ".py" for words in commands for word in words)
