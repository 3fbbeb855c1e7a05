"""Official checkpoints and models of the Hugging Face library, read from files as they are published."""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from published_files import RESNET18, SIZES, TorchvisionBackbone, message, reading_resnet18
from recorded import DetectorCase, model_config
from safetensors.torch import load_file, save_file
from test_recorded import SMALL
from torch import Tensor, nn
from transformers import (
    ConditionalDetrConfig,
    ConditionalDetrForObjectDetection,
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

import dqdet
from documentation import detection_split
from dqdet.config import Config, resolve
from dqdet.formats.categories import COCO_CATEGORIES
from dqdet.formats.results import coco_results
from dqdet.models import FAMILIES, create_model
from dqdet.runs.folder import differences, load_folder, without_pretraining
from dqdet.runs.sources import load_model
from dqdet.types import ImageDetections, pad_images
from dqdet.weights import PUBLISHED, translate

# Full size: every parameter of the published models.


def assert_all_used_once(rows: list[tuple[str, list[int]]], aliases: dict[str, str], unused: str) -> Config:
    """Fill each official tensor with a number of its own, and look it up among our parameters.

    Args:
        rows: official names and shapes.
        aliases: name -> what names all parameters that are one.
        unused: pattern of names that need not be found.

    Returns the configuration that the parameters tell.
    """
    owners = {parameter: aliases.get(parameter, parameter) for parameter, _ in rows}
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners.values()), 1)}
    state = {parameter: torch.tensor(float(numbers[owners[parameter]])).expand(shape) for parameter, shape in rows}
    converted, published = translate(state)
    config = published.describe(converted)
    with torch.device("meta"):
        model = create_model(without_pretraining(config))
    assert differences(model.state_dict(), converted) == ""

    sizes = dict.fromkeys(numbers.values(), 0)
    for parameter, tensor in converted.items():
        if parameter.endswith((".scale", ".shift")):
            continue  # computed from the four tensors of a batch norm
        if not any(tensor.stride()):  # one official tensor, still expanded from its number
            sizes[int(tensor.flatten()[0])] += tensor.numel()
            continue
        for number, elements in zip(*tensor.unique(return_counts=True), strict=True):
            sizes[int(number)] += int(elements)
    for parameter, shape in rows:
        expected = 0 if re.search(unused, parameter) else torch.Size(shape).numel()
        assert sizes[numbers[owners[parameter]]] == expected, parameter
    return config


@pytest.mark.parametrize("name", SMALL)
def test_every_published_parameter_is_used_once_and_fills_one_of_ours(shared, name):
    rows = json.loads((shared / "parity" / f"{name}_r50_keys.json").read_text())
    recipe = json.loads((shared / "parity" / f"{name}_r50_full" / "weights_recipe.json").read_text())
    aliases = {parameter: f"shared {index}" for parameter, _, index, _, _ in recipe["rows"]}
    config = assert_all_used_once(rows, aliases, r"\.(bn\d|downsample\.1)\.")
    assert config.model.family == name.removesuffix("_dq").removesuffix("_refine").removesuffix("_two_stage")


SEGMENTATION = {  # preset and backbone
    "mask2former_r50": ("mask2former_r50_coco_instance", "resnet50"),
    "mask2former_swin_b": ("mask2former_swin_b_coco_instance", "swin_b"),
    "video_mask2former_r50": ("video_mask2former_r50", "resnet50"),
    "seqformer_r50": ("seqformer_r50", "resnet50"),
    "seqformer_swin_l": ("seqformer_swin_l", "swin_l"),
}


@pytest.mark.parametrize(("name", "older"), [*((name, False) for name in SEGMENTATION), ("mask2former_r50", True)])
def test_every_published_parameter_of_segmentation_is_used_once(shared, name, older):
    rows = json.loads((shared / "parity" / f"{name}_keys.json").read_text())
    if older:  # names of files of Mask2Former that were published first
        rows = [(n.replace("head.pixel_decoder.", "head.").replace("query_feat", "static_query"), s) for n, s in rows]
    # SeqFormer's box heads are parameters of the decoder too.
    aliases = {n: n.replace("transformer.decoder.bbox_embed", "bbox_embed") for n, _ in rows}
    norms = r"^backbone\.(stem|res\d)\..*\bnorm\.|\.(bn\d|downsample\.1)\."
    unused = r"empty_weight|relative_position_index|encoder\.layers\.\d\.self_attn\.output_proj_box|body\.norm0\."
    config = assert_all_used_once(rows, aliases, f"{norms}|{unused}")
    assert (config.preset, config.model.backbone.name) == SEGMENTATION[name]
    preset = resolve(config.preset)
    published = {"backbone": preset.model.backbone, "see_padding": False, "dropout": preset.model.dropout}
    assert config.model.model_copy(update=published) == preset.model
    assert (config.queries.kind, config.queries.count) == ("static", preset.queries.count)
    assert config.loss == preset.loss


