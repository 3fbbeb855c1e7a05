"""Every study, end to end at a size of seconds, and what its conclusions rest on."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import dqdet
from dqdet.config import override, resolve
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.queries import random_coefficients
from dqdet.studies import QUESTIONS, figures, study
from dqdet.studies.coefficients import Seen, knowledge, picture, probe
from dqdet.studies.combinations import combined
from dqdet.studies.paired import difference, learned, spread
from dqdet.studies.running import FINISHED, read_curve
from dqdet.studies.small import DEFORMABLE_DETR, detector
from tiny import PRESETS, TINY, contents

# A training of one step; without what is not an option of all families.
SMALL: dict[str, Any] = {
    **{
        name: value
        for name, value in TINY.items()
        if not name.startswith(("model.refine", "model.decoder_layers", "train.drop", "train.epochs"))
    },
    "queries.count": 4,
    "data.scenes.train_images": 4,
    "data.scenes.val_images": 2,
}
MASKS = {"model.encoder_feedforward": 32, "loss.points": 64}
VIDEO = {"data.scenes.frames": 3, "data.clips.frames": 3, "data.scenes.val_images": 1}
STATIC_AND_MODULATED = ("static", "modulated")


def files(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir() if file.is_file()}


@pytest.mark.parametrize(
    ("name", "only", "arms", "options"),
    [
        ("detectors", ("DETR",), ("static", "grouped", "constant", "modulated"), {}),
        ("segmentation", ("panoptic", *STATIC_AND_MODULATED), STATIC_AND_MODULATED, MASKS),
        ("video", ("Mask2Former", *STATIC_AND_MODULATED), STATIC_AND_MODULATED, MASKS | VIDEO),
        ("generated", (), ("static", "generated", "modulated"), {}),
        ("beta", ("beta 0", "beta 1", "static"), ("beta 0", "beta 1", "static"), {}),
        (
            "grouped",
            ("Deformable-DETR", "grouped, equal groups", "modulated, one a step", "static"),
            ("static", "grouped, equal groups", "modulated, one a step"),
            {},
        ),
        ("queries", ("DAB-Deformable-DETR", "1 static", "4 modulated"), ("1 static", "4 modulated"), {}),
        ("epochs", STATIC_AND_MODULATED, STATIC_AND_MODULATED, {"train.epochs": 2, "train.drop": [1.0]}),
        ("ratio", ("static", "ratio 1", "ratio 8"), ("static", "ratio 1", "ratio 8"), {}),
    ],
)
def test_a_comparison_trains_all_kinds_and_writes_table_and_figure(tmp_path, name, only, arms, options):
    out, page = tmp_path / "out", tmp_path / "docs" / f"{name}.md"
    report = study(name, out, seeds=1, jobs=1, only=only, page=page, **SMALL | options)
    trained = sorted(path for path in out.iterdir() if path.is_dir())
    assert len(trained) == len(arms)
    assert all((path / FINISHED).exists() and (path / "model.safetensors").exists() for path in trained)
    rows = [line.split(" | ")[1] for line in report.tables[0][2:]]
    assert sorted(rows) == sorted(arms)
    columns = list(zip(*(line[2:-2].split(" | ") for line in report.tables[0]), strict=True))
    assert all(
        any(cells) for _, _, *cells in columns[:-1]
    )  # no metric without a number, such as AP_large of small scenes
    assert files(out) == {"results.json", "table.md", f"{name}.svg", f"{name}.png"}
    (of_model,) = json.loads((out / "results.json").read_text())["results"].values()
    assert of_model["arms"].keys() == set(arms)
    drawn = (out / f"{name}.svg").read_text()
    lines = {"queries": ("static", "modulated"), "ratio": ("static", "modulated"), "beta": ("static", "modulated")}
    assert all(arm in drawn for arm in lines.get(name, arms[1:]))
    text = page.read_text()
    assert QUESTIONS[name] in text
    assert f"({name}.svg)" in text
    assert (page.parent / f"{name}.svg").exists()
    assert f"dqdet study {name} --seeds 1" in text
    assert "one pair of trainings says nothing about chance" in text
    assert "[" not in text.partition("\n| ---")[2].partition("\n\n")[0]  # one seed: no interval in the table


def test_the_curve_of_a_training_has_all_validations(tmp_path):
    study("epochs", tmp_path, seeds=1, jobs=1, only=("static",), **SMALL | {"train.epochs": 3, "train.drop": [2.0]})
    curve = read_curve(tmp_path / "deformable-detr-static-0")
    assert list(curve) == [1, 2, 3]
    assert all("AP_small" in measured for measured in curve.values())


def test_finished_trainings_are_kept_and_unfinished_ones_go_on(tmp_path):
    options = SMALL | {"train.epochs": 3, "train.drop": [2.0]}
    only = ("static", "generated")
    first = study("generated", tmp_path, seeds=1, jobs=1, only=only, **options)
    static, generated = (tmp_path / f"deformable-detr-{arm}-0" for arm in only)
    before = contents(static)
    (generated / FINISHED).unlink()  # as a kill before the end leaves it
    said: list[str] = []
    again = study("generated", tmp_path, seeds=1, jobs=1, only=only, say=said.append, **options)
    assert contents(static) == before
    assert said[0] == "1 of 2 trainings are in the folder"
    assert said[1].startswith("2 of 2 trainings, Deformable-DETR, generated, seed 0; 0:00:00 left")
    assert again.results == first.results
    assert len(list((generated / "logs/tensorboard/version_0").glob("events*"))) == 2  # it went on, not anew

    more = study("generated", tmp_path, seeds=2, jobs=1, only=only, **options)
    assert contents(static) == before
    assert " over 2 seeds: " in more.text()
    assert study("generated", tmp_path, seeds=1, only=only, report=True, **options).text() == more.text()


def test_a_report_names_the_machines_that_trained(tmp_path):
    only = ("static", "generated")
    study("generated", tmp_path, seeds=1, jobs=1, only=only, **SMALL)
    for arm, machine in zip(only, ("an H200", "an H100"), strict=True):
        finished = tmp_path / f"deformable-detr-{arm}-0" / FINISHED
        finished.write_text(json.dumps(json.loads(finished.read_text()) | {"machine": machine}))
    page = tmp_path / "page.md"
    study("generated", tmp_path, seeds=1, only=only, report=True, page=page, **SMALL)
    assert "Measured on an H100 and an H200." in page.read_text()


@pytest.mark.parametrize("report", [False, True])
def test_a_folder_with_other_options_is_refused(tmp_path, report):
    study("generated", tmp_path, seeds=1, jobs=1, only=("static",), **SMALL)
    with pytest.raises(DqdetError, match=r"static-0: has a training with other options \(train\.lr\)"):
        study("generated", tmp_path, seeds=1, jobs=1, only=("static",), report=report, **SMALL | {"train.lr": 0.1})


def test_a_study_goes_on_where_its_data_lie_elsewhere(tmp_path, shared):
    options = {name: value for name, value in SMALL.items() if not name.startswith("data.scenes")}
    options |= {"data.kind": "coco", "data.crop": False, "train.steps": 1, "data.val_resize": 32}
    link, out = tmp_path / "bccd", tmp_path / "out"
    link.symlink_to(shared / "data" / "bccd")
    study("generated", out, seeds=1, jobs=1, only=("static",), **options | {"data.root": str(link)})
    (out / "deformable-detr-static-0" / FINISHED).unlink()
    link.unlink()
    moved = {"data.root": str(shared / "data" / "bccd"), "train.recompute": True}
    study("generated", out, seeds=1, jobs=1, only=("static",), **options | moved)
    assert (out / "deformable-detr-static-0" / FINISHED).exists()


def test_a_part_of_a_training_is_named(tmp_path):
    study("generated", tmp_path, seeds=1, jobs=1, only=("static",), **SMALL)
    (tmp_path / "deformable-detr-static-0" / "validations.json").unlink()
    with pytest.raises(DqdetError, match="static-0: has no validations, only a part of a training"):
        study("generated", tmp_path, seeds=1, only=("static",), report=True, **SMALL)


def test_a_report_of_other_numbers_of_queries_says_what_is_there(tmp_path):
    only = ("DAB-Deformable-DETR", "1 static")
    study("queries", tmp_path, seeds=1, jobs=1, only=only, **SMALL)
    with pytest.raises(DqdetError, match=r"trainings \(dab-deformable-detr-1-static-0\) are others than asked for"):
        study("queries", tmp_path, seeds=1, report=True)


def test_a_page_that_is_there_is_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("**Learned:** a lot.")
    with pytest.raises(DqdetError, match=r"page\.md exists already"):
        study("generated", tmp_path / "out", seeds=1, only=("static",), page=page, **SMALL)
    assert page.read_text() == "**Learned:** a lot."
    assert not (tmp_path / "out").exists()


def test_fewer_queries_are_compared_with_the_most_static_ones_and_with_as_many(tmp_path):
    only = ("DAB-Deformable-DETR", "1 static", "1 modulated", "4 static")
    report = study("queries", tmp_path, seeds=1, jobs=1, only=only, **SMALL)
    compared = [sentence.split(": ")[1] for sentence in report.learned]
    assert compared == ["1 static against 4 static", "1 modulated against 4 static", "1 modulated against 1 static"]


def test_the_command_of_a_report_reads_back_as_it_was_given(tmp_path):
    given = SMALL | {"loss.beta": None, "data.resize": [32], "model.refine": True}
    study("generated", tmp_path, seeds=1, jobs=1, only=("static",), **given)
    words = shlex.split(json.loads((tmp_path / "results.json").read_text())["command"])
    start = resolve(detector(DEFORMABLE_DETR).preset, detector(DEFORMABLE_DETR).options)
    assert override(start, [word for word in words if "=" in word]) == override(start, given)


def test_any_preset_and_data_set_is_studied(tmp_path, shared):
    options = {name: value for name, value in SMALL.items() if not name.startswith("data.scenes")}
    data = {"data.kind": "coco", "data.root": str(shared / "data" / "bccd"), "data.crop": False, "train.steps": 1}
    backbone = {"model.backbone.pretrained": False, "data.val_resize": 32}
    report = study(
        "detectors", tmp_path, seeds=1, jobs=1, preset="dab_detr_r50", only=("static",), **options | data | backbone
    )
    assert [line.split(" | ")[:2] for line in report.tables[0][2:]] == [["| dab_detr_r50", "static"]]
    assert "0.421" in report.tables[0][2]  # the paper's


@pytest.mark.parametrize(("preset", "compared"), [(None, True), ("scenes_tiny", False)])
def test_the_paper_is_on_pages_of_models_that_it_has_numbers_of(tmp_path, preset, compared):
    page = tmp_path / "page.md"
    study("generated", tmp_path / "out", seeds=1, jobs=1, preset=preset, only=("static",), page=page, **SMALL)
    text = page.read_text()
    assert ("| paper's AP |" in text) == compared
    assert ("The paper's numbers are of its own data sets." in text) == compared


def started_study(out: Path, options: dict[str, Any], sign: str) -> subprocess.Popen[str]:
    """A study of two trainings at a time, in a group of its own, whose trainings both have left a ``sign``."""
    words = [f"{path}={json.dumps(value) if isinstance(value, list) else value}" for path, value in options.items()]
    command = [sys.executable, "-m", "dqdet", "study", "generated", "--seeds", "1", "--jobs", "2"]
    command += ["--only", "static", "--only", "generated", *words, "--out", str(out)]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(6000):  # ten minutes, for machines that are busy
        if len(list(out.glob(f"*/{sign}"))) == 2:
            return process
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_a_study_that_is_stopped_saves_its_trainings(tmp_path, send):
    options = SMALL | {"data.scenes.train_images": 40000, "train.epochs": 1, "train.drop": [0.8]}
    process = started_study(tmp_path, options, "logs/csv/version_0/metrics.csv")
    send(process.pid, signal.SIGTERM)  # alone, or with its jobs, which then get it twice
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "stopped with 0 of 2 trainings finished; the same command goes on" in said
    assert len(list(tmp_path.glob("*/last.ckpt"))) == 2  # in the middle of the first epoch


@pytest.mark.slow
def test_a_killed_study_leaves_no_process_and_goes_on(tmp_path):
    options = SMALL | {"train.epochs": 150, "train.drop": [100.0], "train.validate_every": 50}
    process = started_study(tmp_path, options, "last.ckpt")
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(children) >= 2
    for _ in range(300):
        if not any(Path(f"/proc/{child}").exists() for child in children):
            break
        time.sleep(0.1)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    study("generated", tmp_path, seeds=1, jobs=1, only=("static", "generated"), **options)
    for arm in ("static", "generated"):
        folder = tmp_path / f"deformable-detr-{arm}-0"
        assert max(read_curve(folder)) == 150
        assert len(list((folder / "logs" / "csv").iterdir())) == 1  # one log, however often it goes on


# Combinations


def test_combinations_of_a_trained_model_are_measured_and_kept(tmp_path):
    options = SMALL | {"queries.kind": "static", "train.epochs": 1, "train.drop": [0.8]}
    run = dqdet.train("scenes_tiny", out=tmp_path / "run", **options)
    before = contents(run)
    said: list[str] = []
    report = study("combinations", tmp_path / "out", model=run, say=said.append)
    rows = {line.split(" | ")[1]: line.split(" | ")[2] for line in report.tables[0][2:]}
    draws = {"convex": "6", "non-convex": "6", "averaged": "1", "sampled": "6"}
    assert report.tables[0][0] == "| model | queries | draws | AP |"  # nothing of the paper, which has not measured it
    assert rows == {"learned, all": "1"} | {f"{kind}, r = {r}": n for r in (2, 4) for kind, n in draws.items()}
    (found,) = report.results.values()
    assert found["draws"]["learned, all"] == [json.loads((run / "metrics.json").read_text())["AP"]]
    assert contents(run) == before
    kept = (tmp_path / "out" / "combinations.json").read_text()
    assert study("combinations", tmp_path / "out", model=run).results == report.results
    assert (tmp_path / "out" / "combinations.json").read_text() == kept
    assert len(said) == 9


def test_combinations_are_measured_again_where_the_model_or_the_options_are_others(tmp_path, monkeypatch):
    options = SMALL | {"queries.kind": "static", "train.epochs": 1, "train.drop": [0.8]}
    run = dqdet.train("scenes_tiny", out=tmp_path / "run", **options)
    measured = []

    def measure(*given):
        measured.append(given)
        return {"AP": 0.5}

    monkeypatch.setattr("dqdet.studies.combinations.measure", measure)
    for change, times in (({}, 39), ({}, 0), ({"inference": {"limit": 1}}, 39), ({}, 39)):
        measured.clear()
        study("combinations", tmp_path / "out", model=run, **change)
        assert len(measured) == times
    os.utime(run / "model.safetensors", (0, 0))  # trained further
    study("combinations", tmp_path / "out", model=run)
    assert len(measured) == 2 * 39


@pytest.mark.slow
def test_combinations_train_their_model_where_none_is_given(tmp_path):
    report = study("combinations", tmp_path, jobs=1, only=("Mask2Former",), **SMALL | MASKS)
    assert (tmp_path / "mask2former-static-0" / FINISHED).exists()
    assert len(report.tables[0]) == 2 + 9
    assert report.tables[0][3].endswith("| 0.412 |")  # the paper's, of two convex ones


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"queries.kind": "modulated"}, "only static queries can be combined; this model has queries.kind=modulated"),
        ({"queries.kind": "static", "queries.count": 6}, "queries.count=6 is not divisible by the ratio r = 4"),
        ({"queries.kind": "static", "model.two_stage": True, "model.refine": True}, "has the encoder's proposals"),
    ],
)
def test_models_that_cannot_be_combined_are_refused(tmp_path, options, expected):
    run = dqdet.train("scenes_tiny", out=tmp_path / "run", **SMALL | {"train.steps": 1} | options)
    with pytest.raises(DqdetError) as error:
        study("combinations", tmp_path / "out", model=run)
    assert str(error.value).startswith(f"{run}: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", [*PRESETS, "scenes_tiny_panoptic", "scenes_tiny_video", "seqformer_r50"])
def test_convex_combinations_of_equal_queries_are_these_queries(preset):
    config = resolve(preset, {"queries.count": 4, "queries.kind": "static", "model.backbone.name": "test_resnet"})
    sizes = {"model.hidden": 32, "model.heads": 2, "model.encoder_layers": 1, "model.feedforward": 32}
    config = override(config, sizes | {"model.backbone.pretrained": False})
    config.classes = ["cat", "dog"]
    torch.manual_seed(0)
    model = create_model(config).eval()
    twice = override(config, {"queries.count": 8})
    repeated = create_model(twice).eval()
    state = {
        name: tensor.repeat_interleave(2, 0) if name.startswith("queries.table.") else tensor
        for name, tensor in model.state_dict().items()
    }
    repeated.load_state_dict(state)
    fewer, made = combined(repeated, twice, random_coefficients("convex", 4, 2))
    assert made.queries.count == 4
    frames = (2,) if config.data.task == "video" else ()
    images, padding = torch.randn(1, *frames, 3, 128, 128), torch.zeros(1, 128, 128, dtype=torch.bool)
    with torch.no_grad():
        torch.testing.assert_close(fewer(images, padding).logits, model(images, padding).logits, rtol=1e-4, atol=1e-4)


# Cost


def test_cost_measures_all_kinds(tmp_path):
    report = study("cost", tmp_path, seeds=2, only=("DETR", "static", "modulated"), **SMALL)
    found = report.results["DETR"]
    assert found.keys() == {"static", "modulated"}
    assert all(len(numbers[task]) == 2 for numbers in found.values() for task in ("step", "inference"))
    config = resolve("detr_r50", SMALL | {"model.backbone.pretrained": False, "classes": ["cat"]})
    kinds = [override(config, {"queries.kind": kind}) for kind in ("static", "modulated")]
    static, modulated = (sum(p.numel() for p in create_model(kind).parameters()) for kind in kinds)
    assert found["modulated"]["parameters"] - found["static"]["parameters"] == modulated - static
    assert found["modulated"]["step memory"] > found["modulated"]["inference memory"] > 0
    assert files(tmp_path) == {"results.json", "table.md"}


@pytest.mark.parametrize(("base", "compared"), [("static", True), ("grouped", False)])
def test_the_papers_cost_is_beside_ratios_to_static_queries(tmp_path, base, compared):
    report = study("cost", tmp_path, seeds=1, only=("Deformable-DETR", base, "modulated"), **SMALL)
    assert ("the paper's" in report.tables[0][0]) == compared


# Coefficients


def test_coefficients_are_analysed_and_drawn(tmp_path):
    options = SMALL | {"data.scenes.val_images": 60}
    report = study("coefficients", tmp_path, jobs=1, **options)
    (found,) = report.results.values()
    assert found["images"] == 60
    assert 0 <= found["between"] <= 1
    assert 0 < found["entropy"] <= 1
    assert found["scene_from_context"] > found["scene_chance"] == 0.2
    assert files(tmp_path) == {"results.json", "table.md", "coefficients.svg", "coefficients.png"}
    assert all(kind in (tmp_path / "coefficients.svg").read_text() for kind in ("street", "lake"))


def test_models_without_coefficients_are_refused(tmp_path):
    run = dqdet.train("scenes_tiny", out=tmp_path / "run", **SMALL | {"queries.kind": "static", "train.steps": 1})
    with pytest.raises(DqdetError, match=r"run: queries\.kind=static .* has no coefficients that depend on the image"):
        study("coefficients", tmp_path / "out", model=run)


def seen(coefficients: np.ndarray, kinds: list[str]) -> Seen:
    count = len(coefficients)
    contexts = np.random.default_rng(1).normal(size=(count, 4))
    return Seen(coefficients, contexts, np.ones((count, 1), bool), kinds, [np.zeros((4, 4, 3), np.uint8)] * count)


def test_coefficients_that_name_the_scene_are_read():
    kinds = ["lake", "street"] * 30
    w = np.array([[[0.9, 0.1]] if kind == "lake" else [[0.1, 0.9]] for kind in kinds])  # [60, 1, 2]
    known = knowledge(seen(w, kinds))
    assert (known.scene_from_w, known.scene_chance) == (1.0, 0.5)
    assert known.between == pytest.approx(1)
    assert known.changing == 0.5
    assert known.entropy == pytest.approx(-(0.9 * math.log(0.9) + 0.1 * math.log(0.1)) / math.log(2))
    assert abs(known.scene_from_context - 0.5) < 0.25  # noise
    assert known.classes_from_w is None  # the class is in all images
    assert picture(seen(w, kinds)) is not None


def test_constant_coefficients_know_nothing():
    known = knowledge(seen(np.tile([[[0.7, 0.3], [0.5, 0.5]]], (40, 1, 1)), ["lake", "street"] * 20))
    assert (known.between, known.changing, known.scene_from_w) == (pytest.approx(0), 0, 0.5)


def test_a_probe_needs_two_frequent_labels():
    assert probe(np.ones((12, 2)), np.array(["a"] * 10 + ["b"] * 2)) is None


# Statistics


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_the_interval_is_that_of_a_paired_t_test(pairs):
    first, second = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    found = difference(first, second)
    deltas = np.subtract(list(second.values()), list(first.values()))
    if np.ptp(deltas) < 1e-6:
        return  # scipy has no interval without variance
    wanted = stats.ttest_rel(list(second.values()), list(first.values())).confidence_interval(0.95)
    assert found.interval == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert found.mean == pytest.approx(deltas.mean(), abs=1e-12)
    assert found.shown == (wanted.low > 0 or wanted.high < 0)


def test_only_seeds_that_both_have_are_paired():
    found = difference({0: 0.1, 1: 0.2, 2: 0.9}, {0: 0.2, 1: 0.4, 5: 0.0})
    assert (found.pairs, found.mean) == (2, pytest.approx(0.15))
    assert difference({0: 0.1}, {1: 0.1}) is None


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({0: 0.31, 1: 0.412, 2: 0.511}, "over 3 seeds: better."),
        ({0: 0.29, 1: 0.388, 2: 0.489}, "over 3 seeds: worse."),
        ({0: 0.31, 1: 0.38, 2: 0.51}, "over 3 seeds: no difference shown."),
        ({0: 0.31}, "+0.010 (no interval); one pair of trainings says nothing about chance."),
    ],
)
def test_a_comparison_is_put_in_words(second, words):
    sentence = learned("AP", "static", "modulated", difference({0: 0.3, 1: 0.4, 2: 0.5}, second))
    assert sentence.startswith("modulated against static: AP ")
    assert sentence.endswith(words)


def test_a_spread_is_mean_and_deviation():
    assert spread([0.1, 0.2, 0.3]) == "0.200 ± 0.100"
    assert spread([0.25]) == "0.250"


def test_arms_without_a_place_are_drawn_across():
    figure = figures.places(
        {"A": {"static": [(None, [0.5])], "modulated": [(2.0, [0.4, 0.6]), (4.0, [0.7])]}}, "r", "AP"
    )
    (axes,) = figure.axes
    flat = next(line for line in axes.lines if line.get_label() == "static")
    assert list(flat.get_ydata()) == [0.5, 0.5]
    assert axes.get_xlabel() == "r"
