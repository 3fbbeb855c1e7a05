"""What the names and shapes of published weights tell about the model that they belong to."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dqdet.config import Config, TransformerConfig, override, preset_names, resolve
from dqdet.errors import DqdetError
from dqdet.weights.classes import class_options, published_classes
from dqdet.weights.renaming import State

MASK2FORMERS = ("mask2former", "video_mask2former")

# A parameter that only this family has among those that follow, by its official name.
OFFICIAL_SIGNS: dict[str, str] = {
    "mask2former": "sem_seg_head.predictor.decoder_norm.weight",
    "seqformer": "detr.transformer.level_embed",
    "dab_deformable_detr": "tgt_embed.weight",
    "deformable_detr": "transformer.level_embed",
    "smca_detr": "transformer.decoder.layers.0.point1.layers.0.weight",
    "dab_detr": "refpoint_embed.weight",
    "conditional_detr": "transformer.decoder.ref_point_head.layers.0.weight",
    "detr": "transformer.decoder.layers.0.multihead_attn.in_proj_weight",
}

# Blocks of the four stages, and whether a block has a third convolution.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}

# Channels after the first step, blocks of the four stages, and entries of a window's table of relative positions.
SWINS: dict[tuple[int, tuple[int, ...], int], str] = {
    (96, (2, 2, 6, 2), 13 * 13): "swin_t",
    (96, (2, 2, 18, 2), 13 * 13): "swin_s",
    (128, (2, 2, 18, 2), 13 * 13): "swin_base_patch4_window7_224",
    (128, (2, 2, 18, 2), 23 * 23): "swin_b",
    (192, (2, 2, 18, 2), 13 * 13): "swin_large_patch4_window7_224",
    (192, (2, 2, 18, 2), 23 * 23): "swin_l",
}

# Basic queries behind each modulated one: in the published code for images, and everywhere else.
IMAGE_RATIO, RATIO = 6, 4


def describe(
    state: State, family: str, heads: int = 8, count: int | None = None, names: Sequence[str] | None = None
) -> Config:
    """The configuration of the model that parameters (ours, after conversion) are of.

    Args:
        state: all parameters of the model.
        family: of the model. Models of Mask2Former for images and videos have the same parameters; those with the
            40 classes of YouTube-VIS are taken to be for videos.
        heads: of its attention; these leave no trace in parameters.
        count: of its queries at inference, if known. By default there are as many basic queries behind each
            modulated one as published.
        names: of its classes, if known. By default they are those of the data set that published models with so
            many outputs learned, or numbers.

    Raises:
        DqdetError: a parameter is missing, or the backbone is neither one of `RESNETS` nor of `SWINS`.
    """
    try:
        backbone = _backbone(state)
        outputs = _count_classes(state, family) if names is None else len(names)
        classes = published_classes(family, outputs, names)
        config = _nearest_preset(_default_presets(family) if classes is None else classes.presets, backbone)
        family = config.model.family
        options = {
            **_model(state, family, heads),
            **_backbone_options(backbone, family),
            **_queries(state, config.model, count),
            **class_options(classes, outputs, names),
        }
    except KeyError as error:
        raise DqdetError(f"looks like {family}, but has no {error.args[0]}") from error
    return override(config, options)


def _default_presets(family: str) -> str:
    return "mask2former_{}_coco_instance" if family == "mask2former" else family + "_{}"


def _nearest_preset(presets: str, backbone: str) -> Config:
    """The preset with this backbone, or else with ResNet-50."""
    name = presets.format(backbone)
    return resolve(name if name in preset_names() else presets.format("r50"))


def _model(state: State, family: str, heads: int) -> dict[str, Any]:
    pixel_decoder = "pixel_decoder." if family in MASK2FORMERS else ""
    options: dict[str, Any] = {
        "model.hidden": len(state["decoder.0.norm1.weight"]),
        "model.heads": heads,
        "model.encoder_layers": _depth(state, f"{pixel_decoder}encoder.layers."),
        "model.decoder_layers": _depth(state, "decoder."),
        "model.feedforward": len(state["decoder.0.feedforward.linear1.bias"]),
    }
    if family == "dab_detr":
        options["model.activation"] = "prelu" if "decoder.0.feedforward.activation.weight" in state else "relu"
        options["model.patterns"] = len(state.get("patterns", ()))
    if family in ("deformable_detr", "dab_deformable_detr", "seqformer"):
        options["model.levels"] = levels = len(state["encoder.level_embed"])
        options["model.points"] = len(state["decoder.0.cross_attn.attention_weights.bias"]) // (heads * levels)
    if family == "deformable_detr":
        options["model.two_stage"] = "proposal_proj.0.weight" in state
        options["model.refine"] = "box_head.1.layers.0.weight" in state
    if family in MASK2FORMERS:
        first, levels = "pixel_decoder.encoder.layers.0", len(state["level_embed"])
        options["model.points"] = len(state[f"{first}.self_attn.attention_weights.bias"]) // (heads * levels)
        options["model.encoder_feedforward"] = len(state[f"{first}.feedforward.linear1.bias"])
    if family in (*MASK2FORMERS, "seqformer"):
        options["model.see_padding"] = True  # as published
    return options


def _backbone_options(name: str, family: str) -> dict[str, Any]:
    options: dict[str, Any] = {"model.backbone.name": name}
    if family in MASK2FORMERS and name in RESNETS.values():
        options["model.backbone.freeze"] = "norms"  # which are folded in conversion; nothing else is
    return options


def _queries(state: State, model: TransformerConfig, count: int | None) -> dict[str, Any]:
    family = model.family
    tables = [table for name, table in state.items() if name.startswith(("queries.table.", "queries.basic."))]
    if "queries.coefficients.0.weight" not in state:
        count = len(tables[0]) if tables else count  # without tables the encoder proposes as many as wanted
        return {"queries.kind": "static"} | ({} if count is None else {"queries.count": count})
    basic = len(tables[0])
    ratio = IMAGE_RATIO if family == "mask2former" and basic % IMAGE_RATIO == 0 else RATIO
    count = count or basic // ratio
    return {  # as the code with dynamic queries was published
        "queries.kind": "modulated",
        "queries.count": count,
        "queries.ratio": basic // count,
        "queries.hidden": len(state["queries.coefficients.0.weight"]),
        "queries.context": model.published_context,
        "queries.pool": "max",
        "queries.pool_padding": True,
        "queries.coefficients": "softmax" if family == "deformable_detr" else "raw",
        "loss.beta": 0.5 if family in ("dab_detr", "dab_deformable_detr") else 1.0,
    }


def _count_classes(state: State, family: str) -> int:
    bias = state["class_head.0.bias"] if "class_head.0.bias" in state else state["class_head.bias"]
    return len(bias) - (family in ("detr", "smca_detr", *MASK2FORMERS))  # these have an output more


def _depth(state: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if re.match(rf"{re.escape(prefix)}\d", name)})


def _backbone(state: State) -> str:
    if "backbone.body.patch_embed.proj.weight" in state:
        blocks = tuple(_depth(state, f"backbone.body.layers_{stage}.blocks.") for stage in range(4))
        table = state["backbone.body.layers_0.blocks.0.attn.relative_position_bias_table"]  # [entries, heads]
        name = SWINS.get((len(state["backbone.body.patch_embed.proj.weight"]), blocks, len(table)))
        if name is None:
            raise DqdetError(f"the backbone is none of {', '.join(SWINS.values())}")
        return name
    stages = tuple(_depth(state, f"backbone.body.layer{stage}.") for stage in (1, 2, 3, 4))
    name = RESNETS.get((stages, "backbone.body.layer1.0.conv3.weight" in state))
    if name is None:
        raise DqdetError(f"the backbone is none of {', '.join(RESNETS.values())}, with batch norms")
    return name
