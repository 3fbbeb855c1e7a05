"""Files of Mask2Former and SeqFormer as they are published: PyTorch's, and pickles of arrays."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from published_files import RESNET18, SIZES, TorchvisionBackbone, message, reading_resnet18
from safetensors.torch import load_file
from torch import Tensor

import dqdet
from dqdet.formats.categories import COCO_CATEGORIES, COCO_STUFF, YOUTUBE_VIS_CATEGORIES
from dqdet.models import FAMILIES
from dqdet.runs.folder import load_folder
from dqdet.runs.sources import load_model
from dqdet.types import pad_images
from dqdet.weights import translate
from dqdet.weights.reading import read_checkpoint

CASES = ["mask2former", "mask2former_dq", "video_mask2former", "video_mask2former_dq", "seqformer"]


def detectron2_name(name: str) -> str:
    """What detectron2 calls a parameter of torchvision's ResNets."""
    name = name if name.startswith("layer") else f"stem.{name}"
    name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return "backbone." + name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def recorded(shared: Path, name: str) -> tuple[dict[str, Tensor], TorchvisionBackbone, str]:
    """Recorded weights that read another backbone, that backbone, and the family."""
    torch.manual_seed(0)
    weights = reading_resnet18(load_file(shared / "parity" / name / "weights.safetensors"))
    family = name.removesuffix("_dq")
    if family == "video_mask2former":  # YouTube-VIS tells videos from images
        heads = [parameter for parameter in weights if "class_embed" in parameter]
        weights |= {parameter: torch.randn(41, *weights[parameter].shape[1:]) for parameter in heads}
    return weights, TorchvisionBackbone(FAMILIES[family].strides), family


def published(weights: dict[str, Tensor], backbone: TorchvisionBackbone, family: str) -> dict[str, Tensor]:
    """The weights with those of the backbone, in official names."""
    body = backbone.body.state_dict()
    if family == "seqformer":
        return weights | {f"detr.backbone.0.body.{parameter}": tensor for parameter, tensor in body.items()}
    return weights | {detectron2_name(parameter): tensor for parameter, tensor in body.items()}