def recorded_case(shared: Path, name: str) -> DetectorCase:
    recorded = json.loads((shared / "parity" / f"{name}_r50_full" / "config.json").read_text())
    return DetectorCase(recorded, expected={}, io={}, weights={})


DINO = {  # preset, and what it changes of dino_r50
    "dino_4scale_r50": ("dino_r50", {}),
    "dino_5scale_r50": ("dino_r50", {"finest": 4, "levels": 5}),
    "dino_4scale_swin_l": ("dino_swin_l", {}),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * ("swin" in n)) for n in DINO])
def test_every_published_parameter_of_dino_is_used_once(shared, name):
    rows = json.loads((shared / "parity" / f"{name}_keys.json").read_text())
    # All layers share their heads, which are parameters of the decoder too. A label more than there are is never read.
    aliases = {n: re.sub(r"^(?:transformer\.decoder\.)?(class|bbox)_embed\.\d", r"\1_embed.0", n) for n, _ in rows}
    rows = [(n, [91, 256] if n == "label_enc.weight" else shape) for n, shape in rows]
    config = assert_all_used_once(rows, aliases, r"\.(bn\d|downsample\.1)\.|relative_position_index")
    preset, changes = DINO[name]
    assert config.preset == preset
    preset = resolve(preset)
    backbone = {"backbone": preset.model.backbone}
    assert config.model.model_copy(update=backbone) == preset.model.model_copy(update=changes)
    assert config.model.backbone.name == ("swin_l" if "swin" in name else "resnet50")
    assert config.queries == preset.queries.model_copy(update={"kind": "static"})
    assert config.loss == preset.loss
    assert len(config.classes) == 91


@pytest.mark.parametrize("name", SMALL)
def test_published_parameters_tell_their_configuration(shared, name):
    rows = json.loads((shared / "parity" / f"{name}_r50_keys.json").read_text())
    case = recorded_case(shared, name)
    state = {parameter: torch.zeros(()).expand(shape) for parameter, shape in rows}
    expected = model_config(case)
    published = PUBLISHED[expected.family]
    config = published.describe(published.from_official(state))
    assert config.model.backbone.name == "resnet50"
    assert config.model.model_copy(update={"backbone": expected.backbone, "dropout": 0.0}) == expected
    assert config.loss == case.loss()
    queries = case.queries(config.queries.hidden)
    assert config.queries == queries.model_copy(update={"count": 100 if name == "detr" else 300})
    assert len(config.classes) == len(config.category_ids) == 91
    assert {number: config.classes[config.category_ids.index(number)] for number in COCO_CATEGORIES} == COCO_CATEGORIES
    assert config.classes.count("N/A") == 11


# Small: the recorded weights behind a backbone of torchvision.


def official_checkpoint(
    shared: Path, name: str, file: Path
) -> tuple[DetectorCase, TorchvisionBackbone, dict[str, Tensor]]:
    """A file as the official training writes it; the case, the backbone and the weights in it."""
    torch.manual_seed(0)
    case = DetectorCase.read(shared / "parity" / name)
    backbone = TorchvisionBackbone(FAMILIES[model_config(case).family].strides)
    weights = reading_resnet18(case.weights)
    state = weights | {f"backbone.0.body.{k}": v for k, v in backbone.body.state_dict().items()}
    arguments = argparse.Namespace(nheads=8, num_queries=16, dilation=False, lr=1e-4, output_dir="out")
    torch.save({"model": state, "optimizer": {}, "epoch": 49, "args": arguments}, file)
    return case, backbone, weights


@pytest.mark.parametrize("name", SMALL)
def test_an_official_checkpoint_becomes_the_same_model(shared, tmp_path, name):
    case, backbone, weights = official_checkpoint(shared, name, tmp_path / "checkpoint.pth")
    dqdet.convert(tmp_path / "checkpoint.pth", tmp_path / "run")
    model, config = load_folder(tmp_path / "run")
    expected = model_config(case)
    assert config.model.model_copy(update={"backbone": expected.backbone, "dropout": 0.0}) == expected
    assert config.queries.model_copy(update={"hidden": 512}) == case.queries(512)
    assert config.loss == case.loss()
    assert config.classes == [f"class {label}" for label in range(7)]

    family = FAMILIES[expected.family]
    hidden = config.queries.hidden
    channels = [RESNET18[stride] for stride in family.strides]
    given = family(expected, case.queries(hidden), 7, channels).eval()
    given.load_state_dict(PUBLISHED[expected.family].from_official(weights))
    images, padding = pad_images([torch.randn(3, *size) for size in SIZES])
    with torch.no_grad():
        ours, theirs = model(images, padding), given.forward_features(backbone(images), padding)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=1e-4, atol=1e-4)


