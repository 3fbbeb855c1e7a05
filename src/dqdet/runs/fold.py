"""From a trained model whose combinations do not depend on the image to a static one that computes the same."""

from __future__ import annotations

from pathlib import Path

import torch

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.folder import without_pretraining
from dqdet.runs.sources import write_derived
from dqdet.weights.renaming import State


def fold(model: Detector, config: Config) -> tuple[Detector, Config]:
    """A static model with the outputs of one with ``queries.context=none``, and its configuration.

    The queries of such a model are the same for every image, so they become its table.

    Raises:
        DqdetError: its queries depend on the image, or are static already.
    """
    if config.queries.context != "none" or config.queries.kind not in ("modulated", "shared"):
        raise DqdetError(
            f"only combinations with queries.context=none are the same for every image; this model has "
            f"queries.kind={config.queries.kind} and queries.context={config.queries.context}"
        )
    config = override(config, {"queries.kind": "static", "queries.context": "backbone"})
    folded = create_model(without_pretraining(config)).eval()
    source = model.eval().get_submodule("queries")
    with torch.no_grad():
        queries = source(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.bool))
    tables: State = {f"queries.table.{name}": part[0] for name, part in queries.parts.items()}  # [m, f]
    rest = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("queries.")}
    folded.load_state_dict(rest | tables)
    return folded, config


def fold_folder(source: str | Path, out: Path) -> None:
    """Write the folded model of any source as a run folder, with its metrics, which stay the same.

    Raises:
        DqdetError: as `write_derived` and `fold`, or ``out`` has a run already.
    """
    write_derived(source, out, fold)
