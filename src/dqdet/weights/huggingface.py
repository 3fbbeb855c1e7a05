"""Models of the Hugging Face ``transformers`` library, in the names of its older and newer versions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dqdet.errors import DqdetError
from dqdet.weights.classes import UNUSED
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

    def check(self, theirs: Theirs) -> None:
        """Refuse a model with a value that dqdet does not have."""
        fixed = {"position_embedding_type": "sine", "dilation": False, **self.fixed(theirs)}
        fixed["decoder_attention_heads"] = theirs.get("encoder_attention_heads", 8)
        for options, values in (theirs, fixed), (theirs.get("backbone_config") or {}, FIXED_BACKBONE):
            for option, value in values.items():
                if options.get(option, value) != value:
                    raise DqdetError(f"{THEIR_CONFIG} has {option}={options[option]}; supported is {value} only")


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a model; a `DqdetError` if it cannot be read."""
    try:
        theirs = json.loads((folder / THEIR_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DqdetError(f"{THEIR_CONFIG} cannot be read ({error})") from error
    return theirs if isinstance(theirs, dict) else {}


def class_names(theirs: Theirs) -> list[str]:
    """The names of the classes, in label order."""
    names = theirs.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # their default, which they leave out
    return [names.get(str(label), UNUSED) for label in range(len(names))]


def modulated_options(theirs: Theirs) -> dict[str, Any]:
    """What ``dqdet.modulate`` keeps in a configuration of ``transformers``, as overrides of ours."""
    options = dict(theirs.get("modulated") or {})
    beta = {"loss.beta": options.pop("beta")} if "beta" in options else {}
    return {f"queries.{option}": value for option, value in options.items()} | beta
