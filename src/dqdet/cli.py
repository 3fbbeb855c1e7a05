"""The command line. It says what Python says, in the same words."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import dqdet
from dqdet.config import describe, explained, parse_overrides, preset_names, resolve
from dqdet.errors import DISK_FULL, DqdetError, Interrupted
from dqdet.metrics.scores import is_score, shown

HEADLINE = ("AP", "AP50", "PQ", "AP_things", "mIoU")  # what a training ends with, where it is measured

OPTION = re.compile(r"[a-z_]+(\.[a-z_]+)*=")  # what an argument begins with that is an option, and no file

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
data_app = typer.Typer(no_args_is_help=True, help="What can be done with data alone: `dqdet data --help`.")
app.add_typer(data_app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dqdet {version('dqdet')}")
        raise typer.Exit


def _presets(typed: str) -> list[str]:
    return [name for name in preset_names() if name.startswith(typed)]


PRESET = {"metavar": "[PRESET]", "help": "`dqdet presets` lists them; or a config.yaml.", "autocompletion": _presets}

Options = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[OPTION=VALUE]...",
        help="For example train.epochs=12 queries.kind=static; `dqdet presets NAME` prints all options.",
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or its last.ckpt for the newest weights.")]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder of a run, official checkpoint, folder of a Hugging Face model, or its name on the hub.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Overwrite results of another source.")]
NewRun = Annotated[Path, typer.Option(help="Folder to write, as a run.")]


@app.callback()
def dqdet_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Detection transformers with dynamic query combinations."""


@app.command()
def train(
    preset: Annotated[str | None, typer.Argument(**PRESET)] = None,
    options: Options = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; by default runs/PRESET, numbered when that has a run already."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Folder of an interrupted run to go on with, instead of PRESET and --out.")
    ] = None,
) -> None:
    """Train a model, on several processes when started by torchrun."""
    options = options or []
    if preset is not None and OPTION.match(preset):  # --resume needs no preset
        options, preset = [preset, *options], None
    run = dqdet.train(preset, out=out, resume=resume, **_overrides(dqdet.train, options))
    from dqdet.runs.folder import load_metrics

    best = load_metrics(run)
    headline = ", ".join(f"{name} {shown(best[name])}" for name in HEADLINE if name in best)
    which = "best" if any(is_score(best.get(name)) for name in HEADLINE) else "last"
    _show(f"{run}: {headline} ({which} validation, step {best.get('step', 'unknown')})")


@app.command("eval")
def evaluate(
    run: Run,
    options: Options = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics, a table of classes and the predictions, by default RUN/eval."),
    ] = None,
) -> None:
    """Measure a trained model on the validation split with the official metrics of its task."""
    metrics = dqdet.evaluate(run, out, **_overrides(dqdet.evaluate, options))
    summary = Table("metric", "value", title=str(run))
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
    _show(summary, classes)


@app.command()
def predict(
    model: Source,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... [OPTION=VALUE]...",
            help="Images, folders, videos, patterns or http addresses; and options, such as inference.limit=20.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for pictures or an annotated video, and official results files.")],
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            show_default="0.5, of panoptic maps inference.object_threshold",
            help="Lowest score of objects that are drawn, and of the segments of panoptic maps.",
        ),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(metavar="ANNOTATIONS.json", help="COCO file with the ids of the images, for results.")
    ] = None,
    force: Force = False,
) -> None:
    """Find the objects in images or videos, draw them, and write results for the official evaluations.

    A folder is one video for a model of videos, and a collection of images, with those in its subfolders, for all
    others. Pictures keep their names relative to the folder that all sources are in. A file of several frames or pages
    (GIF, APNG, WebP, TIFF) is a video, too.
    """
    from dqdet.predict import sources as given

    options = [source for source in sources if OPTION.match(source) and not Path(source).exists()]
    overrides = _overrides(dqdet.load, options)
    if threshold is not None and "inference.object_threshold" in overrides:
        raise DqdetError("--threshold and inference.object_threshold are the same; leave out one of them")
    paths = [source for source in sources if source not in options]
    if not paths:
        raise DqdetError("nothing to look at; give images, folders, videos or addresses")
    predictor = dqdet.load(model, **overrides)
    failures = given.predict(predictor, paths, out, threshold, ids, force, say=lambda line: print(line, flush=True))
    for failure in failures:
        _complain(failure)
    if len(failures) > 1:
        names = [str(failure).partition(": ")[0] for failure in failures]
        _complain(DqdetError(f"{len(names)} files failed, the others are done: {', '.join(names)}"))
    if failures:
        raise typer.Exit(1)


