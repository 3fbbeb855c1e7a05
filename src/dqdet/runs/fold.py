"""From a trained model whose queries are made for each image to a static one, which needs no code of that."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.folder import without_pretraining
from dqdet.runs.sources import write_derived
from dqdet.weights.renaming import State


def fold(model: Detector, config: Config, mean: Mapping[str, Tensor] | None = None) -> tuple[Detector, Config]:
    """A static model in the place of one that makes its queries, and its configuration.

    Args:
        model: with ``queries.kind=grouped`` or ``queries.context=none``, where ``mean`` is None: its queries are the
            same for every image, so that they become the table, and the outputs stay.
        config: of the model.
        mean: the queries ``[m, f]`` of any other model by their parts, averaged over images, which become the table.

    Raises:
        DqdetError: the queries depend on the image, or are static already.
    """
    kind = config.queries.kind
    if kind == "static":
        raise DqdetError("its queries are static already; there is nothing to fold")
    constant = kind == "grouped" or (config.queries.context == "none" and kind in ("modulated", "shared"))
    if mean is None and not constant:
        raise DqdetError(
            f"queries.kind={kind} with queries.context={config.queries.context} makes other queries for every image; "
            "--images FOLDER takes their mean over images"
        )
    mean = _queries(model) if mean is None else mean
    config = override(config, {"queries.kind": "static", "queries.context": "backbone"})
    folded = create_model(without_pretraining(config)).eval()
    tables: State = {f"queries.table.{name}": part for name, part in mean.items()}
    # What the groups of training have of their own (proposal heads of LW-DETR) ends with them.
    kept = {name for name in folded.state_dict() if not name.startswith("queries.")}
    folded.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in kept} | tables)
    return folded, config


def _queries(model: Detector) -> dict[str, Tensor]:
    """Those of a model that makes the same ones for every image, ``[m, f]``."""
    with torch.no_grad():
        queries = model.eval().get_submodule("queries")(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool))
    return {name: part[0] for name, part in queries.parts.items()}


def fold_folder(source: str | Path, out: Path, mean: Mapping[str, Tensor] | None = None) -> None:
    """Write the folded model of any source as a run folder; with its metrics, where the outputs stay the same.

    Raises:
        DqdetError: as `write_derived` and `fold`, or ``out`` has a run already.
    """
    write_derived(source, out, partial(fold, mean=mean), same=mean is None)
