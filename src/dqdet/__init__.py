"""Detection transformers with dynamic query combinations.

Examples:
    >>> run = dqdet.train("deformable_detr_r50", data={"root": "/data/coco"}, train={"epochs": 12})
    >>> dqdet.evaluate(run)["AP"]
    >>> predictor = dqdet.load(run)
    >>> predictor("street.jpg")["class_name"]

`load`, `convert` and `upgrade` also take official checkpoints, Hugging Face models and names on the hub.

Options have the names of the command line, nested or dotted: ``train={"epochs": 12}`` or
``**{"train.epochs": 12}``. Mistakes in them, in data or in files raise `DqdetError`, which says what to do.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dqdet.config import Precision, override_some, parse_overrides, resolve
from dqdet.errors import DqdetError, Interrupted, MissingExtra
from dqdet.exporting.formats import is_exported

warnings.filterwarnings("ignore", message="OpenCV.*not installed")  # supervision, which does without

# PyTorch is imported where it is used: `dqdet presets` and `dqdet --help` shall answer at once.
if TYPE_CHECKING:
    import torch
    from lightning.pytorch import Callback

    from dqdet.adapters import transformers as transformers
    from dqdet.adapters.transformers import modulate as modulate
    from dqdet.models.detector import Detector
    from dqdet.predict.predictor import Predictor

    __version__: str

__all__ = [
    "DqdetError",
    "Interrupted",
    "convert",
    "create",
    "evaluate",
    "export",
    "fold",
    "load",
    "train",
    "upgrade",
]
LAZY = ("__version__", "modulate", "transformers")  # the last two need an extra, so ``import *`` leaves them out


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})


def __getattr__(name: str) -> Any:
    """`dqdet.__version__`; `dqdet.transformers` and `dqdet.modulate`, which need the ``transformers`` library."""
    if name == "__version__":
        return version("dqdet")
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from dqdet.adapters import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise MissingExtra(f"dqdet.{name} needs the transformers library: pip install 'dqdet[transformers]'") from error
    return transformers if name == "transformers" else transformers.modulate


def create(name: str | Path, **overrides: Any) -> Detector:
    """A model that is not trained yet, except for its backbone, in evaluation mode.

    ``name`` is that of a preset, or the path of a ``config.yaml``. ``model(images [B, 3, H, W])``, where some are
    padded with ``padding [B, H, W]``, gives `dqdet.types.Predictions`. Without ``classes=[...]`` it has the 80 of COCO.

    Raises:
        DqdetError: unknown preset or option, wrong value, or the backbone's weights cannot be fetched.
    """
    from dqdet.formats.categories import COCO_CATEGORIES
    from dqdet.models import create_model

    config = resolve(name, overrides)
    if not config.classes:
        config.classes = list(COCO_CATEGORIES.values())
    return create_model(config).eval()


def load(
    source: str | Path,
    device: torch.device | str | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    **overrides: Any,
) -> Predictor:
    """A trained model as a function from images to ``supervision.Detections``.

    Args:
        source: a run folder, written by `train`, `convert` or `upgrade`, or its ``last.ckpt`` with the newest weights
            of a training; an official checkpoint (``.pth``, or
            ``.pkl`` of detectron2) of any family, or one of the published code with dynamic queries; the folder of a
            Hugging Face model of DETR, Conditional-DETR, DAB-DETR, Deformable-DETR, Mask2Former, LW-DETR or RF-DETR;
            the name of such a folder on the hub, ``user/name``; or a file that `export` has written.
        device: by default the GPU, if there is one; an exported file runs where its runtime does.
        precision: ``fp32``, ``bf16`` or ``fp16``, of weights and features; boxes and scores are in single precision.
        compile: compile the network at the first images, which takes a minute and more, and makes it faster.
        overrides: of its configuration, for example ``inference={"limit": 20}``, or ``data={"val_resize": 640}``.

    Raises:
        DqdetError: there is no such model, it is not whole, reading it would execute code, or an option is wrong or has
            no effect on a prediction.
    """
    from dqdet.config.effects import check_used
    from dqdet.models.fast import made_fast, warn_if_slow
    from dqdet.predict.predictor import Predictor
    from dqdet.runs.folder import NOT_PREDICTED, PREDICTED
    from dqdet.runs.sources import load_model

    if is_exported(source):
        from dqdet.exporting.model import ExportedModel

        exported = ExportedModel(Path(source))
        exported.refuse_changes(precision, compile)
        config = exported.configured(overrides, PREDICTED, NOT_PREDICTED)
        check_used(config, parse_overrides(overrides))
        return Predictor(exported, config, device="cpu", source=source)
    model, config, metrics = load_model(source)
    config = override_some(config, overrides, PREDICTED, NOT_PREDICTED)
    check_used(config, parse_overrides(overrides))
    fast = made_fast(model, precision, compile)
    warn_if_slow(precision)
    return Predictor(fast, config, metrics, device=device, trained=model, source=source)


def convert(source: str | Path, out: str | Path) -> Path:
    """Write the model of any source that `load` takes as a run folder.

    Returns:
        the run folder.

    Raises:
        DqdetError: as `load`, or ``out`` has a run already.
    """
    from dqdet.runs.sources import convert

    convert(source, Path(out))
    return Path(out)


def upgrade(
    source: str | Path,
    out: str | Path,
    ratio: int | None = None,
    perturbation: float = 0.0,
    groups: Literal["first", "mean"] = "first",
) -> Path:
    """Make a trained model modulated without changing its outputs, and write it as a run folder.

    Every learned query is repeated ``ratio`` times, as basic queries: any convex combination of them is that
    query. A model that was trained with several groups of queries (RF-DETR, LW-DETR) keeps these as basic queries.
    ``train(..., init=out)`` goes on from there.

    Args:
        source: as for `load`.
        out: the folder to write.
        ratio: basic queries behind each modulated one; by default 4, or as many as there are groups.
        perturbation: standard deviation of noise on the basic queries, relative to theirs; it does change the
            outputs.
        groups: where the combinations of several groups start: at the first group, or at their mean, which changes the
            outputs.

    Returns:
        the run folder.

    Raises:
        DqdetError: as `load`, the model has other queries, or ``out`` has a run already.
    """
    from dqdet.runs.upgrade import upgrade_folder

    upgrade_folder(source, Path(out), ratio, perturbation, groups)
    return Path(out)


def fold(source: str | Path, out: str | Path, images: str | Path | None = None) -> Path:
    """Make a model that makes its queries static, and write it as a run folder.

    With ``queries.context=none`` its combinations are learned but do not depend on the image: after training they are
    nothing but a table of queries, which needs no code of dynamic queries. The outputs stay the same. Of any other
    model the queries are averaged over images; `evaluate` says what that costs.

    Args:
        source: as of `load`.
        out: folder of the new run.
        images: folder of images to average over, such as those of the training split; None: the queries must be the
            same for every image.

    Returns:
        the run folder.

    Raises:
        DqdetError: as `load`, the queries depend on the image and there are no images, or ``out`` has a run already.
    """
    from dqdet.predict.averaging import mean_queries
    from dqdet.runs.fold import fold_folder

    fold_folder(source, Path(out), None if images is None else mean_queries(load(source), Path(images)))
    return Path(out)


def export(
    source: str | Path,
    out: str | Path,
    format: str | None = None,
    size: int | tuple[int, int] | None = None,
    half: bool = False,
    masks: Literal["quarter", "full"] = "quarter",
) -> Path:
    """Write a trained model as one file for another runtime, which `load`, `evaluate` and other programs can use.

    Its network takes uint8 RGB images and has the normalisation and the selection of the best objects inside. The
    file's metadata says what its inputs and outputs are, which classes there are, and how images are prepared.

    Args:
        source: as for `load`.
        out: file to write.
        format: ``onnx``, ``openvino`` or ``torch``; by default as the suffix of ``out`` says.
        size: height and width of all images, or one number for both; None: any size.
        half: weights and features in half precision, places in single precision.
        masks: of a model of instances, at a quarter of the resolution of the images or at all of it.

    Returns:
        the file.

    Raises:
        DqdetError: as `load`; there is no such format or a package is missing; the model has no such masks, or cannot
            take images of that size; or ``out`` cannot be written.
    """
    from dqdet.exporting import formats

    name = formats.format_of(format, Path(out))
    size = (size, size) if isinstance(size, int) else size
    if is_exported(source):
        raise DqdetError(f"{source}: is exported already; give the run that it was made from")
    from dqdet.exporting.export import export

    export(source, Path(out), name, size, half, masks)
    return Path(out)


def train(
    name: str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    **overrides: Any,
) -> Path:
    """Train the model of a preset, or go on with a run that was interrupted.

    Args:
        name: of the preset, or the path of a ``config.yaml``; ``auto`` for a choice by data and machine, which is
            printed with its reasons; None with ``resume``.
        out: folder of the run; by default ``runs/NAME``, numbered when that has a run already.
        resume: folder of a run to go on with. It may train longer (``train.epochs``, ``train.steps``); other
            options of the training stay as they are.
        callbacks: of Lightning, besides those of dqdet.

    Returns:
        the run folder, for `load` and `evaluate`.

    Raises:
        DqdetError: data, options or folder are at fault, or the loss is not finite.
        Interrupted: by SIGINT (Ctrl-C) or SIGTERM; the state is saved for ``resume``.
    """
    from dqdet.runs.folder import run_folder
    from dqdet.training import engine
    from dqdet.training.auto import configured

    if resume is not None:
        if name is not None or out is not None:
            given = f"preset {name}" if name is not None else f"out={out}"
            raise DqdetError(f"a resumed run keeps its preset and its folder; leave out {given}")
        run = run_folder(Path(resume))
        engine.resume(run, overrides, callbacks)
        return run
    if name is None:
        raise DqdetError("which preset? `dqdet presets` lists them")
    config, fit_memory = configured(name, overrides)
    return engine.train(config, None if out is None else Path(out), callbacks, fit_memory)


def evaluate(
    source: str | Path,
    out: str | Path | None = None,
    precision: Precision = "fp32",
    compile: bool = False,
    **overrides: Any,
) -> dict[str, float]:
    """The official metrics of a model on the validation split, by name.

    ``AP``, ``AP50``, ..., ``AP/person`` are of boxes, masks (task instance) or tracks (task video), whatever the
    model has learned. For panoptic maps they are ``PQ``, ``SQ``, ``RQ``, ``PQ_things``, ..., ``PQ/person``, the mask
    AP of the things ``AP_things``, and ``mIoU``.

    Those of a run are written to its ``metrics.json``, unless ``overrides`` make them those of something else. ``out``
    gets them too, as ``metrics.json``, with a table of the classes (``classes.csv``) and the predictions in the
    official format of the task: ``results.json`` of COCO or YouTube-VIS, ``panoptic.json`` with maps, ``instances/``
    of Cityscapes.

    Args:
        source: as for `load`. What is no run says nothing of its data: give ``data={"root": ...}``.
        out: folder of the results, by default ``RUN/eval``, or beside any other source ``NAME-eval``; of a model on the
            hub in the working folder.
        precision: ``fp32``, ``bf16`` or ``fp16``, of weights and features; boxes and scores are in single precision.
        compile: compile the network at the first images, which takes a minute and more, and makes it faster.
        overrides: of its configuration, for example ``data={"root": "/data/other"}``.

    Raises:
        DqdetError: as `load`, data or options are at fault, the data has other classes than the model, or ``out``
            cannot be written.
    """
    from dqdet.training import evaluation

    return evaluation.evaluate(source, overrides, None if out is None else Path(out), precision, compile)
