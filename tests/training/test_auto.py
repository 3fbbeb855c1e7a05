"""``dqdet train auto``: what is chosen for which data and machine, that it is said, and that options take its place."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import own_data
from dqdet.config import resolve
from dqdet.errors import DqdetError
from dqdet.runs.folder import load_config
from dqdet.training.auto import SIDES, Found, Machine, choose, configured, look

CPU, GPU = Machine(gpu=None, cores=2), Machine(gpu="NVIDIA A10", cores=8)
CELLS = Found(task="detection", images=205, shorter=480, aspect=1.33, small=43, most=28)
# A model and pictures so small that a training on real images takes seconds.
SHORT = {
    "data.resize": [64],
    "data.val_resize": 64,
    "data.max_size": 96,
    "data.workers": 0,
    "train.batch": 2,
    "train.epochs": 1,
    "train.warmup": 0,
    "queries.count": 5,
    "model.backbone.name": "test_resnet",
}

founds = st.builds(
    Found,
    task=st.sampled_from(["detection", "instance"]),
    images=st.integers(1, 200_000),
    shorter=st.floats(20, 5000),
    aspect=st.floats(1, 5),
    small=st.floats(0.5, 500),
    most=st.integers(1, 2000),
)


def options_of(found=CELLS, machine=CPU, start=None, **given):
    plan = choose(found, machine, start)
    return plan.preset, plan.options(given)


def test_a_small_model_for_a_cpu_and_a_large_one_for_a_gpu():
    assert options_of() == (
        "scenes_tiny",
        {
            "data.task": "detection",
            "data.resize": [192],
            "data.val_resize": 192,
            "data.max_size": 256,
            "queries.count": 60,
            "train.batch": 8,
            "train.epochs": 59,
        },
    )
    outlines = Found(**{**vars(CELLS), "task": "instance"})
    assert options_of(outlines)[0] == "scenes_tiny_panoptic"
    preset, options = options_of(machine=GPU)
    assert preset == "dab_deformable_detr_r50"
    assert options == {"data.task": "detection", "train.batch": 16, "train.epochs": 300}
    assert options_of(outlines, GPU)[0] == "mask2former_r50_coco_instance"


def test_small_objects_need_larger_pictures():
    sides = [options_of(Found(**{**vars(CELLS), "small": small}))[1]["data.val_resize"] for small in (80, 43, 30, 5)]
    assert sides == [96, 192, 256, 352]


def test_more_images_need_fewer_epochs_and_few_ones_a_smaller_batch():
    lengths = []
    for images in (3, 20, 205, 2000, 100_000):
        _, options = options_of(Found(**{**vars(CELLS), "images": images}))
        lengths.append((options["train.batch"], options["train.epochs"]))
    assert lengths == [(1, 300), (4, 300), (8, 59), (8, 6), (8, 1)]


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_weights_are_fine_tuned_by_the_recipe_of_their_preset(machine):
    start = resolve("rf_detr_small", ["queries.count=100"])
    preset, options = options_of(machine=machine, start=start)
    assert preset == "rf_detr_small_finetune"
    assert options == {"data.task": "detection", "queries.count": 100, "train.batch": 16, "train.epochs": 157}
    config = resolve(preset, options)
    assert config.train.drop == [pytest.approx(157 * 5 / 6, abs=1e-4)]
    assert options_of(start=resolve("scenes_tiny"))[0] == "scenes_tiny"
    with pytest.raises(DqdetError, match="a model of detection, but the objects have boxes and outlines"):
        choose(Found(**{**vars(CELLS), "task": "instance"}), machine, start)


def test_weights_see_images_as_large_as_before():
    start = resolve("scenes_tiny", {"data": {"resize": [256], "val_resize": 256, "max_size": 341, "square": True}})
    _, options = options_of(start=start)
    assert options["data.resize"] == [256]
    assert (options["data.val_resize"], options["data.max_size"], options["data.square"]) == (256, 341, True)
    _, options = options_of(start=start, **{"data.val_resize": 192})
    assert options["data.val_resize"] == 192


@given(founds, st.sampled_from([CPU, GPU]))
def test_whatever_the_data_the_plan_is_valid_and_the_same_again(found, machine):
    plan = choose(found, machine, None)
    assert plan == choose(found, machine, None)
    config = resolve(plan.preset, plan.options({"data.kind": "coco"}))
    assert config.data.task == found.task
    assert 1 <= config.train.batch <= max(1, found.images)
    if machine is CPU:
        assert config.data.val_resize in SIDES
        assert config.data.max_size >= config.data.val_resize


def test_each_choice_has_a_line_and_an_option_takes_its_place():
    plan = choose(CELLS, CPU, None)
    lines = plan.lines({})
    assert len(lines) == 1 + len(plan.choices)
    assert all(": " in line and "\n" not in line for line in lines)
    given = {"train.epochs": 3, "data.val_resize": 320}
    assert plan.options(given)["train.epochs"] == 3
    left = plan.lines(given)
    assert not any("train.epochs" in line or "data.val_resize" in line for line in left)
    assert any(line.startswith("data.resize=[192] data.max_size=256: ") for line in left)


def test_bccd_is_boxes_and_outlines_are_seen(shared, tmp_path):
    found = look({"data.kind": "coco", "data.root": str(shared / "data" / "bccd")})
    assert (found.task, found.images, found.most, found.shorter) == ("detection", 205, 28, 480)
    root = own_data.write(tmp_path, "coco", shared, images=3)
    file = root / "annotations" / "instances_train.json"
    document = json.loads(file.read_text())
    for polygon, task in (
        (lambda x, y, w, h: [x, y, x + w, y, x + w, y + h, x, y + h], "detection"),
        (lambda x, y, w, h: [x, y, x + w, y, x + w, y + h, x + w / 2, y + h, x, y + h / 2], "instance"),
    ):
        for one in document["annotations"]:
            one["segmentation"] = [polygon(*one["bbox"])]
        file.write_text(json.dumps(document))
        assert look({"data.kind": "coco", "data.root": str(root)}).task == task


def test_a_short_training_on_real_images(run, shared, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root = own_data.write(tmp_path / "cells", "yolo", shared, images=6)
    options = [f"{name}={value}" for name, value in SHORT.items()]
    status, out, err = run("train", "auto", f"data.root={root}", *options, "--out", tmp_path / "run")
    assert status == 0
    lines = [line for line in err.splitlines() if line.startswith("auto: ")]
    assert lines[0].startswith("auto: preset scenes_tiny: boxes on ")
    assert lines[1] == f"auto: data.kind=yolo: what {root} looks like"
    assert lines[2:] == ["auto: data.task=detection: objects have boxes"]
    assert out.startswith(f"{tmp_path / 'run'}: AP ")
    config = load_config(tmp_path / "run")
    assert (config.preset, config.data.kind, config.queries.count, config.train.epochs) == ("scenes_tiny", "yolo", 5, 1)
    # ... and on from there
    monkeypatch.setenv("COLUMNS", "200")
    options = [option for option in options if not option.startswith(("queries", "model"))]
    status, out, err = run("train", "auto", f"data.root={root}", f"init={tmp_path / 'run'}", *options, "--dry-run")
    assert status == 0
    assert "auto: preset scenes_tiny: init has the weights of scenes_tiny\n" in err
    assert "auto: queries.count=5: those of init\n" in err
    assert "scenes_tiny with modulated queries" in out


def test_the_batch_is_fitted_unless_it_is_given(shared, capsys):
    root = f"data.root={shared / 'data' / 'bccd'}"
    assert configured("auto", [root])[1]
    assert not configured("auto", [root, "train.batch=4"])[1]
    assert not configured("auto", [root, "train.accumulate=2"])[1]
    assert not configured("scenes_tiny", [])[1]


def test_what_cannot_be_chosen_by_is_said(run, tmp_path):
    assert run("train", "auto")[2] == "error: `train auto` chooses by the data: give data.root=FOLDER\n"
    assert "no data set of" in run("train", "auto", f"data.root={tmp_path}")[2]
    assert (
        "is for boxes and instance masks"
        in run("train", "auto", f"data.root={tmp_path}", "data.kind=coco", "data.task=panoptic")[2]
    )
