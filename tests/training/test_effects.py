"""What has no effect is said, in one line, before a training starts; and what is said to have none has none."""

import json
import logging
from functools import cache

import pytest
import torch
from PIL import Image

import dqdet
from dqdet.config import Config, override, parse_overrides, preset_names, resolve
from dqdet.config.effects import unused, without_effect
from dqdet.data import open_dataset
from dqdet.data.loader import make_loader
from dqdet.inference import infer
from dqdet.losses import make_loss
from dqdet.models import create_model
from dqdet.training.engine import train
from dqdet.training.evaluation import evaluate
from dqdet.training.optimiser import freeze, learning_rate_factor, make_optimiser
from dqdet.training.readiness import ready
from tiny import TINY, tiny


def lines(preset="deformable_detr_r50", steps_per_epoch=1000, learnable=True, measurable=True, **options) -> list[str]:
    options = {name.replace("__", "."): value for name, value in options.items()}
    return without_effect(resolve(preset, options), steps_per_epoch, learnable, measurable)


@pytest.mark.parametrize("preset", preset_names())
def test_no_preset_has_anything_without_effect_on_its_data(preset):
    data = resolve(preset).data
    items = {"coco": 117_266, "cityscapes": 2975, "youtube_vis": 2238, "scenes": data.scenes.train_images}[data.kind]
    assert lines(preset, items // resolve(preset).train.batch) == []


def test_a_recipe_for_trained_weights_says_that_it_has_none(caplog):
    options = {name: value for name, value in TINY.items() if name != "model.refine"} | {"data.kind": "scenes"}
    for preset, words in (
        ("deformable_detr_r50_finetune", ["deformable_detr_r50_finetune is meant to start from trained weights"]),
        ("deformable_detr_r50_refine_finetune", ["deformable_detr_r50_refine_finetune is meant to start from trained"]),
        ("deformable_detr_r50", []),
    ):
        for init in (None, "some/run"):
            caplog.clear()
            ready(resolve(preset, options | {"init": init}))
            found = [message for message in caplog.messages if "trained weights" in message]
            assert len(found) == (len(words) if init is None else 0)
            assert all(line.startswith(start) for line, start in zip(found, words, strict=False))


JITTER = {"data.window": [64, 64], "data.jitter": [0.5, 1]}
STRETCHED = {"data.val_fit": "stretch", "data.val_size": [64, 96]}
# What comes first makes the second one mean nothing; the third is the reason that is given.
UNUSED = [
    ("scenes_tiny", {"queries.kind": "static"}, {"queries.ratio": 3}, "queries.kind=static"),
    ("scenes_tiny", {"queries.kind": "generated"}, {"queries.ratio": 3}, "queries.kind=generated"),
    ("scenes_tiny", {"queries.kind": "shared"}, {"queries.basic": "groups"}, "queries.kind=shared"),
    ("scenes_tiny", {"queries.kind": "modulated"}, {"queries.patterns": 7}, "queries.kind=modulated"),
    ("scenes_tiny", {"queries.kind": "grouped"}, {"queries.hidden": 16}, "queries.kind=grouped"),
    ("scenes_tiny", {"train.backbone_lr": 0}, {"model.backbone.drop_path": 0.5}, "train.backbone_lr=0.0"),
    ("scenes_tiny", {"queries.kind": "static"}, {"queries.context": "memory"}, "queries.kind=static"),
    ("scenes_tiny", {"queries.kind": "static"}, {"queries.pool": "max"}, "queries.kind=static"),
    ("scenes_tiny", {"queries.kind": "generated"}, {"queries.coefficients": "raw"}, "queries.kind=generated"),
    ("scenes_tiny", {"queries.context": "none"}, {"queries.pool": "max"}, "queries.context=none"),
    ("scenes_tiny", {"queries.context": "none"}, {"queries.hidden": 16}, "queries.context=none"),
    ("scenes_tiny", {"queries.kind": "static"}, {"loss.beta": 0.3}, "queries.kind=static"),
    ("scenes_tiny", {}, {"loss.no_object_weight": 0.5}, "loss.classification=focal"),
    (
        "scenes_tiny",
        {"loss.classification": "iou_aware"},
        {"loss.no_object_weight": 0.5},
        "loss.classification=iou_aware",
    ),
    ("scenes_tiny", {}, {"data.root": "/data"}, "data.kind=scenes"),
    ("scenes_tiny", {}, {"data.val": "test"}, "data.kind=scenes"),
    ("scenes_tiny", {}, {"data.skip_empty": True}, "data.kind=scenes"),
    ("scenes_tiny", {}, {"data.shrink": True}, "data.kind=scenes"),
    ("scenes_tiny", {}, {"data.scenes.frames": 3}, "data.task=detection"),
    ("scenes_tiny", {}, {"data.clips.reach": 3}, "data.task=detection"),
    ("scenes_tiny", {}, {"inference.window": 3}, "data.task=detection"),
    ("scenes_tiny", {}, {"inference.object_threshold": 0.1}, "data.task=detection"),
    ("scenes_tiny", {}, {"inference.overlap_threshold": 0.1}, "data.task=detection"),
    ("scenes_tiny", {}, {"data.hue": 0.3}, "data.colour=False"),
    ("scenes_tiny", {}, {"data.permute_channels": True}, "data.colour=False"),
    (
        "scenes_tiny",
        JITTER,
        {"data.resize": [32]},
        "data.jitter=(0.5, 1.0)",
    ),
    ("scenes_tiny", JITTER, {"data.crop": True}, "data.jitter=(0.5, 1.0)"),
    ("scenes_tiny", JITTER | {"data.val_fit": "original"}, {"data.square": True}, "data.jitter=(0.5, 1.0)"),
    ("scenes_tiny", {"data.square": True}, {"data.max_size": 32}, "data.square=True"),
    ("scenes_tiny", {"data.square": True}, {"data.val_max_size": 32}, "data.square=True"),
    ("scenes_tiny", STRETCHED, {"data.val_resize": 32}, "data.val_fit=stretch"),
    ("scenes_tiny", STRETCHED, {"data.val_max_size": 32}, "data.val_fit=stretch"),
    ("scenes_tiny", {"train.schedule": "poly"}, {"train.drop": [1.0]}, "train.schedule=poly"),
    ("scenes_tiny", {}, {"train.power": 2.0}, "train.schedule=steps"),
    ("detr_r50", {"data.kind": "scenes"}, {"train.offsets_lr": 1.0}, "model.family=detr"),
    ("scenes_tiny", {"train.weight_decay": 0}, {"train.decay_norms": False}, "train.weight_decay=0.0"),
]


@cache
def observed(document: str) -> list:
    """All that a training and a use of a configuration depend on: weights, a batch, loss, gradients, rates, results."""
    config = Config.model_validate_json(document)
    dataset = open_dataset(config.data, "train", 0)
    config = config.model_copy(update={"classes": dataset.classes})
    torch.manual_seed(0)
    model = create_model(config).train()
    freeze(model, config.train)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    batch = next(iter(make_loader(dataset, batch=2, train=True)))
    torch.manual_seed(1)
    losses = make_loss(config.loss)(model(batch.images, batch.padding), batch.targets, batch.counts)
    losses.total.backward()
    optimiser = make_optimiser(model, config.train)
    rates = {p: (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
    factor = learning_rate_factor(config.train, 3)
    with torch.no_grad():
        sizes = [(64, 64)] * 2
        found = infer(model.eval()(batch.images, batch.padding), sizes, sizes, config)
    validation = next(iter(make_loader(open_dataset(config.data, "val", 0), batch=2, train=False)))
    return [
        [tensor.tolist() for tensor in weights],
        batch.images.tolist(),
        validation.images.tolist(),
        losses.total.item(),
        [p.grad.tolist() if p.grad is not None else None for p in model.parameters()],
        [rates.get(p) for p in model.parameters()],
        [factor(step) for step in range(9)],
        [(one.scores.tolist(), one.boxes.tolist()) for one in found],
    ]


@pytest.mark.parametrize(("preset", "given", "changed", "because"), UNUSED)
def test_options_that_nothing_reads_are_said_and_are_not_read(preset, given, changed, because):
    small = {name: value for name, value in TINY.items() if preset == "scenes_tiny" or name != "model.refine"}
    before = resolve(preset, small | {"model.backbone.pretrained": False, "data.crop": False} | given)
    after = override(before, changed)
    (path,) = changed
    assert [line.partition("=")[0] for line in unused(after, changed)] == [path]
    assert unused(after, changed)[0].endswith(f" has no effect with {because}")
    assert any(line.startswith(f"{path}=") for line in without_effect(after, 3, True, True))
    assert observed(after.model_dump_json()) == observed(before.model_dump_json())


def test_own_queries_may_read_anything():
    given = {"queries.ratio": 3, "queries.patterns": 7, "queries.coefficients": "raw", "queries.pool": "max"}
    given |= {"loss.beta": 0.5}
    assert len(unused(resolve("scenes_tiny", given | {"queries.kind": "static"}), given)) == len(given)
    assert unused(resolve("scenes_tiny", given | {"queries.kind": "own"}), given) == []


# The others would need downloads or data.
@pytest.mark.parametrize(
    ("preset", "options", "expected"),
    [
        ("detr_r50", {"data.scenes.size": 64}, "data.scenes.size=64 has no effect with data.kind=coco"),
        ("deformable_detr_swin_b", {"model.backbone.freeze": "norms"}, "has no effect with model.backbone.name=swin_b"),
        ("detr_r50", {"init": "run", "model.backbone.pretrained": False}, "has no effect with init=run"),
        (
            "detr_r50",
            {"model.backbone.weights": "r50.pth", "model.backbone.pretrained": False},
            "model.backbone.pretrained=False has no effect with model.backbone.weights=r50.pth",
        ),
        ("mask2former_r50_coco_panoptic", {"data.skip_empty": True}, "has no effect with data.task=panoptic"),
        ("mask2former_r50_cityscapes_instance", {"data.skip_empty": True}, "has no effect with data.kind=cityscapes"),
        ("mask2former_r50_coco_instance", {"data.shrink": True}, "has no effect with data.task=instance"),
        ("mask2former_r50_coco_instance", {"data.clips.frames": 5}, "has no effect with data.task=instance"),
        ("detr_r50", {"classes": ["a"]}, "classes: those of the data set take its place"),
        ("detr_r50", {"train.drop": [600.0]}, "train.drop=[600.0]: the learning rates do not drop after step 600000"),
        ("detr_r50", {"train.epochs": 2, "train.drop": [2.0]}, "do not drop after step 2000, since the training ends"),
        ("detr_r50", {"train.drop": [], "train.drop_steps": [9, 10**9]}, "do not drop after step 1000000000, since"),
        ("detr_r50", {"train.steps": 50, "train.warmup": 51}, "the learning rates still rise in step 50, the last"),
        ("detr_r50", {"train.epochs": 2, "train.validate_every": 3}, "train.validate_every=3 epochs is beyond the end"),
        ("detr_r50", {"data.max_size": 700}, "data.resize has 704, 736, 768, 800: no image becomes so large"),
        ("detr_r50", {"data.max_size": 799}, "data.val_resize=800: no image becomes so large, since data.max_size=799"),
        ("detr_r50", {"data.val_max_size": 640}, "no image becomes so large, since data.val_max_size=640"),
        (
            "detr_r50",
            {"loss.class_weight": 0, "loss.box_weight": 0, "loss.giou_weight": 0},
            "loss.class_weight, loss.box_weight, loss.giou_weight are all 0: nothing is learned",
        ),
        (
            "mask2former_r50_coco_instance",
            {"loss.class_weight": 0, "loss.mask_weight": 0, "loss.dice_weight": 0},
            "loss.class_weight, loss.mask_weight, loss.dice_weight are all 0: nothing is learned",
        ),
        ("detr_r50", {"loss.class_cost": 0, "loss.box_cost": 0, "loss.giou_cost": 0}, "matched to any query"),
    ],
)
def test_what_else_has_no_effect_is_said(preset, options, expected):
    assert any(expected in line for line in lines(preset, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"train.steps": 50, "train.warmup": 50},
        {"train.drop": [499.9]},
        {"data.max_size": 800},
        {"data.val_max_size": 0},
        {"loss.class_weight": 0, "loss.box_weight": 0},
        {"queries.ratio": 3, "queries.hidden": 7, "loss.beta": 0.5, "data.root": "/data/coco"},
    ],
)
def test_what_has_an_effect_is_not_said(options):
    assert lines("detr_r50", **options) == []


def test_sequences_without_any_weight_learn_nothing():
    weights = {f"loss.{name}_weight": 0 for name in ("class", "box", "giou", "mask")}
    assert lines("seqformer_r50", **weights) == []
    assert any("are all 0" in line for line in lines("seqformer_r50", **weights, **{"loss.dice_weight": 0}))


def test_an_option_that_is_given_twice_is_said(caplog):
    assert parse_overrides(["train.epochs=1", "train.lr=1", "train.epochs=2"]) == {"train.epochs": "2", "train.lr": "1"}
    assert caplog.messages == ["train.epochs is given twice: train.epochs=1 has no effect"]
    caplog.clear()
    parse_overrides(["train={epochs: 3}", "train.epochs=4"])
    assert caplog.messages == ["train.epochs is given twice: train.epochs=3 has no effect"]
    caplog.clear()
    parse_overrides(["train.epochs=1", "train.lr=1"])
    assert caplog.messages == []


def write_coco(root, annotated: tuple[str, ...]) -> dict[str, str]:
    """Two splits of black images, which have an object each in the annotated ones."""
    for split in ("train", "val"):
        folder = root / split
        folder.mkdir(parents=True)
        images = [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 64} for i in range(1, 5)]
        for image in images:
            Image.new("RGB", (64, 64)).save(folder / image["file_name"])
        objects = [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400, "iscrowd": 0}
            for i in (range(1, 5) if split in annotated else ())
        ]
        document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cat"}]}
        (folder / "_annotations.coco.json").write_text(json.dumps(document))
    return {"data.kind": "coco", "data.root": str(root)}


