"""From a trained model to a file that runs anywhere."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path

from dqdet.config import Config, override
from dqdet.errors import DqdetError
from dqdet.exporting.formats import FORMATS, Resolution, check_masks
from dqdet.exporting.meaning import Meaning, outputs
from dqdet.exporting.network import Network
from dqdet.exporting.tracing import trace
from dqdet.formats.writing import check_place, move_files, unfinished_folder
from dqdet.models.fast import made_fast
from dqdet.runs.sources import load_model


def export(
    source: str | Path,
    out: Path,
    name: str,
    size: tuple[int, int] | None = None,
    half: bool = False,
    masks: Resolution = "quarter",
) -> None:
    """Write the model of any source in a format; arguments and errors as of `dqdet.export`.

    Args:
        source: of the model.
        out: file to write.
        name: of the format.
        size: height and width of images; None: any.
        half: with weights in half precision.
        masks: of instances, their resolution.
    """
    check_place(out)
    model, config, _ = load_model(source)
    check_masks(masks, config.data.task)
    config = config if size is None else of_size(config, size)
    if half:
        model = made_fast(model, "fp16")
    program = trace(Network(model, config, masks), model, config, size)
    texts = Meaning(config, size, half, masks).to_text()
    write = import_module(f"dqdet.exporting.{FORMATS[name].module}").write
    try:
        with unfinished_folder(out.parent) as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch about itself
            write(program, list(outputs(config)), texts, folder / out.name)
            move_files(folder, out.parent)  # OpenVINO has two
    except OSError as error:
        raise DqdetError(f"{out}: cannot be written ({error.strerror}); choose another place or make space") from error


def of_size(config: Config, size: tuple[int, int]) -> Config:
    """A configuration that brings all images to one height and width.

    Those of models that have learned squares are stretched, and frames, which have no padding; others keep their
    proportions, and are padded.
    """
    stretched = config.data.square or config.data.val_fit == "stretch" or config.data.task == "video"
    options = {
        "data.val_fit": "stretch" if stretched else "inside",
        "data.val_size": size,
        "data.val_divisor": 1,
        "data.val_pad": None if stretched else size,
    }
    return override(config, options)
