"""Measuring a model on the validation split, with what it found written down."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn

from dqdet.config import Config, Overrides, Precision, override_some, parse_overrides
from dqdet.config.effects import unused
from dqdet.data import open_dataset
from dqdet.data.dataset import DetectionDataset
from dqdet.data.loader import killed_worker
from dqdet.exporting.formats import is_exported
from dqdet.exporting.model import ExportedModel
from dqdet.models.fast import made_fast, warn_if_slow
from dqdet.runs.folder import (
    LAST,
    MEASURED,
    METRICS,
    NOT_MEASURED,
    THRESHOLDS,
    is_run,
    load_config,
    load_metrics,
    match_classes,
    run_folder,
    save_metrics,
    write_file,
)
from dqdet.runs.lock import InUse, held
from dqdet.runs.processes import is_first_process
from dqdet.runs.sources import load_model
from dqdet.training.callbacks import Validation
from dqdet.training.data_module import validation_loader
from dqdet.training.distributed import everywhere, lost, meet, timeout_of
from dqdet.training.module import DetectionModule
from dqdet.training.progress import TrainingProgress
from dqdet.training.readiness import check_images, place_of, warn
from dqdet.training.recording import CocoFile, Recording, official_files, results_folder, write_metrics
from dqdet.training.report import write_report
from dqdet.training.task_metrics import make_metric
from dqdet.training.trainer import make_trainer, quietly

# What else than the data and the inference matters to a measurement: how large its batches are, and their precision.
LOADED = ("data.workers", "data.check", "train.batch", "train.accumulate", "train.precision")


def evaluate(
    source: str | Path,
    overrides: Overrides = (),
    out: Path | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
) -> dict[str, float]:
    """The official metrics of a model and its task on the validation split.

    Those of a run are written to its ``metrics.json``, unless overrides make them those of something else; and all with
    a table of the classes and the predictions to ``out``, see `dqdet.training.recording`.

    Args:
        source: as for `dqdet.runs.sources.load_model`, or an exported file.
        overrides: of its configuration, for example ``data.root``; of `MEASURED` and `LOADED` options.
        out: folder of the results, by default that of :func:`default_results`; results of an earlier evaluation are
            replaced.
        precision: of weights and features.
        compiled: compile the network at the first images.

    Raises:
        DqdetError: the source or the data is at fault, the data has classes that the model has not, an option would
            have no effect on a model that is trained, or the results cannot be written.
    """
    overrides = parse_overrides(overrides)
    path = Path(source)
    meet(timeout_of(lambda: load_config(path)))
    model, config, before = everywhere(lambda: _opened(source, overrides, precision, compiled))
    out = default_results(path) if out is None else out
    metrics = _measured(model, config, out)
    as_trained = precision == "fp32" and set(overrides) <= {"data.workers", "data.check"}
    if is_run(path) and as_trained and path.name != LAST and is_first_process():
        place = run_folder(path)
        _keep_metrics(place, before, metrics)
        if (found := out / THRESHOLDS).is_file():
            write_file(place / THRESHOLDS, found.read_bytes())
    return metrics


def default_results(source: Path) -> Path:
    """Where the results of a model go: into a run, beside any other file or folder, here if it comes from the hub."""
    if is_run(source):
        return run_folder(source) / "eval"
    if not source.exists():
        return Path(f"{source.name}-eval")
    source = source if source.name else source.resolve()  # the working folder
    return source.with_name(f"{source.stem if source.is_file() else source.name}-eval")


def _opened(
    source: str | Path, overrides: dict[str, Any], precision: Precision, compiled: bool
) -> tuple[nn.Module, Config, dict[str, float]]:
    """The model of a source, its configuration with overrides, and what is known of its metrics."""
    allowed = (*MEASURED, *LOADED)
    path = Path(source)
    if is_exported(path):
        exported = ExportedModel(path)
        exported.refuse_changes(precision, compiled)
        config = exported.configured(overrides, allowed, NOT_MEASURED)
        warn(unused(config, overrides))
        return exported, config, {}
    before = load_metrics(path) if is_run(path) else {}  # of this model or an older one
    model, config, _ = load_model(source)
    config = override_some(config, overrides, allowed, NOT_MEASURED)
    warn(unused(config, overrides))
    fast = made_fast(model, precision, compiled)
    warn_if_slow(precision)
    return fast, config, before


def measure(model: nn.Module, config: Config, folder: Path | None = None) -> dict[str, float]:
    """The official metrics of a model on the validation split of ``config.data``.

    Args:
        model: to be measured.
        config: of the model.
        folder: for its predictions in the official formats; None: they are not written.

    Raises:
        DqdetError: the data is at fault, or has classes that the model has not.
    """
    dataset, config = everywhere(lambda: _open_data(config))
    validation = Validation(make_metric(config, dataset))
    files = [] if folder is None else official_files(config, dataset, folder)
    recording = [] if folder is None else [Recording(files, folder)]
    progress = TrainingProgress(config.train.batch, validation.metric.best)
    trainer = make_trainer(config, [validation, *recording, progress])
    loader = validation_loader(config, dataset, trainer.global_rank, trainer.world_size)
    started = time.perf_counter()
    try:
        quietly(trainer.validate, DetectionModule(model, config), loader, verbose=False)
    except SystemExit as error:  # Lightning's answer to KeyboardInterrupt
        raise KeyboardInterrupt from error
    except RuntimeError as error:
        if ending := killed_worker(error) or lost(error, "measure again"):
            raise ending from error
        raise
    if folder is not None and config.data.task in ("detection", "instance") and trainer.is_global_zero:
        seconds = time.perf_counter() - started
        speed = f"{len(dataset)} images in {seconds:.1f} s on {trainer.strategy.root_device}, reading included"
        for file in files:
            if isinstance(file, CocoFile):
                write_report(folder, config, dataset, file.results, validation.metrics, speed)
    return validation.metrics


def _open_data(config: Config) -> tuple[DetectionDataset, Config]:
    """The validation split, and the configuration with its ids of the model's classes."""
    dataset = open_dataset(config.data, "val", config.train.seed)
    category_ids = match_classes(config, dataset.classes, dataset.category_ids, place_of(config.data))
    check_images(config, dataset)
    return dataset, config.model_copy(update={"category_ids": category_ids})


def _measured(model: nn.Module, config: Config, out: Path) -> dict[str, float]:
    """The metrics of a model, which are written to ``out`` with its predictions."""
    with ExitStack() as stack:
        folder = everywhere(lambda: stack.enter_context(results_folder(out, is_first_process())))
        metrics = measure(model, config, folder)
        rank_zero_only(write_metrics)(folder, metrics)
    return metrics


def _keep_metrics(run: Path, before: dict[str, float], metrics: dict[str, float]) -> None:
    """Write what was measured, unless a training has a newer model there, or may have in a moment."""
    try:
        with held(run):
            if load_metrics(run) == before:
                save_metrics(run, before | metrics)
    except InUse as error:
        print(f"{METRICS} is left to the training that goes on: {error}", file=sys.stderr)
