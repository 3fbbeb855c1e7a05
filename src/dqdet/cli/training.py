"""Commands that train and measure."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import dqdet
from dqdet.cli.arguments import (
    OPTION,
    PRESET,
    Compile,
    FastPrecision,
    Options,
    Source,
    complete_preset,
    overrides_of,
)
from dqdet.cli.output import HEADLINE, show
from dqdet.config import describe, explained, preset_names, resolve
from dqdet.errors import DqdetError
from dqdet.metrics.scores import is_score, shown
from dqdet.runs.processes import is_first_process

app = typer.Typer()


@app.command()
def train(
    preset: Annotated[str | None, typer.Argument(**PRESET)] = None,
    options: Options = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; by default runs/PRESET, numbered if that already has a run."),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run to resume, instead of PRESET and --out.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Take a few steps, print the memory and time that training needs, keep nothing."
        ),
    ] = False,
) -> None:
    """Train a model; in several processes if started by torchrun or srun."""
    options = options or []
    if preset is not None and OPTION.match(preset):  # --resume needs no preset
        options, preset = [preset, *options], None
    if dry_run:
        if preset is None or out is not None or resume is not None:
            raise DqdetError("--dry-run takes a preset and options alone; it writes nothing")
        from dqdet.training.auto import configured
        from dqdet.training.dry_run import rehearse

        show(*rehearse(*configured(preset, overrides_of(dqdet.train, options))))
        return
    run = dqdet.train(preset, out=out, resume=resume, **overrides_of(dqdet.train, options))
    if not is_first_process():  # other hosts may not see the folder
        return
    from dqdet.runs.folder import load_metrics

    best = load_metrics(run)
    headline = ", ".join(f"{name} {shown(best[name])}" for name in HEADLINE if name in best)
    which = "best" if any(is_score(best.get(name)) for name in HEADLINE) else "last"
    show(f"{run}: {headline} ({which} validation, step {best.get('step', 'unknown')})")


@app.command("eval")
def evaluate(
    source: Source,
    options: Options = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for metrics, a table of classes and the predictions; by default RUN/eval, or NAME-eval beside "
            "a model that is no run."
        ),
    ] = None,
    precision: FastPrecision = "fp32",
    compile: Compile = False,
) -> None:
    """Measure a trained model on the validation split with the official metrics of its task."""
    metrics = dqdet.evaluate(source, out, precision, compile, **overrides_of(dqdet.evaluate, options))
    summary = Table("metric", "value", title=source)
    of_classes: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        metric, _, label = name.partition("/")
        if label:
            of_classes.setdefault(label, {})[metric] = value
        else:
            summary.add_row(name, shown(value))
    columns = dict.fromkeys(metric for values in of_classes.values() for metric in values)
    classes = Table("class", *columns)
    for label, values in of_classes.items():
        classes.add_row(label, *(shown(values.get(column)) for column in columns))
    show(summary, classes)


@app.command()
def study(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Name of the study; without one, all are listed.")
    ] = None,
    options: Options = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of runs and results; by default runs/NAME. A study resumes there.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Training runs of each kind; for `cost`, repeats.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Training runs at a time; by default one per CPU core, or per GPU.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset to train as it is, instead of the study's small models on scenes.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Trained model for `combinations` and `coefficients`, instead of training one.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Keep only this model or kind of queries; repeatable.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing; report the results in the folder.")] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write a page with a table and a figure.")
    ] = None,
) -> None:
    """Answer a question of the paper: one command for each of its tables and figures."""
    from dqdet import studies

    if name is None:
        for known, question in studies.QUESTIONS.items():
            print(f"{known:{max(map(len, studies.QUESTIONS))}}  {question}")
        return
    found = studies.study(
        name,
        Path("runs") / name if out is None else out,
        seeds=seeds,
        jobs=jobs,
        preset=preset,
        model=model,
        only=tuple(only or ()),
        report=report,
        page=page,
        say=lambda line: print(line, file=sys.stderr, flush=True),
        **overrides_of(studies.study, options),
    )
    print(found.text(), end="")


@app.command()
def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Preset to print, with all its options.", autocompletion=complete_preset),
    ] = None,
    options: Options = None,
) -> None:
    """List the presets, or print one as YAML, fully resolved and explained. Saved to a file, it works as a preset."""
    if name is not None:
        print(explained(resolve(name, options or [])), end="")
        return
    names = preset_names()
    for preset in names:
        print(f"{preset:{max(map(len, names))}}  {describe(preset)}")
