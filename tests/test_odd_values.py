"""Values of options, checkpoints and configurations that nothing can be done with, and what people are told of them."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dqdet
from dqdet import cli
from dqdet.config import from_yaml, override, resolve, to_yaml
from dqdet.errors import DqdetError
from dqdet.runs.folder import load_metrics
from dqdet.runs.sources import load_model
from dqdet.training.engine import resume, train
from dqdet.weights.huggingface import check_sizes, read_config
from tiny import tiny


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("train.seed=18446744073709551616", "train.seed=18446744073709551616: should be less than 4294967296"),
        ("data.scenes.seed=4294967296", "data.scenes.seed=4294967296: should be less than 4294967296"),
        ("model.dropout=2", "model.dropout=2: should be less than 1"),
        ("model.dropout=1", "model.dropout=1: should be less than 1"),
        ("model.dropout=nan", "model.dropout=nan: should be a finite number"),
        ("train.lr=inf", "train.lr=inf: should be a finite number"),
        ("loss.beta=inf", "loss.beta=inf: should be a finite number"),
        ("data.resize=[]", "data.resize=[]: List should have at least 1 item after validation, not 0"),
        ("data.resize=[100000]", "data.resize.0=100000: should be less than or equal to 16384"),
        ("data.resize=[true]", "data.resize.0=True: should be a number"),
        ("data.workers=100000", "data.workers=100000: should be less than or equal to 1024"),
        ("category_ids=[1, 1, 1]", "category_ids has 1 more than once; every class needs an id of its own"),
        ("data.jitter=[2, 1]", "data.jitter"),
        ("stuff=[sky]", "stuff has names that are no classes: sky; correct them"),
        ("classes=['']", "classes.0=: String should have at least 1 character"),
        ("train.epochs=" + "[" * 5000, "not a value"),
        ("data=&a {b: *a}", "not a value"),
        ("data.root=2001-99-99", "not a value"),
    ],
)
def test_options(option, message):
    with pytest.raises(DqdetError) as caught:
        override(tiny(data__window=[64, 64]), [option])
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_flags_are_no_numbers_in_files():
    options = to_yaml(tiny()).replace("epochs: 3", "epochs: true")
    with pytest.raises(DqdetError, match=r"^config.yaml: train.epochs=True: should be a number$"):
        from_yaml(options, "config.yaml")
    with pytest.raises(DqdetError, match=r"category_ids has 1 ids for 2 classes; list one of each class$"):
        from_yaml(
            to_yaml(tiny()).replace("classes: []", "classes: [a, b]").replace("ids: []", "ids: [1]"), "config.yaml"
        )


def test_references_to_references_are_not_expanded():
    text = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 9)}]\n" for i in range(12))
    with pytest.raises(DqdetError) as caught:
        from_yaml(f"{text}classes: *a11\npreset: p\nmodel: 3\nloss: 4", "config.yaml")
    assert len(str(caught.value)) < 4000


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(tiny(train__epochs=1, train__drop=[]), folder)
    return folder


@pytest.fixture
def run(trained):
    """The files of the run are put back afterwards."""
    files = {file: file.read_bytes() for file in trained.iterdir() if file.is_file()}
    yield trained
    for file, content in files.items():
        file.write_bytes(content)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_loaded(run, value):
    file = run / "model.safetensors"
    weights = load_file(file)
    name = "class_head.0.bias" if "class_head.0.bias" in weights else "class_head.bias"
    weights[name][0] = value
    save_file(weights, file)
    with pytest.raises(DqdetError) as caught:
        load_model(run)
    assert str(caught.value) == f"{file}: 1 tensors are not finite ({name}); use another checkpoint"


def test_newest_weights_that_are_not_finite_are_not_loaded(run):
    file = run / "last.ckpt"
    state = torch.load(file, weights_only=True)
    name = next(name for name in state["state_dict"] if name.endswith("bias"))
    state["state_dict"][name][0] = float("nan")
    torch.save(state, file)
    with pytest.raises(DqdetError) as caught:
        load_model(file)
    assert str(caught.value).startswith(f"{file}: 1 tensors are not finite ({name.removeprefix('model.')}); ")


def test_predictions_of_nan_are_no_results(run):
    """Finite weights, which overflow."""
    predictor = dqdet.load(run)
    for parameter in predictor.model.parameters():
        parameter.data.mul_(1e30)
    with pytest.raises(DqdetError, match=r"^the model predicts NaN, so its weights are too large or damaged; "):
        predictor(Image.new("RGB", (64, 64)))


@pytest.mark.parametrize("entry", ["state_dict", "loops", "optimizer_states", "lr_schedulers", "epoch", "DataModule"])
@pytest.mark.parametrize("value", ["left out", "another"])
def test_states_without_what_a_training_needs(run, entry, value):
    state = torch.load(run / "last.ckpt", weights_only=True)
    if value == "left out":
        del state[entry]
    else:
        state[entry] = "x"
    torch.save(state, run / "last.ckpt")
    with pytest.raises(DqdetError) as caught:
        resume(run, {"train.epochs": 2})
    assert "last.ckpt" in str(caught.value) or "checkpoint" in str(caught.value)


@pytest.mark.parametrize("content", ["[1]", '{"AP": "high"}', '{"AP": NaN}', '{"AP": true}', "[" * 100_000])
def test_metrics_are_numbers(run, content):
    (run / "metrics.json").write_text(content)
    with pytest.raises(DqdetError, match=r"metrics\.json: .*; remove it or evaluate again$"):
        load_metrics(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"encoder_attention_heads": "8"}, "config.json has values of a wrong type: encoder_attention_heads='8'"),
        ({"dropout": 2.0}, "config.json has values of a wrong type: dropout=2.0"),
        ({"model_type": ["detr"]}, "config.json has values of a wrong type: model_type=['detr']"),
        ({"id2label": ["a"]}, "config.json has values of a wrong type: id2label=['a']"),
        ([], "config.json has values of a wrong type: =[]"),
    ],
)
def test_options_of_transformers_have_types(tmp_path, content, message):
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(DqdetError) as caught:
        read_config(tmp_path)
    assert str(caught.value) == message


def test_options_of_transformers_that_contradict_the_parameters():
    ours = resolve("detr_r50", {"queries.kind": "static", "queries.count": 100})
    right = {"d_model": 256, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048, "num_queries": 100}
    check_sizes(right, ours)
    for option, value in right.items():
        with pytest.raises(DqdetError) as caught:
            check_sizes(right | {option: value // 2}, ours)
        assert str(caught.value) == (
            f"config.json has {option}={value // 2}, but the parameters are of {value}; get both files again"
        )


def test_names_are_no_markup(monkeypatch):
    names = ["[/wing]", "[red]dog", ":smile:"]
    monkeypatch.setattr(
        dqdet, "evaluate", lambda run, *out, **options: {"AP": 0.5} | {f"AP/{name}": 0.25 for name in names}
    )
    shown = CliRunner().invoke(cli.app, ["eval", "runs/[/bold]"])
    assert shown.exit_code == 0, shown.output
    for name in [*names, "runs/[/bold]"]:
        assert name in shown.output


def test_messages_on_a_terminal_are_one_line(monkeypatch, capsys):
    def fail() -> None:
        raise DqdetError("a\nb\x1b[31m\ud800: wrong")

    monkeypatch.setattr(cli, "app", lambda arguments, **options: fail())
    monkeypatch.setattr(sys, "argv", ["dqdet"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error: a\\nb\\x1b[31m\\ud800: wrong\n"


LONG = "a" * 300  # characters, more than the name of a file may have


@pytest.mark.parametrize(
    "command",
    [
        "train scenes_tiny init={0}",
        "train scenes_tiny data.kind=coco data.root={0}",
        "train scenes_tiny data.kind=coco data.root=. data.train={0}",
        "train mask2former_r50_cityscapes_instance data.root={0}",
        "train scenes_tiny model.backbone.name=resnet18 model.backbone.weights={0}",
        "train {0}",
        "train --resume {0}",
        "eval {0}",
        "predict {0} x.png --out out",
        "predict {run} {0} --out out",
        "predict {run} x.png --out {0}",
        "predict {run} x.png --ids {0} --out out",
        "submit {0} results.zip",
        "convert {0} --out out",
        "convert {run} --out {0}",
        "upgrade {0} --out out",
        "fold {0} --out out",
        "presets {0}",
        "study combinations --model {0} --out out",
        "study combinations --out {0}",
    ],
)
def test_names_that_no_file_can_have(trained, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("x.png")
    monkeypatch.setattr(sys, "argv", ["dqdet", *command.format(LONG, run=trained).split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    complaint = capsys.readouterr().err.splitlines()
    assert ended.value.code in (1, 2)
    assert "aaaa" in complaint[-1]
    assert "Traceback" not in "".join(complaint)
