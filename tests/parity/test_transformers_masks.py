"""Mask2Former equal to that of ``transformers`` on small random models, in values and gradients."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Mask2FormerConfig as TheirConfig
from transformers import Mask2FormerForUniversalSegmentation, ResNetConfig, SwinConfig

import dqdet
from dqdet.config import Mask2FormerConfig, QueriesConfig
from dqdet.errors import DqdetError
from dqdet.formats.categories import COCO_CATEGORIES, COCO_STUFF
from dqdet.models.mask2former import Mask2Former
from dqdet.runs.folder import load_folder
from dqdet.runs.sources import load_model
from dqdet.types import pad_images
from dqdet.weights.mask2former import MASK2FORMER

QUERIES, CLASSES, LAYERS = 7, 5, 4
CHANNELS = [8, 12, 16, 20]


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their parameters by our names, without the backbone."""
    state = {name: tensor for name, tensor in state.items() if "pixel_level_module.encoder." not in name}
    return MASK2FORMER.from_huggingface(state, {"model_type": "mask2former"})


@pytest.fixture(scope="module", params=[64, 24], ids=["masks of the same width", "masks of another width"])
def pair(request):
    """Their model, ours with the same weights, and an image batch."""
    torch.manual_seed(0)
    width = request.param
    sizes = {"feature_size": 64, "mask_feature_size": width, "hidden_dim": 64, "num_attention_heads": 4}
    backbone = ResNetConfig(
        embedding_size=8,
        hidden_sizes=CHANNELS,
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    theirs = Mask2FormerForUniversalSegmentation(
        TheirConfig(
            backbone_config=backbone,
            **sizes,
            encoder_feedforward_dim=48,
            dim_feedforward=40,
            encoder_layers=2,
            decoder_layers=LAYERS + 1,  # the prediction before the first layer counts
            num_queries=QUERIES,
            num_labels=CLASSES,
            dropout=0.0,
            output_auxiliary_logits=True,
        )
    )
    theirs.eval()
    with torch.no_grad():  # away from initial values that hide mistakes
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    config = Mask2FormerConfig(
        hidden=64,
        heads=4,
        encoder_layers=2,
        decoder_layers=LAYERS,
        feedforward=40,
        encoder_feedforward=48,
        mask_channels=None if width == 64 else width,
    )
    ours = Mask2Former(config, QueriesConfig(kind="static", count=QUERIES), CLASSES, CHANNELS)
    ours.load_state_dict(translated(theirs.state_dict()), strict=True)
    return theirs, ours, torch.randn(2, 3, 96, 128)


def test_values_and_gradients(pair, monkeypatch):
    theirs, ours, images = pair
    encoder = theirs.model.pixel_level_module.encoder
    with torch.no_grad():
        features = encoder(images)
    maps = [feature.requires_grad_() for feature in features.feature_maps]
    monkeypatch.setattr(encoder, "forward", lambda pixel_values: features)
    output = theirs(pixel_values=images)
    layers = [*output.auxiliary_logits, output]
    expected = [torch.stack([layer[f"{kind}_queries_logits"] for layer in layers]) for kind in ("class", "masks")]

    predictions = ours.forward_features(maps, torch.zeros(2, 96, 128, dtype=torch.bool))
    actual = [predictions.logits, predictions.masks.all()]
    assert actual[0].shape == (LAYERS + 1, 2, QUERIES, CLASSES + 1)
    for mine, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-4)

    cotangents = [torch.randn_like(x) for x in expected]
    gradients = []
    for model, outputs in ((ours, actual), (theirs, expected)):
        torch.autograd.backward(outputs, cotangents)
        of_parameters = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        gradients.append(of_parameters | {f"map {i}": feature.grad for i, feature in enumerate(maps)})
        for feature in maps:
            feature.grad = None
    wanted = translated(gradients[1])
    assert gradients[0].keys() == wanted.keys()
    for name, gradient in gradients[0].items():
        assert (gradient - wanted[name]).norm() < 1e-3 * wanted[name].norm() + 1e-3, name


# Folders, as they are published.

STAGES = ["stage1", "stage2", "stage3", "stage4"]
BACKBONES = {
    "resnet18": ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=STAGES,
    ),
    "swin_t": SwinConfig(
        embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7, out_features=STAGES
    ),
}