# What is refused.


@pytest.fixture
def checkpoint(shared, tmp_path):
    """A changed copy of an official DETR checkpoint."""
    official_checkpoint(shared, "detr", tmp_path / "detr.pth")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(tmp_path / "detr.pth", weights_only=True)

    def changed(**entries) -> Path:
        torch.save(content | entries, tmp_path / "changed.pth")
        return tmp_path / "changed.pth"

    return content["model"], changed


@pytest.mark.parametrize("protocol", ["zip", "legacy"])
def test_a_file_that_would_execute_code_is_refused(tmp_path, protocol):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    file = tmp_path / "checkpoint.pth"
    torch.save({"model": Payload()}, file, _use_new_zipfile_serialization=protocol == "zip")
    text = message(file)
    assert "refused, because reading it would execute code (posix.mkdir)" in text
    assert not (tmp_path / "executed").exists()


def test_other_files_are_refused(tmp_path, checkpoint):
    _, changed = checkpoint
    (tmp_path / "text.pth").write_text("no checkpoint")
    assert "damaged, or not a checkpoint of PyTorch" in message(tmp_path / "text.pth")
    whole = changed().read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(tmp_path / "half.pth")
    (tmp_path / "x.safetensors").write_bytes(whole)
    assert "damaged" in message(tmp_path / "x.safetensors")
    assert "neither parameters nor an entry 'model'" in message(changed(model={"a": 1}))
    other = message(changed(model={"fc.weight": torch.zeros(2)}))
    assert "not an official checkpoint of" in other
    assert "smca_detr" in other
    assert "fc.weight" in other


def test_an_official_checkpoint_says_whether_its_backbone_is_dilated(checkpoint):
    _, changed = checkpoint
    for dilation in (True, False):
        config = load_model(changed(args=argparse.Namespace(nheads=8, num_queries=16, dilation=dilation))).config
        assert config.model.backbone.dilation is dilation


def test_leftover_missing_and_misshapen_parameters_are_listed(checkpoint):
    state, changed = checkpoint
    more = state | {"mask_head.lay1.weight": torch.zeros(2), "mask_head.lay2.weight": torch.zeros(2)}
    assert "looks like detr" in message(changed(model=more))
    assert "2 unknown (mask_head.lay1.weight, mask_head.lay2.weight)" in message(changed(model=more))
    less = {k: v for k, v in state.items() if k != "bbox_embed.layers.1.bias"}
    assert "1 missing (box_head.layers.1.bias)" in message(changed(model=less))
    narrow = state | {"bbox_embed.layers.2.weight": torch.zeros(4, 8)}
    assert "box_head.layers.2.weight [4, 8] instead of [4, 64]" in message(changed(model=narrow))
    headless = {k: v for k, v in state.items() if not k.startswith("class_embed")}
    assert "looks like detr, but has no class_head.bias" in message(changed(model=headless))
    stageless = {k: v for k, v in state.items() if ".layer4.1." not in k}
    assert "backbone is none of resnet18" in message(changed(model=stageless))


def test_heads_that_should_be_shared_but_differ_are_refused(shared, tmp_path):
    _, backbone, weights = official_checkpoint(shared, "deformable_detr", tmp_path / "whole.pth")
    weights["class_embed.1.bias"] = weights["class_embed.1.bias"] + 1
    save_file(
        weights | {f"backbone.0.body.{k}": v for k, v in backbone.body.state_dict().items()},
        tmp_path / "changed.safetensors",
    )
    assert "class_embed.1.bias: differs" in message(tmp_path / "changed.safetensors")


# Hugging Face.

