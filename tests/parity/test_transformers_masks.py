"""Mask2Former equal to that of ``transformers`` on small random models, in values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import Mask2FormerConfig as TheirConfig
from transformers import Mask2FormerForUniversalSegmentation, ResNetConfig

from dqdet.checkpoints.conversion import Rule, merge_projections, rename
from dqdet.config import Mask2FormerConfig, QueriesConfig
from dqdet.models.mask2former import Mask2Former

QUERIES, CLASSES, LAYERS = 7, 5, 4
CHANNELS = [8, 12, 16, 20]

NAMES: list[Rule] = [
    (r"^model\.pixel_level_module\.decoder\.", "pixel_decoder."),
    (r"^pixel_decoder\.level_embed$", "pixel_decoder.encoder.level_embed"),
    (r"^pixel_decoder\.input_projections\.", "pixel_decoder.input_proj."),
    (r"^pixel_decoder\.mask_projection\.", "pixel_decoder.mask_proj."),
    (r"^pixel_decoder\.adapter_1\.", "pixel_decoder.lateral."),
    (r"^pixel_decoder\.layer_1\.", "pixel_decoder.output."),
    (r"^(pixel_decoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^model\.transformer_module\.queries_embedder\.weight$", "queries.table.position"),
    (r"^model\.transformer_module\.queries_features\.weight$", "queries.table.content"),
    (r"^model\.transformer_module\.level_embed\.weight$", "level_embed"),
    (r"^model\.transformer_module\.decoder\.layernorm\.", "norm."),
    (r"^model\.transformer_module\.decoder\.layers\.", "decoder."),
    (r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0\.", r"mask_head.layers.\1."),
    (r"^class_predictor\.", "class_head."),
    (r"^(decoder\.\d+)\.cross_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\.\d+\.self_attn)\.([qkv])_proj\.(weight|bias)$", r"\1.in_proj_\3.\2"),
    (r"\.fc([12])\.", r".feedforward.linear\1."),
    (r"\.final_layer_norm\.", ".feedforward.norm."),
]


def translated(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their parameters by our names, without the backbone and the loss."""
    left_out = ("model.pixel_level_module.encoder.", "criterion.")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    return merge_projections(rename(state, NAMES))


@pytest.fixture(scope="module")
def pair():
    """Their model, ours with the same weights, and an image batch."""
    torch.manual_seed(0)
    sizes = {"feature_size": 64, "mask_feature_size": 64, "hidden_dim": 64, "num_attention_heads": 4}
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
        hidden=64, heads=4, encoder_layers=2, decoder_layers=LAYERS, feedforward=40, encoder_feedforward=48
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
    actual = [predictions.logits, predictions.masks]
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