def published(backbone: str, mask_channels: int = 32, **options) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"feature_size": 32, "mask_feature_size": mask_channels, "hidden_dim": 32, "num_attention_heads": 4}
    config = TheirConfig(
        backbone_config=BACKBONES[backbone],
        **sizes,
        encoder_feedforward_dim=48,
        dim_feedforward=40,
        encoder_layers=1,
        decoder_layers=3,
        num_queries=QUERIES,
        **options,
    )
    theirs = Mask2FormerForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            parameter += (0.02 if "pixel_level_module.encoder" in name else 0.1) * torch.randn_like(parameter)
        for name, buffer in theirs.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer += 0.1 * torch.rand_like(buffer)
    return theirs


@pytest.mark.parametrize("older", [True, False], ids=["older names", "newer names"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_folder_becomes_the_same_model(tmp_path, backbone, older):
    masks = None if older else 20
    options = {"id2label": {0: "cat", 1: "dog"}, "no_object_weight": 0.2, "train_num_points": 100}
    theirs = published(backbone, masks or 32, **options)
    theirs.save_pretrained(tmp_path / "theirs", save_original_format=older)
    dqdet.convert(tmp_path / "theirs", tmp_path / "run")
    model, config = load_folder(tmp_path / "run")
    assert (config.model.family, config.model.backbone.name) == ("mask2former", backbone)
    assert (config.model.heads, config.model.encoder_layers, config.model.decoder_layers) == (4, 1, 2)
    assert config.model.mask_channels == masks
    assert (config.queries.kind, config.queries.count) == ("static", QUERIES)
    assert (config.classes, config.category_ids, config.stuff) == (["cat", "dog"], [], [])
    assert (config.loss.no_object_weight, config.loss.points, config.loss.dice_weight) == (0.2, 100, 5.0)

    images, padding = pad_images([torch.randn(3, 64, 106), torch.randn(3, 90, 70)])  # their sides divide by nothing
    with torch.no_grad():
        features = theirs.model.pixel_level_module.encoder(images).feature_maps
        for ours, expected in zip(model.backbone(images), features, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-3)
        filled = F.pad(images, (0, 128 - 106, 0, 96 - 90))  # as their image processor does, to multiples of 32
        for given, found in (
            (images, model.forward_features(model.backbone(images), padding)),
            (filled, model(images, padding)),
        ):
            expected = theirs(given)
            final = found.final
            torch.testing.assert_close(final.logits[0], expected.class_queries_logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(final.masks.all()[0], expected.masks_queries_logits, rtol=1e-4, atol=1e-4)


def test_classes_of_published_models_are_known_by_their_names(tmp_path):
    names = [*COCO_CATEGORIES.values(), *COCO_STUFF.values()]
    theirs = published("resnet18", id2label=dict(enumerate(names)))
    theirs.save_pretrained(tmp_path)
    config = load_model(tmp_path).config
    assert (config.preset, config.data.task) == ("mask2former_r50_coco_panoptic", "panoptic")
    assert (config.classes, config.category_ids) == (names, [*COCO_CATEGORIES, *COCO_STUFF])
    assert config.stuff == list(COCO_STUFF.values())

    options = json.loads((tmp_path / "config.json").read_text())
    options["id2label"]["0"] = "gnome"
    (tmp_path / "config.json").write_text(json.dumps(options))
    config = load_model(tmp_path).config
    assert (config.classes[:2], config.category_ids, config.stuff) == (["gnome", "bicycle"], [], [])
    assert config.data.task == "instance"


def test_what_dqdet_does_not_have_is_refused(tmp_path):
    published("resnet18").save_pretrained(tmp_path)
    original = json.loads((tmp_path / "config.json").read_text())

    def message(**options) -> str:
        (tmp_path / "config.json").write_text(json.dumps(original | options))
        with pytest.raises(DqdetError) as caught:
            load_model(tmp_path)
        assert str(caught.value).startswith(f"{tmp_path}: ")
        return str(caught.value)

    assert "config.json has pre_norm=True; supported is False only" in message(pre_norm=True)
    assert "feature_size=64; supported is 32 only" in message(feature_size=64)
    other_backbone = original["backbone_config"] | {"downsample_in_bottleneck": True}
    assert "downsample_in_bottleneck=True" in message(backbone_config=other_backbone)
    assert "class_head.weight [3, 32] instead of [4, 32]" in message(id2label={"0": "a", "1": "b", "2": "c"})