THEIRS = {
    "detr": (DetrConfig, DetrForObjectDetection, {}),
    "conditional_detr": (ConditionalDetrConfig, ConditionalDetrForObjectDetection, {}),
    "dab_detr": (DabDetrConfig, DabDetrForObjectDetection, {"hidden_size": 64, "temperature_height": 30}),
    "dab_detr_patterns": (DabDetrConfig, DabDetrForObjectDetection, {"hidden_size": 64, "num_patterns": 2}),
    "deformable_detr": (DeformableDetrConfig, DeformableDetrForObjectDetection, {}),
    "deformable_detr_refine": (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        {"with_box_refine": True},
    ),
    "deformable_detr_two_stage": (
        DeformableDetrConfig,
        DeformableDetrForObjectDetection,
        {"with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 12},
    ),
}
NAMES = ["cat", "dog", "bird"]


def huggingface_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    kind, model, variant = THEIRS[name]
    if name.startswith("dab"):
        variant = variant | {"temperature_width": variant.get("temperature_height", 20)}
    stages = ["stage2", "stage3", "stage4"] if kind is DeformableDetrConfig else ["stage4"]
    backbone = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        hidden_sizes=[64, 128, 256, 512],
        embedding_size=64,
        out_features=stages,
    )
    sizes = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = kind(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=12,
        id2label=dict(enumerate(NAMES)),
        **sizes,
        **heads,
        **variant,
    )
    theirs = model(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter += (0.0 if "backbone" in name else 0.05) * torch.randn_like(parameter)
        for buffer in theirs.buffers():
            buffer += 0.1 * torch.rand_like(buffer)
    return theirs


def assert_finds_the_same(model: nn.Module, theirs: nn.Module) -> None:
    images, padding = pad_images([torch.randn(3, *size) for size in SIZES])
    with torch.no_grad():
        expected = theirs(images, pixel_mask=(~padding).long())
        found = model(images, padding).final
    torch.testing.assert_close(found.logits[0], expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boxes[0], expected.pred_boxes, rtol=1e-4, atol=1e-4)


def test_a_dilated_backbone_of_hugging_face_stays_one(tmp_path):
    """DC5: the parameters have no trace of it."""
    options = {"backbone": "resnet18", "use_timm_backbone": True, "use_pretrained_backbone": False, "dilation": True}
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 12}
    torch.manual_seed(0)
    theirs = DetrForObjectDetection(DetrConfig(**options, **sizes, id2label=dict(enumerate(NAMES)))).eval()
    theirs.save_pretrained(tmp_path)
    model, config, _ = load_model(tmp_path)
    assert config.model.backbone.dilation
    assert_finds_the_same(model, theirs)


@pytest.mark.parametrize("older", [True, False], ids=["older names", "newer names"])
@pytest.mark.parametrize("name", THEIRS)
def test_a_hugging_face_folder_becomes_the_same_model(tmp_path, name, older):
    theirs = huggingface_model(name)
    theirs.save_pretrained(tmp_path, save_original_format=older)
    model, config, metrics = load_model(tmp_path)
    assert (config.classes, config.category_ids, metrics) == (NAMES, [], {"step": 0})
    assert (config.model.heads, config.model.dropout) == (4, 0.1)
    assert (config.queries.kind, config.queries.count) == ("static", 12)
    assert_finds_the_same(model, theirs)


@pytest.mark.parametrize("name", ["theirs", "detr.pth"])
def test_models_that_are_no_runs_are_evaluated_as_they_are(shared, tmp_path, run, name):
    source = tmp_path / name
    if name == "theirs":
        huggingface_model("detr").save_pretrained(source)
    else:
        official_checkpoint(shared, "detr", source)
    classes = [known for known in load_model(source).config.classes if known != "N/A"]
    data = tmp_path / "data"
    detection_split(data, "val", np.random.default_rng(0), range(2))
    annotations = data / "annotations" / "instances_val.json"
    categories = [{"id": number, "name": known} for number, known in enumerate(classes, 1)]
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"categories": categories}))
    files = sorted(source.rglob("*"))

    metrics = dqdet.evaluate(source, data={"root": str(data), "val_resize": 64})
    results = tmp_path / f"{source.stem}-eval"
    assert json.loads((results / "metrics.json").read_text()) == metrics
    found = json.loads((results / "results.json").read_text())
    assert {one["image_id"] for one in found} == {0, 1}
    assert sorted(source.rglob("*")) == files

    converted = dqdet.convert(source, tmp_path / "run")
    assert dqdet.evaluate(converted, data={"root": str(data), "val_resize": 64}) == metrics
    assert json.loads((converted / "eval" / "results.json").read_text()) == found

    status, shown, _ = run("eval", str(source), f"data.root={data}", "data.val_resize=64", "--out", str(tmp_path / "x"))
    assert (status, str(name) in shown) == (0, True)
    assert json.loads((tmp_path / "x" / "results.json").read_text()) == found