@pytest.mark.parametrize(
    ("annotated", "expected"),
    [((), ["training", "validation"]), (("train",), ["validation"]), (("val",), ["training"])],
)
def test_splits_without_objects_are_said(annotated, expected, tmp_path, caplog):
    data = write_coco(tmp_path / "data", annotated)
    options = {name: value for name, value in TINY.items() if not name.startswith("data.scenes")}
    with caplog.at_level(logging.WARNING):
        train(resolve("scenes_tiny", options | data | {"train.epochs": 1, "train.drop": []}), tmp_path / "run")
    said = [message for message in caplog.messages if "split has no objects" in message]
    assert [message.split()[1] for message in said] == expected


def test_a_training_says_it_before_it_starts_and_trains_all_the_same(tmp_path, caplog, capsys):
    dqdet.train("scenes_tiny", out=tmp_path, **TINY | {"queries.kind": "static", "train.steps": 1})
    assert caplog.messages == [
        "queries.ratio=2 has no effect with queries.kind=static",
        "queries.hidden=8 has no effect with queries.kind=static",
        "train.drop=[2.0]: the learning rates do not drop after step 6, since the training ends after step 1",
    ]
    assert (tmp_path / "model.safetensors").exists()


def test_an_evaluation_says_what_it_does_not_use(tmp_path, caplog):
    train(tiny(train__steps=1, train__drop=[]), tmp_path)
    caplog.clear()
    evaluate(tmp_path, ["inference.window=3"])
    assert caplog.messages == ["inference.window=3 has no effect with data.task=detection"]
