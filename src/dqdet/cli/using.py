"""Commands that look at images and videos with a trained model."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

import dqdet
from dqdet.cli.arguments import OPTION, Compile, FastPrecision, Force, Options, Run, Source, overrides_of, sides_of
from dqdet.cli.output import HEADLINE, complain, show
from dqdet.errors import DqdetError
from dqdet.metrics.scores import shown

if TYPE_CHECKING:
    from dqdet.predict.predictor import Predictor

app = typer.Typer()


@app.command()
def predict(
    model: Source,
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE... [OPTION=VALUE]...",
            help="Images, folders, videos, patterns or http addresses, or one stream (rtsp://, rtmp://, .m3u8) or "
            "camera (webcam:0), which Ctrl-C ends; and options, such as inference.limit=20.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for pictures or an annotated video, and official results files.")],
    threshold: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE|auto",
            show_default="0.5; for panoptic maps inference.object_threshold",
            help="Lowest score of objects to draw, and of segments of panoptic maps; auto: the best one of each class, "
            "as found by `dqdet eval`.",
        ),
    ] = None,
    ids: Annotated[
        Path | None,
        typer.Option(metavar="ANNOTATIONS.json", help="COCO file with the image ids to use in the results."),
    ] = None,
    tiles: Annotated[
        int | None,
        typer.Option(min=1, metavar="PIXELS", help="Cut large images into tiles of this side, to find small objects."),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(show_default="0.2", help="Smallest share of its side by which a tile overlaps the next."),
    ] = None,
    track: Annotated[
        bool,
        typer.Option("--track", help="Track the objects in videos and streams; for models of images."),
    ] = False,
    precision: FastPrecision = "fp32",
    compile: Compile = False,
    force: Force = False,
    engine: Annotated[
        Literal["here", "ray"],
        typer.Option(help="ray: many images on the machines of a Ray cluster, without pictures; resumes by itself."),
    ] = "here",
) -> None:
    """Find the objects in images or videos, draw them, and write results for the official evaluations.

    For a model of videos, a folder is one video; for all others it is a collection of images, including those in its
    subfolders. Pictures keep their names relative to the folder that contains all sources. A file with several frames
    or pages (GIF, APNG, WebP, TIFF) is a video as well.
    """
    from dqdet.predict import sources as given
    from dqdet.predict.tracking import check_installed

    options = [source for source in sources if OPTION.match(source) and not os.path.exists(source)]
    overrides = overrides_of(dqdet.load, options)
    if threshold is not None and "inference.object_threshold" in overrides:
        raise DqdetError("--threshold and inference.object_threshold are the same; leave out one of them")
    if overlap is not None and tiles is None:
        raise DqdetError(f"--overlap {overlap:g} is that of tiles; give --tiles, too, such as --tiles 640")
    paths = [source for source in sources if source not in options]
    if not paths:
        raise DqdetError("nothing to look at; give images, folders, videos or addresses")
    if engine == "ray":
        drawn = {"--threshold": threshold, "--tiles": tiles, "--track": track or None}
        if given_options := [name for name, value in drawn.items() if value is not None]:
            raise DqdetError(
                f"{', '.join(given_options)}: not with --engine ray, which draws no pictures; leave it out"
            )
        from dqdet.predict import on_ray

        loaded = on_ray.loading(dqdet.load, model, precision, compile, overrides)
        if failed := on_ray.predict_on_ray(loaded, paths, out, ids, force, say=lambda line: print(line, flush=True)):
            print(f"{out / 'errors.json'}: {failed} images could not be processed")
        return
    if track:
        check_installed()
    predictor = dqdet.load(model, precision=precision, compile=compile, **overrides)
    if tiles is not None:
        predictor = predictor.tiled(tiles) if overlap is None else predictor.tiled(tiles, overlap)
    limit = None if threshold is None else _threshold(threshold, model, predictor)
    failures = given.predict(
        predictor, paths, out, limit, ids, force, say=lambda line: print(line, flush=True), tracking=track
    )
    for failure in failures:
        complain(failure)
    if len(failures) > 1:
        names = [str(failure).partition(": ")[0] for failure in failures]
        complain(DqdetError(f"{len(names)} files failed, the others are done: {', '.join(names)}"))
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
    file: Annotated[Path, typer.Argument(metavar="FILE.zip", help="File to write; it contains results.json.")],
    options: Options = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file if it exists.")] = False,
) -> None:
    """Write the tracks found in the validation split for the evaluation server of YouTube-VIS.

    The split needs no annotations: `dqdet submit RUN FILE.zip data.val=valid`.
    """
    from dqdet.predict import submission

    submission.submit(run, file, options or [], force)


@app.command()
def benchmark(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL... [OPTION=VALUE]...", help="Runs, exported files, or any other model that `predict` takes."
        ),
    ],
    precision: FastPrecision = "fp32",
    compile: Compile = False,
    size: Annotated[str, typer.Option(metavar="640 | 480x640", help="Height and width of the pictures.")] = "480x640",
    batch: Annotated[int, typer.Option(min=1, help="Images per pass when measuring throughput.")] = 8,
    repeats: Annotated[int, typer.Option(min=2, help="Passes of each kind, after a warm-up.")] = 30,
    data: Annotated[bool, typer.Option("--data", help="Also measure the metrics on the validation split.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write all numbers.")] = None,
) -> None:
    """Measure latency, throughput, memory and metrics of models side by side, as they are used."""
    from dqdet.benchmark import Conditions
    from dqdet.benchmark import benchmark as measure
    from dqdet.formats.writing import check_place
    from dqdet.runs.folder import write_file

    options = [model for model in models if OPTION.match(model) and not Path(model).exists()]
    named = [model for model in models if model not in options]
    if not named:
        raise DqdetError("which models? give runs or exported files")
    conditions = Conditions(precision, compile, sides_of(size), batch, repeats, overrides_of(dqdet.load, options), data)
    if out is not None:
        check_place(out)
    measured = measure(named, conditions)
    table = Table("model", "precision", "pixels", "ms", "p95", "images/s", "MiB", *(HEADLINE if data else ()))
    for one in measured:
        metrics = [shown(one["metrics"][name]) if name in one["metrics"] else "" for name in HEADLINE] if data else []
        numbers = (one["latency_ms"], one["latency_p95_ms"], one["images_per_s"], one["memory_mib"])
        height, width = one["pixels"]
        words = f"{one['precision']}{', compiled' if one['compiled'] else ''}"
        table.add_row(one["model"], words, f"{height}x{width}", *(f"{number:.3g}" for number in numbers), *metrics)
    show(table)
    if out is not None:
        write_file(out, json.dumps(measured, indent=1).encode())


@app.command()
def serve(
    model: Source,
    options: Options = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default only this machine can connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    precision: FastPrecision = "fp32",
    compile: Compile = False,
    waiting: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; further ones are refused with 503.")
    ] = 64,
    mebibytes: Annotated[float, typer.Option(min=0.001, help="Largest file accepted.")] = 20.0,
    megapixels: Annotated[float, typer.Option(min=0.001, help="Largest image accepted.")] = 50.0,
    at_once: Annotated[
        int | None,
        typer.Option(min=1, show_default="2; for compiled networks 1", help="Batches to process at the same time."),
    ] = None,
) -> None:
    """Answer requests over HTTP: POST an image to /predict, or try it on the page at /."""
    try:
        import uvicorn

        from dqdet.serving.app import Limits, make_app
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn"):
            raise
        raise DqdetError("`dqdet serve` needs FastAPI and uvicorn: pip install 'dqdet[serve]'") from error
    predictor = dqdet.load(model, precision=precision, compile=compile, **overrides_of(dqdet.load, options))
    # A network is compiled anew for each number of threads that it gets.
    application = make_app(predictor, Limits(mebibytes, megapixels, waiting), at_once or (1 if compile else 2))
    show(f"{model}: http://{host}:{port}, Ctrl-C ends")
    # Of seconds: the threads of the model need Python's lock for moments only, and would wait 5 ms each time for the
    # one that speaks HTTP.
    sys.setswitchinterval(0.0005)
    uvicorn.run(application, host=host, port=port, log_level="warning")
