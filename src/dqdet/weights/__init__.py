"""Published weights of other implementations, and how they become ours. All about a family stands in one file."""

from __future__ import annotations

from pathlib import Path

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.weights.conditional_detr import CONDITIONAL_DETR
from dqdet.weights.dab_deformable_detr import DAB_DEFORMABLE_DETR
from dqdet.weights.dab_detr import DAB_DETR
from dqdet.weights.deformable_detr import DEFORMABLE_DETR
from dqdet.weights.detr import DETR
from dqdet.weights.huggingface import class_names, modulated_options, read_config
from dqdet.weights.mask2former import MASK2FORMER
from dqdet.weights.published import Published
from dqdet.weights.reading import read_checkpoint
from dqdet.weights.renaming import State
from dqdet.weights.seqformer import SEQFORMER
from dqdet.weights.smca_detr import SMCA_DETR

# By family. The sign of each is a parameter that none before it has, so they are tried from the last to the first.
PUBLISHED: dict[str, Published] = {
    "detr": DETR,
    "conditional_detr": CONDITIONAL_DETR,
    "dab_detr": DAB_DETR,
    "smca_detr": SMCA_DETR,
    "deformable_detr": DEFORMABLE_DETR,
    "dab_deformable_detr": DAB_DEFORMABLE_DETR,
    "seqformer": SEQFORMER,
    "mask2former": MASK2FORMER,
}


def translate(official: State) -> tuple[State, Published]:
    """Our parameters from those of an official checkpoint, and the family that their names tell.

    Raises:
        DqdetError: they are of no family here, or two different ones become one of ours.
    """
    for published in reversed(PUBLISHED.values()):
        if published.sign in official:
            return published.from_official(official), published
    some = ", ".join(map(str, list(official)[:3]))
    raise DqdetError(f"not an official checkpoint of {', '.join(reversed(PUBLISHED))}; has {some}, ...")


def read_official(file: Path) -> tuple[State, Config]:
    """Our parameters from an official checkpoint, and the configuration of their model.

    Raises:
        DqdetError: it cannot be read without executing code, or is of no model that dqdet has.
    """
    official, arguments = read_checkpoint(file)
    if arguments.get("dilation"):
        raise DqdetError("trained with --dilation (DC5), which is not supported")
    state, published = translate(official)
    return state, published.describe(state, arguments.get("nheads", 8), arguments.get("num_queries"))


def read_huggingface(folder: Path) -> tuple[State, Config]:
    """The same from a folder of ``transformers``, with ``config.json`` and ``model.safetensors``.

    Raises:
        DqdetError: a file is missing or damaged, or the model has a family or an option that dqdet does not have.
    """
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise DqdetError("has no model.safetensors; Hugging Face models are read from that only")
    theirs = read_config(folder)
    known = {there.model_type: (there, family) for family in PUBLISHED.values() if (there := family.huggingface)}
    if theirs.get("model_type") not in known:
        raise DqdetError(f"model_type is {theirs.get('model_type')!r}; supported are {', '.join(known)}")
    there, published = known[theirs["model_type"]]
    there.check(theirs)
    state = published.from_huggingface(read_checkpoint(weights)[0], theirs)
    config = published.describe(state, theirs.get(there.heads, 8), names=class_names(theirs))
    options = {"model.dropout": theirs.get("dropout", 0.1), **there.options(theirs), **modulated_options(theirs)}
    return state, override(config, options)