def test_models_with_a_backbone_of_timm_have_the_torchvision_names(shared, tmp_path):
    """As most models on the hub have been saved."""
    theirs = huggingface_model("detr")
    theirs.save_pretrained(tmp_path)
    expected = load_model(tmp_path).model.state_dict()
    state = load_file(tmp_path / "model.safetensors")
    names = {
        "embedder.embedder.convolution": "conv1",
        "embedder.embedder.normalization": "bn1",
        "encoder.stages.0.layers": "layer1",
        "encoder.stages.1.layers": "layer2",
        "encoder.stages.2.layers": "layer3",
        "encoder.stages.3.layers": "layer4",
        "layer.0.convolution": "conv1",
        "layer.1.convolution": "conv2",
        "layer.0.normalization": "bn1",
        "layer.1.normalization": "bn2",
        "shortcut.convolution": "downsample.0",
        "shortcut.normalization": "downsample.1",
    }
    renamed = {}
    for name, tensor in state.items():
        for old, new in names.items():
            name = name.replace(f".{old}.", f".{new}.") if ".backbone." in name else name
        renamed[name] = tensor
    assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var" in renamed
    save_file(renamed, tmp_path / "model.safetensors")
    found = load_model(tmp_path).model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_coco_models_of_hugging_face_know_the_category_ids(tmp_path):
    names = [COCO_CATEGORIES.get(number, "N/A") for number in range(91)]
    theirs = huggingface_model("detr")
    theirs.class_labels_classifier = nn.Linear(64, 92)
    theirs.config.id2label = dict(enumerate(names))
    theirs.save_pretrained(tmp_path)
    config = load_model(tmp_path).config
    assert (config.classes, config.category_ids) == (names, list(range(91)))


def test_an_output_of_coco_models_is_its_category_id_whatever_the_unused_ones_are_called(tmp_path):
    """Some models on the hub name what COCO was going to annotate: 12 a street sign, 26 a hat."""
    names = [COCO_CATEGORIES.get(number, f"never annotated {number}") for number in range(91)]
    theirs = huggingface_model("detr")
    theirs.class_labels_classifier = nn.Linear(64, 92)
    theirs.config.id2label = dict(enumerate(names))
    theirs.save_pretrained(tmp_path / "theirs")
    config = load_model(tmp_path / "theirs").config
    assert (config.classes, config.category_ids) == (names, list(range(91)))

    theirs.config.id2label = dict(enumerate([names[0], "gnome", *names[2:]]))  # another data set's
    theirs.save_pretrained(tmp_path / "others")
    config = load_model(tmp_path / "others").config
    assert (config.category_ids, config.ids) == ([], list(range(1, 92)))


@pytest.mark.parametrize("name", SMALL)
def test_results_of_official_models_have_the_category_ids_of_coco(name, shared):
    """An output for each of 91 ids: the one that fires is the category."""
    rows = json.loads((shared / "parity" / f"{name}_r50_keys.json").read_text())
    published = PUBLISHED[model_config(recorded_case(shared, name)).family]
    state = published.from_official({parameter: torch.zeros(()).expand(shape) for parameter, shape in rows})
    config = published.describe(state)
    boxes = torch.tensor([[0.0, 0, 1, 1]])
    for number, category in COCO_CATEGORIES.items():
        found = ImageDetections(torch.ones(1), torch.tensor([number]), boxes)
        (entry,) = coco_results(1, found, config.ids)
        assert (entry["category_id"], config.classes[number]) == (number, category)
    # Run folders of early versions have the classes of such a model, but no ids.
    assert config.model_copy(update={"category_ids": []}).ids == list(range(91))


def test_what_dqdet_does_not_have_is_refused(tmp_path):
    theirs = huggingface_model("detr")
    theirs.save_pretrained(tmp_path)
    original = json.loads((tmp_path / "config.json").read_text())

    def changed(**options) -> str:
        (tmp_path / "config.json").write_text(json.dumps(original | options))
        return message(tmp_path)

    assert "position_embedding_type='learned'; supported is sine only" in changed(position_embedding_type="learned")
    assert "decoder_attention_heads=2; supported is 4 only" in changed(decoder_attention_heads=2)
    assert "model_type is 'yolos'; supported are detr, conditional_detr" in changed(model_type="yolos")
    assert "class_head.weight [4, 64] instead of [3, 64]" in changed(id2label={"0": "cat", "1": "dog"})
    (tmp_path / "config.json").write_text("{")
    assert "config.json cannot be read" in message(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(original))
    (tmp_path / "model.safetensors").unlink()
    assert "has no model.safetensors" in message(tmp_path)