@app.command()
def submit(
    run: Run,
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="To write, with results.json in it.")],
    options: Options = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write the tracks in the videos of the validation split for the evaluation server of YouTube-VIS.

    The split needs no annotations: `dqdet submit RUN FILE.zip data.val=valid`.
    """
    from dqdet.predict import submission

    submission.submit(run, file, options or [], force)


@app.command()
def convert(source: Source, out: NewRun) -> None:
    """Write the model of an official checkpoint or of the Hugging Face library as a run."""
    _show_model(dqdet.convert(source, out))


@app.command()
def upgrade(
    source: Source,
    out: NewRun,
    ratio: Annotated[
        int | None,
        typer.Option(
            min=1, help="Basic queries behind each modulated one: 4, or all groups of queries that there are."
        ),
    ] = None,
    perturbation: Annotated[
        float, typer.Option(min=0, help="Noise on the basic queries, relative to their spread; 0: same outputs.")
    ] = 0.0,
    groups: Annotated[
        Literal["first", "mean"],
        typer.Option(
            help="Where several groups of queries start: at the first, with the same outputs, or at their mean."
        ),
    ] = "first",
) -> None:
    """Turn a trained model into a modulated one with the same outputs, ready for training with init=OUT."""
    _show_model(dqdet.upgrade(source, out, ratio, perturbation, groups))


@app.command()
def fold(source: Source, out: NewRun) -> None:
    """Turn a model whose combinations do not depend on the image (queries.context=none) into a static one."""
    _show_model(dqdet.fold(source, out))


@app.command()
def study(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Without one, all are listed.")] = None,
    options: Options = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of trainings and results, by default runs/NAME; a study goes on there.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each kind; of `cost` the repeats.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Trainings at a time; by default one for each CPU core, or for each GPU.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Train this one as it is, instead of the study's small models on scenes.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Trained model of `combinations` and `coefficients`, instead of training one.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Leave out other models or kinds of queries; repeatable.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Train nothing, report what the folder has.")] = False,
    page: Annotated[Path | None, typer.Option(metavar="FILE.md", help="Write a page with table and figure.")] = None,
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
        **_overrides(studies.study, options),
    )
    print(found.text(), end="")


@app.command()
def presets(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print this one with all its options.", autocompletion=_presets),
    ] = None,
    options: Options = None,
) -> None:
    """List the presets, or print one as YAML, fully resolved and explained; as a file it can be given as a preset."""
    if name is not None:
        print(explained(resolve(name, options or [])), end="")
        return
    names = preset_names()
    for preset in names:
        print(f"{preset:{max(map(len, names))}}  {describe(preset)}")


@data_app.command()
def benchmark(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the data set, as data.root.")],
    options: Options = None,
    preset: Annotated[str, typer.Option(help="Whose augmentation is measured.")] = "deformable_detr_r50",
    images: Annotated[int, typer.Option(min=1, help="How many are timed.")] = 64,
    rate: Annotated[float, typer.Option(min=0, help="Images a second that the GPU takes.")] = 100.0,
) -> None:
    """Say how fast one process reads and augments training images, and how many keep a GPU busy."""
    from dqdet.data import open_dataset
    from dqdet.data.speed import measure

    config = resolve(preset, [f"data.root={data}", *(options or [])])
    dataset = open_dataset(config.data, "train", config.train.seed)
    speed = measure(dataset, images, min(config.train.batch, len(dataset)))
    table = Table("part", "ms an image", "images/s")
    for name, seconds in speed.parts.items():
        table.add_row(name, f"{seconds * 1000:.2f}", f"{1 / seconds:.0f}")
    table.add_row("together", f"{1000 / speed.rate:.2f}", f"{speed.rate:.0f}")
    Console().print(table)
    print(f"a GPU that takes {rate:g} images/s needs data.workers={speed.workers(rate)}, each on a core of its own")


def _overrides(of: Callable[..., Any], options: list[str] | None) -> dict[str, Any]:
    """Options for a function that takes them beside arguments of its own, which are no options."""
    overrides = parse_overrides(options or [])
    for path in overrides.keys() & inspect.signature(of).parameters.keys():
        raise DqdetError(f"unknown option '{path}'; `dqdet presets NAME` prints all options; others begin with --")
    return overrides


def _show_model(run: Path) -> None:
    from dqdet.runs.folder import load_config

    config = load_config(run)
    _show(
        f"{run}: {config.model.family} with {config.model.backbone.name}, {config.queries.count} "
        f"{config.queries.kind} queries, {len(config.classes)} classes"
    )


def _show(*results: Table | str) -> None:
    if _is_first_process():
        console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # names are no markup
        for result in results:
            console.print(result)


def _is_first_process() -> bool:
    return int(os.environ.get("RANK", 0)) == 0  # of those that torchrun started


def _complain(error: DqdetError) -> None:
    print(f"error: {error}", file=sys.stderr)


def _run(arguments: list[str]) -> None:
    try:
        try:
            app(arguments, prog_name="dqdet")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        if error.filename is None:  # the standard output, which Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        place = error.filename or "the output"
        raise DqdetError(f"{place}: cannot be written ({error.strerror}); make space") from error


def main() -> None:
    """Run a command. A `DqdetError` is one line and exit status 1; an interruption is status 130."""
    arguments = sys.argv[1:]
    if not _is_first_process():
        logging.disable(logging.WARNING)  # the first one says it
    # As Ctrl-C: what is under way is put in order. The loops of a training have their own way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries; the error at their end is reported
    try:
        _run([argument for argument in arguments if argument != "--debug"])  # wherever it stands
    except Interrupted as interruption:
        if _is_first_process():
            print(interruption, file=sys.stderr)
        sys.exit(130)
    except DqdetError as error:
        if "--debug" in arguments:
            raise
        _complain(error)
        sys.exit(1)
