"""`dqdet data`: commands about data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from dqdet.cli.arguments import Options
from dqdet.cli.output import complain, show
from dqdet.config import DataConfig, parse_overrides, resolve
from dqdet.errors import DqdetError, printable

app = typer.Typer(no_args_is_help=True, help="Look at data sets, convert them, and measure how fast they are read.")

DataSet = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of the data set: COCO, YOLO, VOC, LabelMe or shards, or the http address of shards.",
    ),
]


@app.command("check")
def check_data(
    root: DataSet,
    options: Options = None,
    preset: Annotated[
        str, typer.Option(help="Preset whose image size determines object sizes.")
    ] = "deformable_detr_r50",
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write a page with figures and annotated images.")
    ] = None,
) -> None:
    """Read the whole data set and print its contents and all faults; exit status 1 if there are any faults."""
    from dqdet.drawing.data_check import check
    from dqdet.formats.writing import check_place

    if page is not None:
        check_place(page)
    checked = check(_data_options(root, preset, options))
    table = Table("", *checked.splits, title=root)
    for row in checked.table():
        table.add_row(*map(printable, row))
    show(table)
    if page is not None:
        from dqdet.runs.folder import write_file

        write_file(page, checked.page(root).encode())
    for fault in checked.faults:
        complain(DqdetError(fault))
    if checked.faults:
        raise typer.Exit(1)


@app.command("show")
def show_data(
    root: DataSet,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Picture to write.")],
    options: Options = None,
    preset: Annotated[str, typer.Option(help="Preset whose augmentation is shown.")] = "deformable_detr_r50",
    images: Annotated[int, typer.Option(min=1, help="Number of images.")] = 12,
) -> None:
    """Draw training images as a model gets them: augmented (data.augment.mosaic=0.5, ...), with boxes or masks."""
    from dqdet.data import open_dataset
    from dqdet.drawing.data_check import augmented_sheet
    from dqdet.formats.image_files import is_image_name, write_image
    from dqdet.formats.writing import check_place

    if not is_image_name(out):
        raise DqdetError(f"--out {out}: not the name of a picture; let it end in .png or .jpg")
    check_place(out)
    dataset = open_dataset(_data_options(root, preset, options), "train")
    if not len(dataset):
        raise DqdetError(f"{root}: the training split has no images")
    drawn = augmented_sheet(dataset, images)
    try:
        write_image(out, drawn)
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error.strerror}); choose another place or make space") from error
    show(f"{out}: {min(images, len(dataset))} of {len(dataset)} training images, augmented")


@app.command("convert")
def convert_data(
    root: DataSet,
    out: Annotated[Path, typer.Option(help="Folder to write, with copies of the images.")],
    options: Options = None,
    to: Annotated[
        Literal["coco", "webdataset"],
        typer.Option(help="coco: annotations/instances_SPLIT.json and images/SPLIT; webdataset: tar files."),
    ] = "coco",
) -> None:
    """Convert a data set to COCO, or to shards: SPLIT-000000.tar and so on, with index-SPLIT.json."""
    from dqdet.data import check_files, open_dataset
    from dqdet.data.coco import CocoDataset
    from dqdet.data.conversion import WRITERS

    config = _data_options(root, "deformable_detr_r50", options)
    splits: dict[str, CocoDataset] = {}
    for split in ("train", "val"):
        dataset = open_dataset(config, split)
        assert isinstance(dataset, CocoDataset)
        splits[split] = dataset
    if config.check:
        check_files(splits.values())
    WRITERS[to](splits, out)
    sizes = ", ".join(f"{split} {len(dataset)} images" for split, dataset in splits.items())
    show(f"{out}: {config.kind} as {to.replace('coco', 'COCO')}, {sizes}, {len(splits['train'].classes)} classes")


@app.command("benchmark")
def benchmark_data(
    root: DataSet,
    options: Options = None,
    preset: Annotated[str, typer.Option(help="Preset whose augmentation is measured.")] = "deformable_detr_r50",
    images: Annotated[int, typer.Option(min=1, help="Number of images to time.")] = 64,
    rate: Annotated[float, typer.Option(min=0, help="Images per second that the GPU processes.")] = 100.0,
) -> None:
    """Measure how fast one process reads and augments training images, and how many processes keep a GPU busy."""
    from dqdet.data import open_dataset
    from dqdet.data.kinds import SIGNS, kind_of
    from dqdet.data.speed import measure

    given = parse_overrides(options or [])
    config = resolve(preset, {"data.root": root} | given)
    if config.data.kind in SIGNS and config.data.task in ("detection", "instance") and "data.kind" not in given:
        config = resolve(preset, {"data.root": root, "data.kind": kind_of(root)} | given)
    dataset = open_dataset(config.data, "train", config.train.seed)
    if not len(dataset):
        raise DqdetError(f"{root}: the training split has no images")
    speed = measure(dataset, images, min(config.train.batch, len(dataset)))
    table = Table("part", "ms an image", "images/s")
    for name, seconds in speed.parts.items():
        table.add_row(name, f"{seconds * 1000:.2f}", f"{1 / seconds:.0f}")
    table.add_row("together", f"{1000 / speed.rate:.2f}", f"{speed.rate:.0f}")
    Console().print(table)
    print(f"a GPU that takes {rate:g} images/s needs data.workers={speed.workers(rate)}, each on a core of its own")


def _data_options(root: str, preset: str, options: list[str] | None) -> DataConfig:
    """The options of a data set, whose format is found by its files unless it is given."""
    from dqdet.data.kinds import SIGNS, kind_of

    given = parse_overrides(options or [])
    if others := [path for path in given if not path.startswith("data.") or path == "data.root"]:
        raise DqdetError(f"{', '.join(others)}: give the folder and options that begin with data.")
    config = resolve(preset, {"data.kind": given.get("data.kind") or kind_of(root), "data.root": root} | given)
    if config.data.kind not in SIGNS or config.data.task not in ("detection", "instance"):
        raise DqdetError(
            f"data.kind={config.data.kind} with data.task={config.data.task}: only boxes (detection) and masks "
            f"(instance) of {', '.join(SIGNS)}"
        )
    return config.data
