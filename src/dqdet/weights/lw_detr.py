"""LW-DETR: the code of its authors, and ``transformers``. RF-DETR, which comes from it, keeps most names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import Any

import torch

from dqdet.config import Config, LwDetrConfig, override, preset_names, resolve
from dqdet.errors import DqdetError
from dqdet.weights.huggingface import HuggingFace, Theirs
from dqdet.weights.published import Published
from dqdet.weights.renaming import Rule, State, count_modules

RULES: list[Rule] = [
    (r"^backbone\.0\.encoder\.", "backbone.body."),
    (r"^backbone\.0\.projector\.stages_sampling\.(\d+)\.", r"projector.\1.resample."),
    (r"^backbone\.0\.projector\.stages\.(\d+)\.1\.", r"projector.\1.norm."),
    (r"^backbone\.0\.projector\.stages\.(\d+)\.0\.", r"projector.\1.fuse."),
    *((rf"\.fuse\.m\.(\d+)\.cv{i + 1}\.", rf".fuse.steps.\1.{i}.") for i in range(2)),
    (r"\.fuse\.cv1\.", ".fuse.split."),
    (r"\.fuse\.cv2\.", ".fuse.merge."),
    (r"^(projector\..*)\.conv\.", r"\1.0."),
    (r"^(projector\..*)\.bn\.", r"\1.1."),
    (r"^transformer\.enc_output\.(\d+)\.", r"proposals.\1.proj.0."),
    (r"^transformer\.enc_output_norm\.(\d+)\.", r"proposals.\1.proj.1."),
    (r"^transformer\.enc_out_class_embed\.(\d+)\.", r"proposals.\1.class_head."),
    (r"^transformer\.enc_out_bbox_embed\.(\d+)\.", r"proposals.\1.box_head."),
    (r"^transformer\.decoder\.layers\.", "decoder."),
    (r"^transformer\.decoder\.norm\.", "norm."),
    (r"^transformer\.decoder\.ref_point_head\.", "position_head."),
    (r"^(decoder\..*)\.linear([12])\.", r"\1.feedforward.linear\2."),
    (r"^(decoder\.\d+)\.norm3\.", r"\1.feedforward.norm."),
    (r"^class_embed\.", "class_head."),
    (r"^bbox_embed\.", "box_head."),
]

# The library's names become the official ones, but for the backbone.
HUGGINGFACE: list[Rule] = [
    (r"^(?:model\.)+(?=backbone|transformer|decoder|enc_out|query_feat|reference_point|class_embed|bbox_embed)", ""),
    (r"^backbone\.projector\.scale_layers\.", "backbone.0.projector.stages."),
    (r"^backbone\.projector\.", "backbone.0.projector.stages.0."),  # RF-DETR's has one level
    (r"\.stages\.(\d+)\.sampling_layers\.(\d+)\.layers\.", r".stages_sampling.\1.\2."),
    (r"\.stages\.(\d+)\.layer_norm\.", r".stages.\1.1."),
    (r"\.stages\.(\d+)\.projector_layer\.bottlenecks\.(\d+)\.conv([12])\.", r".stages.\1.0.m.\2.cv\3."),
    (r"\.stages\.(\d+)\.projector_layer\.conv([12])\.", r".stages.\1.0.cv\2."),
    (r"^(backbone\.0\.projector\..*)\.norm\.", r"\1.bn."),
    (r"^reference_point_embed\.", "refpoint_embed."),
    (r"^decoder\.layers\.(.*)\.self_attn\.o_proj\.", r"decoder.layers.\1.self_attn.out_proj."),
    (r"^decoder\.layers\.(.*)\.self_attn\.([qkv])_proj\.(\w+)$", r"decoder.layers.\1.self_attn.in_proj_\3.\2"),
    (r"^(decoder\..*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder\..*)\.cross_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder\..*)\.layer_norm\.", r"\1.norm3."),
    (r"^(decoder\..*)\.mlp\.fc([12])\.", r"\1.linear\2."),
    (r"^decoder\.layernorm\.", "decoder.norm."),
    (r"^(?=decoder\.|enc_out)", "transformer."),
]

# Its plain transformer, in the names of the official one, which are timm's.
HUGGINGFACE_VIT: list[Rule] = [
    (r"^backbone\.backbone\.embeddings\.position_embeddings$", "backbone.0.encoder.pos_embed"),
    (r"^backbone\.backbone\.embeddings\.projection\.", "backbone.0.encoder.patch_embed.proj."),
    (r"^backbone\.backbone\.encoder\.layer\.", "backbone.0.encoder.blocks."),
    (r"\.attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\.weight$", r".attn.qkv.weight.\1"),
    (r"\.attention\.(?:attention\.)?([qv])(?:uery|alue|_proj)\.bias$", r".attn.\1_bias"),
    (r"\.attention\.(?:o_proj|output)\.", ".attn.proj."),
    (r"\.intermediate\.fc([12])\.", r".mlp.fc\1."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
]


# As `HuggingFace.fixed` and `HuggingFace.fixed_backbone`.
FIXED: dict[str, Any] = {
    "hidden_expansion": 0.5,
    "c2f_num_blocks": 3,
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "attention_bias": True,
}
FIXED_VIT: dict[str, Any] = {"layer_norm_eps": 1e-6, "qkv_bias": True, "mlp_ratio": 4, "hidden_act": "gelu"}


COMBINED = "queries.basic.content"  # of modulated queries: the contents of all groups


def split_groups(state: State) -> State:
    """Tables of all groups of queries, one after the other, as those of inference and the unrelated ones beside them.

    Query j of hull i is query i of group j + 1, so that ``queries.basic=groups`` makes the same groups of them.
    """
    state = dict(state)
    groups = count_modules(state, "transformer.enc_output.")
    for name, part in (("query_feat.weight", "content"), ("refpoint_embed.weight", "change")):
        if name in state:
            first, *others = state.pop(name).chunk(groups)  # of [m, f]
            state[f"queries.table.{part}"] = first.clone()
            if others:
                state[f"queries.unrelated.{part}"] = torch.stack(others, 1).flatten(0, 1)
    return state


@dataclass(frozen=True)
class PublishedVit(Published):
    """Published weights of models on a plain transformer.

    Which blocks see windows, and after which there are taps, leaves no trace in parameters: official files must have
    the sizes of a preset.
    """

    backbones: Mapping[int, str] = field(default_factory=dict)  # width -> name

    def describe(
        self, state: State, heads: int = 8, count: int | None = None, names: list[str] | None = None
    ) -> Config:
        try:
            options = self.sizes(state)
            outputs = len(state["class_head.bias"])
        except KeyError as error:
            raise DqdetError(f"looks like {self.family}, but has no {error.args[0]}") from error
        presets = [resolve(name) for name in preset_names() if name.startswith(f"{self.family}_")]
        presets = [preset for preset in presets if preset.model.loss == self.loss(state)]
        fitting = [preset for preset in presets if all(value_of(preset, name) == options[name] for name in options)]
        if names is None and not fitting:
            sizes = ", ".join(f"{name.removeprefix('model.')}={value}" for name, value in options.items())
            raise DqdetError(f"has the sizes of no published {self.family} ({sizes})")
        labels: dict[str, Any] = {"classes": names or [f"class {label}" for label in range(outputs)]}
        learned = self.classes.get(outputs)
        if learned is not None and names in (None, learned.options["classes"]):
            labels = learned.options
        groups = count_modules(state, "proposals.")  # each has a head of its own
        kind: dict[str, Any] = {"queries.kind": "static", "queries.basic": "groups"}
        if COMBINED in state:
            kind |= {"queries.kind": "modulated", "queries.ratio": groups}
        elif "queries.unrelated.content" in state:
            kind |= {"queries.kind": "grouped", "queries.ratio": groups - 1}
        # The squares of a preset need not hold whole windows of other sizes; images that are padded always do.
        squares = {} if fitting else {"data.square": False}
        return override((fitting or presets)[0], {**options, **kind, **labels, **squares})

    def loss(self, state: State) -> str:
        """The kind of loss that a model with these parameters learns from."""
        return "instances" if "mask_head.bias" in state else "boxes"

    def sizes(self, state: State) -> dict[str, Any]:
        """The options that parameters (ours, after conversion) tell."""
        width, _, patch, _ = state["backbone.body.patch_embed.proj.weight"].shape
        hidden = len(state["norm.weight"])
        levels = range(count_modules(state, "projector."))
        backbone = "model.backbone"
        return {
            f"{backbone}.name": self.backbones[width],
            f"{backbone}.patch": patch,
            f"{backbone}.positions": isqrt(state["backbone.body.pos_embed"].shape[1] - 1),
            "model.hidden": hidden,
            "model.heads": max(1, hidden // 32),  # as published
            "model.cross_heads": max(1, hidden // 16),
            "model.decoder_layers": count_modules(state, "decoder."),
            "model.feedforward": len(state["decoder.0.feedforward.linear1.bias"]),
            "model.scales": [scale_of(state, f"projector.{level}.resample.0.") for level in levels],
            "queries.count": count_queries(state),
        }


def count_queries(state: State) -> int:
    """m: of one group."""
    if COMBINED in state:
        return len(state[COMBINED]) // count_modules(state, "proposals.")
    return len(state["queries.table.content"])


def scale_of(state: State, prefix: str) -> float:
    """Of a level of the pyramid, by its first resampling: none, a transposed convolution, or one with a stride."""
    if f"{prefix}0.weight" in state or f"{prefix}1.weight" in state:
        return 2.0
    return 0.5 if f"{prefix}0.0.weight" in state else 1.0


def value_of(config: Config, option: str) -> Any:
    """An option by its dotted name."""
    value: Any = config
    for part in option.split("."):
        value = getattr(value, part)
    return value


def vit_options(theirs: Theirs) -> dict[str, Any]:
    """Options that parameters do not tell, from the configuration of ``transformers``."""
    backbone = theirs["backbone_config"]
    windowed = backbone.get("window_block_indices", backbone.get("window_block_indexes"))
    taps = backbone.get("out_indices") or [int(name.removeprefix("stage")) for name in backbone["out_features"]]
    return {
        "model.backbone.taps": taps,
        "model.backbone.global_blocks": [block for block in range(taps[-1]) if block not in windowed],
        "model.heads": theirs.get("decoder_self_attention_heads", 8),
        "model.cross_heads": theirs.get("decoder_cross_attention_heads", 16),
        "model.points": theirs.get("decoder_n_points", 4),
    }


LW_DETR = PublishedVit(
    config=LwDetrConfig,
    sign="backbone.0.encoder.pos_embed",
    rules=RULES,
    prepare=split_groups,
    backbones={192: "cae_tiny", 384: "cae_small", 768: "cae_base"},
    huggingface=HuggingFace(
        "lw_detr",
        rules=[*HUGGINGFACE, *HUGGINGFACE_VIT],
        fixed=lambda theirs: {**FIXED, "batch_norm_eps": 1e-5},
        fixed_backbone={**FIXED_VIT, "use_absolute_position_embeddings": True, "num_attention_heads": 12},
        options=lambda theirs: {
            **vit_options(theirs),
            "model.backbone.windows": isqrt(theirs["backbone_config"].get("num_windows", 16)),
        },
    ),
)
