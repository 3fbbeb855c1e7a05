"""Commands that make one model from another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

import dqdet
from dqdet.cli.arguments import NewRun, Source, sides_of
from dqdet.cli.output import show
from dqdet.errors import DqdetError

app = typer.Typer()


@app.command()
def convert(source: Source, out: NewRun) -> None:
    """Convert an official checkpoint or a Hugging Face model to a run."""
    show_model(dqdet.convert(source, out))


@app.command()
def upgrade(
    source: Source,
    out: NewRun,
    ratio: Annotated[
        int | None,
        typer.Option(
            min=1, help="Basic queries per modulated query; by default 4, or all groups of queries that there are."
        ),
    ] = None,
    perturbation: Annotated[
        float, typer.Option(min=0, help="Noise on the basic queries, relative to their spread; 0: same outputs.")
    ] = 0.0,
    groups: Annotated[
        Literal["first", "mean"],
        typer.Option(
            help="Start with the first of several groups of queries, with the same outputs, or with their mean."
        ),
    ] = "first",
) -> None:
    """Turn a trained model into a modulated one with the same outputs, ready for training with init=OUT."""
    show_model(dqdet.upgrade(source, out, ratio, perturbation, groups))


@app.command()
def fold(
    source: Source,
    out: NewRun,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Images over which to average queries that depend on the image."),
    ] = None,
) -> None:
    """Turn a model whose combinations do not depend on the image (queries.context=none) into a static one.

    With --images, any other model can be folded as well; its outputs change a little. `dqdet eval OUT` measures by how
    much.
    """
    show_model(dqdet.fold(source, out, images))


@app.command()
def export(
    source: Source,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write.")],
    format: Annotated[
        str | None, typer.Option(help="onnx, openvino or torch; by default chosen by the suffix of FILE.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="640 | 480x640", help="Height and width of all images; by default any size.")
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Accept images of any size (the default).")] = False,
    half: Annotated[bool, typer.Option("--half", help="Store the weights in half precision.")] = False,
    masks: Annotated[
        Literal["quarter", "full"], typer.Option(help="Resolution of instance masks, relative to the images.")
    ] = "quarter",
) -> None:
    """Write a trained model as one file for other runtimes; `predict` and `eval` take it as a model."""
    if dynamic and size is not None:
        raise DqdetError(f"--dynamic means any size, and --size {size} this one; leave out one of them")
    file = dqdet.export(source, out, format, None if size is None else sides_of(size), half, masks)
    show(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


def show_model(run: Path) -> None:
    from dqdet.runs.folder import load_config

    config = load_config(run)
    show(
        f"{run}: {config.model.family} with {config.model.backbone.name}, {config.queries.count} "
        f"{config.queries.kind} queries, {len(config.classes)} classes"
    )
