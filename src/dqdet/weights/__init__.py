"""Published weights of other implementations, and how they become ours. All about a family stands in one file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dqdet.config import Config, override
from dqdet.errors import DqdetError, value_text
from dqdet.formats.records import is_id
from dqdet.weights.conditional_detr import CONDITIONAL_DETR
from dqdet.weights.dab_deformable_detr import DAB_DEFORMABLE_DETR
from dqdet.weights.dab_detr import DAB_DETR
from dqdet.weights.deformable_detr import DEFORMABLE_DETR
from dqdet.weights.detr import DETR
from dqdet.weights.dino import DINO
from dqdet.weights.huggingface import check_sizes, class_names, is_dilated, modulated_options, read_config
from dqdet.weights.lw_detr import LW_DETR
from dqdet.weights.mask2former import MASK2FORMER
from dqdet.weights.preparation import read_preparation
from dqdet.weights.published import Published
from dqdet.weights.reading import read_checkpoint
from dqdet.weights.renaming import State
from dqdet.weights.rf_detr import RF_DETR
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
    "dino": DINO,
    "seqformer": SEQFORMER,
    "mask2former": MASK2FORMER,
    "lw_detr": LW_DETR,
    "rf_detr": RF_DETR,
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
    counts = arguments.get("nheads", 8), arguments.get("num_queries", 1)
    if not all(is_id(count) and count >= 1 for count in counts):
        heads, queries = map(value_text, counts)
        raise DqdetError(f"the arguments beside its parameters have nheads={heads} and num_queries={queries}")
    with fitting():
        state, published = translate(official)
        config = published.describe(state, arguments.get("nheads", 8), arguments.get("num_queries"))
    return state, override(config, dilated(arguments.get("dilation")))


def dilated(last_stage: object) -> dict[str, bool]:
    """The option of a backbone whose last stage is dilated (DC5), which parameters do not tell."""
    return {"model.backbone.dilation": True} if last_stage else {}


@contextmanager
def fitting() -> Iterator[None]:
    """A `DqdetError` for what converting parameters raises that are missing, or have another shape than others."""
    try:
        yield
    except KeyError as error:
        raise DqdetError(f"has no {error.args[0]}") from error
    except (IndexError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise DqdetError(f"has parameters that do not fit together ({error})") from error


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
    parameters = read_checkpoint(weights)[0]
    with fitting():
        state = published.from_huggingface(parameters, theirs)
        config = published.describe(state, theirs.get(there.heads, 8), names=class_names(theirs))
    told = {"model.dropout": theirs.get("dropout", 0.1), **dilated(is_dilated(theirs)), **there.options(theirs)}
    config = override(config, told)
    check_sizes(theirs, config)
    return state, override(config, modulated_options(theirs) | read_preparation(folder, there))
