"""The queries that a model makes, averaged over images."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from dqdet.errors import DqdetError
from dqdet.formats.image_files import image_files
from dqdet.predict.predictor import Predictor
from dqdet.types import Queries


def mean_queries(predictor: Predictor, images: Path) -> dict[str, Tensor]:
    """The mean of the queries ``[m, f]``, by their parts.

    Queries are linear in their coefficients, so those of modulated models are the queries of their mean coefficients.

    Args:
        predictor: of a run, whose queries are made from the image.
        images: folder.

    Raises:
        DqdetError: the queries are the same for every image, the model is one of videos or an exported file, or there
            are no images.
    """
    kind, task = predictor.config.queries.kind, predictor.config.data.task
    if kind in ("static", "grouped"):
        raise DqdetError(f"queries.kind={kind} has the same queries for every image; leave out --images")
    if kind not in ("modulated", "shared", "generated") or task == "video":
        raise DqdetError(
            f"only queries that are made from an image can be averaged; this model has queries.kind={kind} and "
            f"data.task={task}"
        )
    try:
        source = predictor.model.get_submodule("queries")
    except AttributeError as error:
        raise DqdetError("an exported model has no queries to average; give the run that it was made from") from error
    files = image_files(images)
    sums: dict[str, Tensor] = {}

    def add(module: nn.Module, inputs: object, queries: Queries) -> None:
        for name, part in queries.parts.items():  # [B, m, f]
            sums[name] = sums.get(name, part.new_zeros(())).double() + part.double().sum(0)

    handle = source.register_forward_hook(add)
    try:
        for _ in predictor.outcomes(files):
            pass
    finally:
        handle.remove()
    return {name: (part / len(files)).float().cpu() for name, part in sums.items()}
