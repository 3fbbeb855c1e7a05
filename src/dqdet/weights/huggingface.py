"""Models of the Hugging Face ``transformers`` library, in the names of its older and newer versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from dqdet.config import UNUSED, Config
from dqdet.config.section import Layers, Rate, Text, Width
from dqdet.errors import DqdetError, listed, value_text
from dqdet.weights.renaming import Rule, State

THEIR_CONFIG = "config.json"
Theirs = Mapping[str, Any]  # its content

# As `HuggingFace.fixed`, of a backbone.
FIXED_BACKBONE: dict[str, Any] = {
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "qkv_bias": True,
    "use_absolute_embeddings": False,
    "layer_norm_eps": 1e-5,
}


@dataclass(frozen=True)
class HuggingFace:
    """A family in ``transformers``."""

    model_type: str  # its name there
    # From the library's names to the official ones, or to ours where the official rules keep these.
    rules: Sequence[Rule]
    complete: Callable[[State, Theirs], State] = lambda state, theirs: state  # adds what files leave out
    # Options that change what a model computes, and the only value that dqdet has.
    fixed: Callable[[Theirs], dict[str, Any]] = lambda theirs: {}
    options: Callable[[Theirs], dict[str, Any]] = lambda theirs: {}  # overrides that parameters do not tell
    heads: str = "encoder_attention_heads"  # the option that is their number
    processor: str = "DetrImageProcessor"  # of its images, where a folder does not name another one
    divisor: int = 1  # the sides of images that our family is given are multiples of it
    fixed_backbone: Mapping[str, Any] = field(default_factory=lambda: FIXED_BACKBONE)  # as `fixed`

    def check(self, theirs: Theirs) -> None:
        """Refuse a model with a value that dqdet does not have."""
        fixed = {"position_embedding_type": "sine", **self.fixed(theirs)}
        fixed["decoder_attention_heads"] = theirs.get("encoder_attention_heads", 8)
        for options, values in (theirs, fixed), (theirs.get("backbone_config") or {}, self.fixed_backbone):
            for option, value in values.items():
                if options.get(option, value) != value:
                    found = value_text(options[option])
                    raise DqdetError(f"{THEIR_CONFIG} has {option}={found}; supported is {value} only")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model; a `DqdetError` if it cannot be read, or an option has a wrong type."""
    theirs = read_json(folder, THEIR_CONFIG)
    try:
        TheirConfig.model_validate(theirs)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}={value_text(fault['input'])}" for fault in error.errors()]
        raise DqdetError(f"{THEIR_CONFIG} has values of a wrong type: {listed(faults, '; ')}") from error
    return theirs


def read_json(folder: Path, name: str) -> Any:
    """What is in a file; a `DqdetError` if it cannot be read."""
    try:
        return json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DqdetError(f"{name} cannot be read ({error})") from error


class TheirConfig(BaseModel):
    """The options that are read, with the type and the bounds that each of them has."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model_type: str | None = None
    id2label: dict[str, Text] | None = None
    backbone_config: dict[str, Any] | None = None
    encoder_attention_heads: Layers = 8
    num_attention_heads: Layers = 8
    encoder_layers: Layers = 6
    decoder_layers: Layers = 6
    hidden_dim: Width = 256
    dropout: Rate = 0.1
    dilation: bool = False
    with_box_refine: bool = False
    two_stage: bool = False
    two_stage_num_proposals: Width = 300


# What parameters tell as well: their options, and ours.
SIZES = {
    "d_model": "hidden",
    "hidden_dim": "hidden",
    "encoder_layers": "encoder_layers",
    "encoder_ffn_dim": "feedforward",
    "decoder_ffn_dim": "feedforward",
    "dim_feedforward": "feedforward",
    "encoder_feedforward_dim": "encoder_feedforward",
    "num_feature_levels": "levels",
    "decoder_n_points": "points",
    "num_queries": "count",
}


def check_sizes(theirs: Theirs, config: Config) -> None:
    """Refuse options that contradict the parameters, from which ``config`` is made."""
    model = config.model
    ours = model.model_dump() | (
        {} if theirs.get("two_stage") or theirs.get("modulated") else {"count": config.queries.count}
    )
    added = 1 if model.family == "mask2former" else 0  # predictions before the first layer count as one there
    pairs = [(option, ours[own]) for option, own in SIZES.items() if own in ours]
    for option, told in [*pairs, ("decoder_layers", model.decoder_layers + added)]:
        if theirs.get(option, told) != told:
            raise DqdetError(
                f"{THEIR_CONFIG} has {option}={value_text(theirs[option])}, but the parameters are of {told}; get both "
                "files again"
            )


def is_dilated(theirs: Theirs) -> bool:
    """Whether the backbone's last stage is; newer versions say so in the backbone's own options."""
    return theirs.get("dilation", False) or (theirs.get("backbone_config") or {}).get("output_stride") == 16


def class_names(theirs: Theirs) -> list[str]:
    """The names of the classes, in label order."""
    # Their default, which they leave out:
    names: dict[str, str] = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [names.get(str(label), UNUSED) for label in range(len(names))]


def modulated_options(theirs: Theirs) -> dict[str, Any]:
    """What ``dqdet.modulate`` keeps in a configuration of ``transformers``, as overrides of ours."""
    options = dict(theirs.get("modulated") or {})
    beta = {"loss.beta": options.pop("beta")} if "beta" in options else {}
    return {f"queries.{option}": value for option, value in options.items()} | beta
