"""The command line. It says what Python says, in the same words."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

import dqdet
from dqdet.config import DataConfig, Precision, describe, explained, parse_overrides, preset_names, resolve
from dqdet.errors import DISK_FULL, DqdetError, Interrupted, printable
from dqdet.metrics.scores import is_score, shown

if TYPE_CHECKING:
    from dqdet.predict.predictor import Predictor

HEADLINE = ("AP", "AP50", "PQ", "AP_things", "mIoU")  # what a training ends with, where it is measured

OPTION = re.compile(r"[a-z_]+(\.[a-z_]+)*=")  # what an argument begins with that is an option, and no file

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, help="Look at data sets, convert them, and measure how fast they are read.")
app.add_typer(data, name="data")


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
Run = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a run, its last.ckpt for the newest weights, or a file of `dqdet export`."
    ),
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="Folder of a run, official checkpoint, folder of a Hugging Face model, its name on the hub, or a file "
        "of `dqdet export`.",
    ),
]
FastPrecision = Annotated[
    Precision, typer.Option(help="Of weights and features: bf16 is the fastest where the machine has it.")
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first: a minute, then faster; for many images.")
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Take some steps, print memory and time of the training, keep nothing.")
    ] = False,
) -> None:
    """Train a model, on several processes when started by torchrun."""
    options = options or []
    if preset is not None and OPTION.match(preset):  # --resume needs no preset
        options, preset = [preset, *options], None
    if dry_run:
        if preset is None or out is not None or resume is not None:
            raise DqdetError("--dry-run takes a preset and options alone; it writes nothing")
        from dqdet.training.engine import rehearse

        _show(*rehearse(resolve(preset, _overrides(dqdet.train, options))))
        return
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
    precision: FastPrecision = "fp32",
    compile: Compile = False,
) -> None:
    """Measure a trained model on the validation split with the official metrics of its task."""
    metrics = dqdet.evaluate(run, out, precision, compile, **_overrides(dqdet.evaluate, options))
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
        str | None,
        typer.Option(
            metavar="SCORE|auto",
            show_default="0.5, of panoptic maps inference.object_threshold",
            help="Lowest score of objects that are drawn, and of the segments of panoptic maps; auto: that of "
            "each class which `dqdet eval` found to be best.",
        ),
    ] = None,
    ids: Annotated[
        Path | None, typer.Option(metavar="ANNOTATIONS.json", help="COCO file with the ids of the images, for results.")
    ] = None,
    precision: FastPrecision = "fp32",
    compile: Compile = False,
    force: Force = False,
) -> None:
    """Find the objects in images or videos, draw them, and write results for the official evaluations.

    A folder is one video for a model of videos, and a collection of images, with those in its subfolders, for all
    others. Pictures keep their names relative to the folder that all sources are in. A file of several frames or pages
    (GIF, APNG, WebP, TIFF) is a video, too.
    """
    from dqdet.predict import sources as given

    options = [source for source in sources if OPTION.match(source) and not os.path.exists(source)]
    overrides = _overrides(dqdet.load, options)
    if threshold is not None and "inference.object_threshold" in overrides:
        raise DqdetError("--threshold and inference.object_threshold are the same; leave out one of them")
    paths = [source for source in sources if source not in options]
    if not paths:
        raise DqdetError("nothing to look at; give images, folders, videos or addresses")
    predictor = dqdet.load(model, precision=precision, compile=compile, **overrides)
    limit = None if threshold is None else _threshold(threshold, model, predictor)
    failures = given.predict(predictor, paths, out, limit, ids, force, say=lambda line: print(line, flush=True))
    for failure in failures:
        _complain(failure)
    if len(failures) > 1:
        names = [str(failure).partition(": ")[0] for failure in failures]
        _complain(DqdetError(f"{len(names)} files failed, the others are done: {', '.join(names)}"))
    if failures:
        raise typer.Exit(1)


def _threshold(given: str, model: str, predictor: Predictor) -> float | list[float]:
    if given == "auto":
        from dqdet.runs.folder import load_thresholds

        if predictor.config.data.task not in ("detection", "instance"):
            raise DqdetError("--threshold auto is for boxes and instance masks; give a number")
        return load_thresholds(Path(model), predictor.config.classes)
    try:
        threshold = float(given)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise DqdetError(f"--threshold {given}: neither a score in 0..1 nor auto")
    return threshold


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
def export(
    source: Source,
    out: Annotated[Path, typer.Option(metavar="FILE", help="To write.")],
    format: Annotated[
        str | None, typer.Option(help="onnx, openvino or torch; by default as the suffix of FILE says.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(metavar="640 | 480x640", help="Height and width of all images; by default any size.")
    ] = None,
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Images of any size, which is the default.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Weights in half precision.")] = False,
) -> None:
    """Write a trained model as one file for other runtimes; `predict` and `eval` take it as a model."""
    if dynamic and size is not None:
        raise DqdetError(f"--dynamic means any size, and --size {size} this one; leave out one of them")
    file = dqdet.export(source, out, format, None if size is None else _sides(size), half)
    _show(f"{file}: {file.stat().st_size / 2**20:.1f} MiB")


def _sides(text: str) -> tuple[int, int]:
    sides = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if sides is None:
        raise DqdetError(f"--size {text}: not a size; give one number, such as 640, or height x width, such as 480x640")
    height, width = sides.groups()
    return int(height), int(width or height)


@app.command()
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [OPTION=VALUE]...", help="Runs, exported files, or what else `predict` takes."
        ),
    ],
    precision: FastPrecision = "fp32",
    compile: Compile = False,
    size: Annotated[str, typer.Option(metavar="640 | 480x640", help="Height and width of the pictures.")] = "480x640",
    batch: Annotated[int, typer.Option(min=1, help="Images of a pass that throughput is measured with.")] = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Passes of each kind, after a warm-up.")] = 30,
    data: Annotated[bool, typer.Option("--data", help="Measure the metrics on the validation split, too.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write all numbers.")] = None,
) -> None:
    """Measure latency, throughput, memory and metrics of models as they are used, side by side."""
    from dqdet.benchmark import Conditions
    from dqdet.benchmark import benchmark as measure
    from dqdet.formats.writing import replacing

    options = [model for model in models if OPTION.match(model) and not Path(model).exists()]
    named = [model for model in models if model not in options]
    if not named:
        raise DqdetError("which models? give runs or exported files")
    conditions = Conditions(precision, compile, _sides(size), batch, repeats, _overrides(dqdet.load, options), data)
    measured = measure(named, conditions)
    table = Table("model", "precision", "pixels", "ms", "p95", "images/s", "MiB", *(HEADLINE if data else ()))
    for one in measured:
        metrics = [shown(one["metrics"][name]) if name in one["metrics"] else "" for name in HEADLINE] if data else []
        numbers = (one["latency_ms"], one["latency_p95_ms"], one["images_per_s"], one["memory_mib"])
        height, width = one["pixels"]
        words = f"{one['precision']}{', compiled' if one['compiled'] else ''}"
        table.add_row(one["model"], words, f"{height}x{width}", *(f"{number:.3g}" for number in numbers), *metrics)
    _show(table)
    if out is not None:
        with replacing(out) as file:
            file.write_text(json.dumps(measured, indent=1))


@app.command()
def serve(
    model: Source,
    options: Options = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; the default is reached from this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    precision: FastPrecision = "fp32",
    compile: Compile = False,
    waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are refused with 503.")] = 64,
    mebibytes: Annotated[float, typer.Option(min=0.001, help="Largest file that is taken.")] = 20.0,
    megapixels: Annotated[float, typer.Option(min=0.001, help="Largest image that is taken.")] = 50.0,
) -> None:
    """Answer requests over HTTP: POST an image to /predict, or try it on the page at /."""
    try:
        import uvicorn

        from dqdet.serving.app import Limits, make_app
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise DqdetError("`dqdet serve` needs FastAPI and uvicorn: pip install 'dqdet[serve]'") from error
    predictor = dqdet.load(model, precision=precision, compile=compile, **_overrides(dqdet.load, options))
    application = make_app(predictor, Limits(mebibytes, megapixels, waiting))
    _show(f"{model}: http://{host}:{port}, Ctrl-C ends")
    uvicorn.run(application, host=host, port=port, log_level="warning")


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


DataSet = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the data set: COCO, YOLO, VOC or LabelMe.")]


@data.command("check")
def check_data(
    root: DataSet,
    options: Options = None,
    preset: Annotated[str, typer.Option(help="Sizes of objects are those for this one.")] = "deformable_detr_r50",
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with figures and annotated images.")
    ] = None,
) -> None:
    """Read everything, and print what is there and what is wrong: exit status 1, if there is anything."""
    from dqdet.drawing.data_check import check

    checked = check(_data_options(root, preset, options))
    table = Table("", *checked.splits, title=str(root))
    for row in checked.table():
        table.add_row(*map(printable, row))
    _show(table)
    if page is not None:
        from dqdet.runs.folder import write_file

        write_file(page, checked.page(str(root)).encode())
    for fault in checked.faults:
        _complain(DqdetError(fault))
    if checked.faults:
        raise typer.Exit(1)


@data.command("convert")
def convert_data(
    root: DataSet,
    out: Annotated[Path, typer.Option(help="Folder to write, with copies of the images.")],
    options: Options = None,
) -> None:
    """Write a data set as COCO has it: annotations/instances_SPLIT.json and images/SPLIT."""
    from dqdet.data import open_dataset
    from dqdet.data.coco import CocoDataset
    from dqdet.data.conversion import write_coco

    config = _data_options(root, "deformable_detr_r50", options)
    splits: dict[str, CocoDataset] = {}
    for split in ("train", "val"):
        dataset = open_dataset(config, split)
        assert isinstance(dataset, CocoDataset)
        splits[split] = dataset
    write_coco(splits, out)
    sizes = ", ".join(f"{split} {len(dataset)} images" for split, dataset in splits.items())
    _show(f"{out}: {config.kind} as COCO, {sizes}, {len(splits['train'].classes)} classes")


@data.command("benchmark")
def benchmark_data(
    root: DataSet,
    options: Options = None,
    preset: Annotated[str, typer.Option(help="Whose augmentation is measured.")] = "deformable_detr_r50",
    images: Annotated[int, typer.Option(min=1, help="How many are timed.")] = 64,
    rate: Annotated[float, typer.Option(min=0, help="Images a second that the GPU takes.")] = 100.0,
) -> None:
    """Say how fast one process reads and augments training images, and how many keep a GPU busy."""
    from dqdet.data import open_dataset
    from dqdet.data.speed import measure

    config = resolve(preset, [f"data.root={root}", *(options or [])])
    dataset = open_dataset(config.data, "train", config.train.seed)
    speed = measure(dataset, images, min(config.train.batch, len(dataset)))
    table = Table("part", "ms an image", "images/s")
    for name, seconds in speed.parts.items():
        table.add_row(name, f"{seconds * 1000:.2f}", f"{1 / seconds:.0f}")
    table.add_row("together", f"{1000 / speed.rate:.2f}", f"{speed.rate:.0f}")
    Console().print(table)
    print(f"a GPU that takes {rate:g} images/s needs data.workers={speed.workers(rate)}, each on a core of its own")


def _data_options(root: Path, preset: str, options: list[str] | None) -> DataConfig:
    """The options of a data set, whose format is found by its files unless it is given."""
    from dqdet.data.kinds import SIGNS, kind_of

    given = parse_overrides(options or [])
    if others := [path for path in given if not path.startswith("data.") or path == "data.root"]:
        raise DqdetError(f"{', '.join(others)}: give the folder and options that begin with data.")
    config = resolve(preset, {"data.kind": given.get("data.kind") or kind_of(root), "data.root": str(root)} | given)
    if config.data.kind not in SIGNS or config.data.task not in ("detection", "instance"):
        raise DqdetError(
            f"data.kind={config.data.kind} with data.task={config.data.task}: only boxes (detection) and masks "
            f"(instance) of {', '.join(SIGNS)}"
        )
    return config.data


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