def write(state: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".pkl":
        arrays = {parameter: tensor.numpy() for parameter, tensor in state.items()}
        content = {"model": arrays, "__author__": "third_party", "matching_heuristics": True}
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save({"model": state, "optimizer": {}, "iteration": 9}, file)


@pytest.mark.parametrize("name", CASES)
def test_a_published_file_becomes_the_same_model(shared, tmp_path, name):
    file = tmp_path / ("checkpoint.pth" if name == "seqformer" else "model_final.pkl")
    weights, backbone, family = recorded(shared, name)
    write(published(weights, backbone, family), file)
    dqdet.convert(file, tmp_path / "run")
    model, config = load_folder(tmp_path / "run")
    case = json.loads((shared / "parity" / name / "config.json").read_text())
    assert (config.model.family, config.model.backbone.name) == (family, "resnet18")
    assert (config.queries.count, config.model.decoder_layers) == (case["num_queries"], case["dec_layers"])
    if name.endswith("_dq"):
        assert config.queries.ratio == case["query_ratio"]
        assert (config.queries.pool, config.queries.coefficients) == ("max", "raw")

    channels = [RESNET18[stride] for stride in FAMILIES[family].strides]
    given = FAMILIES[family](config.model, config.queries, len(config.classes), channels).eval()
    given.load_state_dict(translate(weights)[0])
    given.backbone = backbone
    images, padding = pad_images([torch.randn(3, *size) for size in SIZES])
    if family in ("seqformer", "video_mask2former"):
        images = torch.stack([images, images.flip(-1)], 1)  # [B, T, 3, H, W]
    with torch.no_grad():
        ours, theirs = model(images, padding), given(images, padding)
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-4, atol=1e-4)
    for image in range(len(images)):
        queries = torch.arange(config.queries.count)
        ours_masks, theirs_masks = ours.masks.of(-1, image, queries), theirs.masks.of(-1, image, queries)
        torch.testing.assert_close(ours_masks, theirs_masks, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def state(shared) -> dict[str, Tensor]:
    """An official state dict."""
    return published(*recorded(shared, "mask2former"))


def with_outputs(state: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    heads = {"weight": torch.zeros(count + 1, 64), "bias": torch.zeros(count + 1)}
    return state | {f"sem_seg_head.predictor.class_embed.{part}": tensor for part, tensor in heads.items()}


@pytest.mark.parametrize(
    ("outputs", "preset", "stuff"),
    [
        (80, "mask2former_r50_coco_instance", 0),
        (133, "mask2former_r50_coco_panoptic", 53),
        (8, "mask2former_r50_cityscapes_instance", 0),
        (19, "mask2former_r50_cityscapes_panoptic", 11),
        (40, "video_mask2former_r50", 0),
        (65, "mask2former_r50_coco_instance", 0),
    ],
)
def test_outputs_tell_the_data(state, outputs, preset, stuff):
    converted, published = translate(with_outputs(state, outputs))
    config = published.describe(converted)
    assert (config.preset, len(config.classes), len(config.stuff)) == (preset, outputs, stuff)
    assert set(config.stuff) <= set(config.classes)
    if outputs == 65:
        assert (config.classes[7], config.category_ids) == ("class 7", [])
    else:
        assert len(config.category_ids) == outputs


MASK_LAYERS = [
    f"{layer}.{part}"
    for layer in ("pixel_decoder.mask_features", "predictor.mask_embed.layers.2")
    for part in ("weight", "bias")
]


def test_masks_of_another_width_than_the_queries(state, tmp_path):
    head = "sem_seg_head"
    narrow = {name: state[f"{head}.{name}"][:24] for name in MASK_LAYERS}
    write(state | {f"{head}.{name}": tensor for name, tensor in narrow.items()}, tmp_path / "model.pkl")
    model, config, _ = load_model(tmp_path / "model.pkl")
    assert (config.model.hidden, config.model.mask_channels) == (64, 24)
    images, padding = pad_images([torch.randn(3, *size) for size in SIZES])
    with torch.no_grad():
        assert model(images, padding).masks.features.shape[1] == 24
        assert torch.equal(model.pixel_decoder.mask_proj.bias, narrow["pixel_decoder.mask_features.bias"])


@pytest.mark.parametrize(("basic", "count", "ratio"), [(600, 100, 6), (400, 100, 4)])
def test_basic_queries_tell_the_ratio(shared, basic, count, ratio):
    """Of the published code, and of the paper."""
    state = published(*recorded(shared, "mask2former_dq"))
    for table in ("query_feat", "query_embed"):
        state[f"sem_seg_head.predictor.{table}.weight"] = torch.zeros(basic, 64)
    converted, family = translate(state)
    queries = family.describe(converted).queries
    assert (queries.count, queries.ratio) == (count, ratio)


def test_coco_panoptic_categories_are_the_official_ones(shared):
    official = json.loads((shared / "data" / "panoptic_sample" / "categories.json").read_text())
    assert list((COCO_CATEGORIES | COCO_STUFF).items()) == [(entry["id"], entry["name"]) for entry in official]
    assert set(COCO_STUFF) == {entry["id"] for entry in official if not entry["isthing"]}


def test_youtube_vis_categories_are_the_official_ones(shared):
    official = json.loads((shared / "metrics" / "video_instance" / "gt.json").read_text())["categories"]
    assert {entry["id"]: entry["name"] for entry in official} == YOUTUBE_VIS_CATEGORIES


# Pickles.


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_are_read(tmp_path, protocol):
    """Those of arrays, and of tensors, as converted Swin backbones are."""
    state = {f"weight {i}": torch.randn(3, 2) for i in range(4)} | {"step": torch.tensor(7)}
    arrays = {name: tensor.numpy() if i % 2 else tensor.t() for i, (name, tensor) in enumerate(state.items())}
    content = {"model": arrays, "__author__": "someone", "scores": [np.float64(0.5), None, True, b"bytes"]}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    found, _ = read_checkpoint(tmp_path / "model.pkl")
    for i, (name, tensor) in enumerate(state.items()):
        assert torch.equal(found[name], tensor if i % 2 else tensor.t())


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_pickles_that_would_execute_code_are_refused(tmp_path, protocol):
    file, evidence = tmp_path / "model.pkl", tmp_path / "executed"
    file.write_bytes(pickle.dumps({"model": {"weight": Payload(os.mkdir, str(evidence))}}, protocol))
    assert "refused, because reading it would execute code (posix.mkdir)" in message(file)
    inner = pickle.dumps(Payload(os.mkdir, str(evidence)), 2)
    # PyTorch's function for the numbers of a tensor runs it.
    file.write_bytes(pickle.dumps({"model": Payload(torch.storage._load_from_bytes, inner)}, protocol))
    assert "would execute code (posix.mkdir)" in message(file)
    file.write_bytes(pickle.dumps({"model": {"weight": Payload(np.load, "model.npy", None, True)}}, protocol))
    assert "would execute code (numpy.load)" in message(file)
    assert not evidence.exists()


def test_other_pickles_are_refused(tmp_path):
    file = tmp_path / "model.pkl"
    whole = pickle.dumps({"model": {"weight": np.zeros(1000)}})
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in message(file)
    file.write_bytes(b"")
    assert "damaged" in message(file)
    for content in ([1, 2], {"model": {"weight": np.array([None])}}, {"model": {}}, {"model": {"weight": "text"}}):
        file.write_bytes(pickle.dumps(content))
        assert "neither parameters nor an entry 'model'" in message(file)
    file.write_bytes(pickle.dumps({"model": {"conv1_w": np.zeros(3)}}))
    assert "not an official checkpoint of " in message(file)
    assert "mask2former, seqformer" in message(file)


def test_other_models_with_such_names_are_refused(state, tmp_path):
    file = tmp_path / "model.pth"
    torch.save({"model": state | {"sem_seg_head.predictor.label_enc.weight": torch.zeros(2)}}, file)
    assert "looks like mask2former, but has other parameters: 1 unknown (label_enc.weight)" in message(file)
    torch.save({"model": {k: v for k, v in state.items() if "class_embed" not in k}}, file)
    assert "looks like mask2former, but has no class_head.bias" in message(file)
    torch.save({"model": {k: v for k, v in state.items() if not k.startswith("backbone.res5.1")}}, file)
    assert "backbone is none of resnet18" in message(file)
