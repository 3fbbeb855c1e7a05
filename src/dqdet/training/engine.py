"""Training and evaluation of a configuration: data, model, Lightning's Trainer and the run folder put together."""

from __future__ import annotations

import atexit
import logging
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from torch import distributed as dist
from torch import nn

from dqdet.config import (
    Config,
    DataConfig,
    Overrides,
    Precision,
    TrainConfig,
    about_drops,
    override_some,
    parse_overrides,
    prolonged,
    total_steps,
)
from dqdet.config.effects import beyond_the_end, unused, without_effect
from dqdet.data import check_files, open_dataset
from dqdet.data.dataset import DetectionDataset
from dqdet.errors import DISK_FULL, DqdetError, Interrupted, listed
from dqdet.exporting.formats import is_exported
from dqdet.exporting.model import ExportedModel
from dqdet.models import create_model
from dqdet.models.fast import made_fast
from dqdet.runs.folder import (
    CURVES,
    LAST,
    LOGS,
    MEASURED,
    METRICS,
    NOT_MEASURED,
    THRESHOLDS,
    check_classes,
    load_config,
    load_folder,
    load_metrics,
    match_classes,
    match_metrics,
    new_run,
    run_folder,
    save_metrics,
    without_pretraining,
    write_file,
)
from dqdet.runs.lock import InUse, held, is_first_process
from dqdet.runs.transfer import start_from
from dqdet.training.callbacks import CheckpointFiles, LastCheckpoint, Validation
from dqdet.training.data_module import DataModule, validation_loader
from dqdet.training.evaluation import make_evaluation
from dqdet.training.logs import CsvLog, GoingOn, quiet_threads
from dqdet.training.module import LOG_EVERY, DetectionModule
from dqdet.training.progress import TrainingProgress
from dqdet.training.recording import CocoFile, Recording, official_files, results_folder, write_metrics
from dqdet.training.report import write_report
from dqdet.training.watching import Curves, Patience, Timing, ValidationPictures

logger = logging.getLogger(__name__)

# What may differ when a training goes on; with anything else it would be another training.
RESUMABLE = (
    *(f"train.{name}" for name in ("epochs", "steps", "drop", "drop_steps", "validate_every", "patience", "pictures")),
    *("data.root", "data.workers", "data.check"),
)

REHEARSED = 4  # steps of a rehearsal

# What Lightning and PyTorch raise where a part of a checkpoint is missing, or another than it should be.
NOT_RESTORED = (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, ArithmeticError)

# What else than the data and the inference matters to a measurement: how large its batches are, and their precision.
LOADED = ("data.workers", "data.check", "train.batch", "train.accumulate", "train.precision")


def train(config: Config, out: Path | None = None, callbacks: Sequence[Callback] = ()) -> Path:
    """Train a new model.

    Run by ``torchrun``, all its processes train together; otherwise this process trains, on one device.

    Args:
        config: resolved; its classes are filled from the data set.
        out: folder of the run; see `dqdet.runs.folder`. None: as `new_run` names it.
        callbacks: of Lightning, besides those of dqdet.

    Returns:
        the folder of the run.

    Raises:
        DqdetError: data, options or folder are at fault, or the loss is not finite.
        Interrupted: by SIGINT or SIGTERM; the state is saved.
    """
    data, config = _ready(config)
    torch.manual_seed(config.train.seed)
    if config.init is None:
        model = create_model(config)
    else:
        model = create_model(without_pretraining(config))
        rank_zero_only(print)(start_from(config.init, model, config), file=sys.stderr)
    with new_run(out, config) as folder:
        return _fit(DetectionModule(model, config), data, folder, None, callbacks)


def rehearse(config: Config) -> list[str]:
    """Take some steps of a training and validate some images, without a run: what it will need, in lines.

    Args:
        config: as of `train`.

    Returns:
        data, model, memory, time of a step, and the time that the whole training is expected to take.

    Raises:
        DqdetError: data or options are at fault.
    """
    data, config = _ready(config)
    module = DetectionModule(create_model(without_pretraining(config)), config)
    timing = Timing()
    trainer = _make_trainer(config, [timing], epochs=config.train.validate_every)
    trainer.limit_train_batches = min(REHEARSED, data.steps_per_epoch) * config.train.accumulate
    trainer.limit_val_batches = 1
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    _quietly(trainer.fit, module, datamodule=data)
    if torch.cuda.is_available():
        memory = f"{torch.cuda.max_memory_allocated() / 2**20:.0f} MiB of {torch.cuda.get_device_name()}"
    else:
        memory = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB of this process"
    steps = total_steps(config.train, data.steps_per_epoch)
    validations = max(1, steps // (data.steps_per_epoch * config.train.validate_every))
    lines = [_described(config, module, data), f"memory: at most {memory}"]
    if not timing.steps:
        return [*lines, "time: an epoch has a single step, too few to be measured"]
    step, image = statistics.median(timing.steps), statistics.median(timing.images)
    seconds = steps * step + validations * len(data.val_set) * image
    return [
        *lines,
        f"time: {step:.3g} s a step of {config.train.batch}, {image:.3g} s an image in validation",
        f"in all: {steps} steps and {validations} validations, about {timedelta(seconds=round(seconds))}",
    ]


def _ready(config: Config) -> tuple[DataModule, Config]:
    """The data of a training and its configuration, filled from it; says what has no effect."""
    data = _open_data(config)
    objects = [split.has_objects() for split in (data.train_set, data.val_set)]
    _warn(without_effect(config, data.steps_per_epoch, *objects))
    filled = {
        "classes": data.val_set.classes,
        "category_ids": data.val_set.category_ids,
        "stuff": list(data.val_set.stuff),
    }
    return data, config.model_copy(update=filled)


def _described(config: Config, module: DetectionModule, data: DataModule) -> str:
    parameters = sum(parameter.numel() for parameter in module.parameters())
    items = "videos" if config.data.task == "video" else "images"
    return (
        f"{config.preset} with {config.queries.kind} queries, {parameters / 1e6:.1f} M parameters, "
        f"{len(data.train_set)} training and {len(data.val_set)} validation {items}, {len(config.classes)} classes"
    )


def resume(run: Path, overrides: Overrides = (), callbacks: Sequence[Callback] = ()) -> None:
    """Go on with an interrupted training, or train a finished one for longer; otherwise as `train`.

    Args:
        run: folder of the run.
        overrides: of the options in `RESUMABLE`.
        callbacks: of Lightning, besides those of dqdet.
    """
    with held(run):
        before = load_config(run)
        given = prolonged(before, overrides)
        config = override_some(before, given, RESUMABLE, "cannot change in a training that goes on")
        if is_first_process() and (noticed := match_metrics(run)):
            print(noticed, file=sys.stderr)
        data = _open_data(config)
        _warn(beyond_the_end(config, data.steps_per_epoch))
        if line := about_drops(before.train, config.train):
            rank_zero_only(print)(line, file=sys.stderr)
        check_classes(config, data.val_set.classes, _place(config.data))
        module = DetectionModule(create_model(without_pretraining(config)), config)
        _fit(module, data, run, run / LAST, callbacks)


def evaluate(
    run: Path,
    overrides: Overrides = (),
    out: Path | None = None,
    precision: Precision = "fp32",
    compiled: bool = False,
) -> dict[str, float]:
    """The official metrics of a run's task and model on the validation split.

    They are written to the run's ``metrics.json``, unless overrides make them those of something else; and with a table
    of the classes and the predictions to ``out``, see `dqdet.training.recording`.

    Args:
        run: folder of a run, its ``last.ckpt``, or an exported file.
        overrides: of its configuration, for example ``data.root``; of `MEASURED` and `LOADED` options.
        out: folder of the results, by default ``RUN/eval``, or beside a file ``NAME-eval``; results of an earlier
            evaluation are replaced.
        precision: of weights and features.
        compiled: compile the network at the first images.

    Raises:
        DqdetError: the folder or the data is at fault, the data has classes that the model has not, an option would
            have no effect on a model that is trained, or the results cannot be written.
    """
    overrides = parse_overrides(overrides)
    allowed = (*MEASURED, *LOADED)
    if is_exported(run):
        exported = ExportedModel(run)
        exported.refuse_changes(precision, compiled)
        config = exported.configured(overrides, allowed, NOT_MEASURED)
        _warn(unused(config, overrides))
        return _measured(exported, config, run.with_name(f"{run.stem}-eval") if out is None else out)
    config = override_some(load_config(run), overrides, allowed, NOT_MEASURED)
    _warn(unused(config, overrides))
    before = load_metrics(run)
    model, _ = load_folder(run)
    place = run_folder(run)
    out = place / "eval" if out is None else out
    metrics = _measured(made_fast(model, precision, compiled), config, out)
    as_trained = precision == "fp32" and set(overrides) <= {"data.workers", "data.check"}
    if as_trained and run.name != LAST and is_first_process():
        _keep_metrics(place, before, metrics)
        if (found := out / THRESHOLDS).is_file():
            write_file(place / THRESHOLDS, found.read_bytes())
    return metrics


def _measured(model: nn.Module, config: Config, out: Path) -> dict[str, float]:
    """The metrics of a model, which are written to ``out`` with its predictions."""
    with results_folder(out, is_first_process()) as folder:
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


def measure(model: nn.Module, config: Config, folder: Path | None = None) -> dict[str, float]:
    """The official metrics of a model on the validation split of ``config.data``.

    Args:
        model: to be measured.
        config: of the model.
        folder: for its predictions in the official formats; None: they are not written.

    Raises:
        DqdetError: the data is at fault, or has classes that the model has not.
    """
    dataset = open_dataset(config.data, "val", config.train.seed)
    category_ids = match_classes(config, dataset.classes, dataset.category_ids, _place(config.data))
    _check_files(config, dataset)
    config = config.model_copy(update={"category_ids": category_ids})
    validation = Validation(make_evaluation(config, dataset))
    files = [] if folder is None else official_files(config, dataset, folder)
    recording = [] if folder is None else [Recording(files, folder)]
    progress = TrainingProgress(config.train.batch, validation.evaluation.best)
    trainer = _make_trainer(config, [validation, *recording, progress])
    loader = validation_loader(config, dataset, trainer.global_rank, trainer.world_size)
    started = time.perf_counter()
    try:
        _quietly(trainer.validate, DetectionModule(model, config), loader, verbose=False)
    except SystemExit as error:  # Lightning's answer to KeyboardInterrupt
        raise KeyboardInterrupt from error
    if folder is not None and config.data.task in ("detection", "instance") and trainer.is_global_zero:
        seconds = time.perf_counter() - started
        speed = f"{len(dataset)} images in {seconds:.1f} s on {trainer.strategy.root_device}, reading included"
        for file in files:
            if isinstance(file, CocoFile):
                write_report(folder, config, dataset, file.results, validation.metrics, speed)
    return validation.metrics


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        rank_zero_only(logger.warning)(line)


def _place(data: DataConfig) -> str:
    return f"data.kind={data.kind}" if data.root is None else f"data.root={data.root}"


def _open_data(config: Config) -> DataModule:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if config.train.batch % (processes * config.train.accumulate):
        raise DqdetError(
            f"train.batch={config.train.batch} is not divisible by {processes} processes times "
            f"train.accumulate={config.train.accumulate}"
        )
    train, val = (open_dataset(config.data, split, config.train.seed) for split in ("train", "val"))
    place = f"{_place(config.data)}, validation split"
    check_classes(config.model_copy(update={"classes": train.classes}), val.classes, place)
    if differing := sorted(set(train.stuff) ^ set(val.stuff)):
        raise DqdetError(f"{place}: {listed(differing)}: stuff in this or the training split, but not in both")
    _check_files(config, train, val)
    return DataModule(config, train, val)


def _check_files(config: Config, *datasets: DetectionDataset) -> None:
    if config.data.check and os.environ.get("LOCAL_RANK", "0") == "0":  # once on every machine
        check_files(datasets)


def _fit(
    module: DetectionModule,
    data: DataModule,
    out: Path,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> Path:
    """Train, and return the folder as the first process knows it."""
    config = module.config
    evaluation = make_evaluation(config, data.val_set)
    averaging = [EMAWeightAveraging(decay=config.train.ema)] if config.train.ema else []
    progress = TrainingProgress(config.train.batch, evaluation.best, config.train.steps)
    validation = Validation(evaluation, out, progress.print)
    last = LastCheckpoint(out / LAST, config.train.steps, progress.print)
    events = TensorBoardLogger(out / LOGS, name="tensorboard", version=0)
    log = CsvLog(out / LOGS / "csv" / "version_0" / "metrics.csv")
    watching: list[Callback] = [Curves(out / CURVES, log, evaluation.best)]
    if config.train.patience is not None:
        watching.append(Patience(config.train.patience, log, evaluation.best, progress.print))
    if config.train.pictures and config.data.task in ("detection", "instance"):
        watching.append(ValidationPictures(data.val_set, config.train.pictures, out / LOGS / "pictures"))
    trainer = _make_trainer(
        config,
        # Validation measures and saves before the averaged weights are swapped out again; the last checkpoint is
        # saved after the average has taken in the step.
        [validation, *averaging, *callbacks, last, LearningRateMonitor(), progress, GoingOn(log, events), *watching],
        [events, log],
        epochs=-(-total_steps(config.train, data.steps_per_epoch) // data.steps_per_epoch),
    )
    rank_zero_only(progress.print)(f"{out}: {_described(config, module, data)}")
    precision = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, in trainings alone
    try:
        with quiet_threads():
            _quietly(trainer.fit, module, datamodule=data, ckpt_path=checkpoint)
            measured = validation.step == trainer.global_step or log.has_validation(trainer.global_step)
            if not trainer.strategy.broadcast(measured):
                _quietly(trainer.validate, module, datamodule=data, verbose=False)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DqdetError(
            f"{out}: cannot be written ({error.strerror}); make space, then `dqdet train --resume {out}` goes on from "
            "the last checkpoint, if there is one"
        ) from error
    except SystemExit as error:  # Lightning's answer to KeyboardInterrupt
        raise Interrupted(
            f"stopped at once; `dqdet train --resume {out}` goes on from the last checkpoint, if there is one"
        ) from error
    except NOT_RESTORED as error:
        if checkpoint is None or module.restored:
            raise
        raise DqdetError(
            f"{checkpoint}: is not the state of this training ({type(error).__name__}: {error}); the training cannot "
            "go on from it"
        ) from error
    finally:
        torch.set_float32_matmul_precision(precision)
    return trainer.strategy.broadcast(out)


def _quietly(run: Callable[..., object], *args: object, **options: object) -> None:
    """Without the warnings that do not help whoever trains."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # advice: more workers, log more often
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and PyTorch
        run(*args, **options)


@cache
def _leave_group_at_exit() -> None:
    """A process that ends inside its group may abort, because threads of the group are still running."""
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


def _precision(options: TrainConfig) -> Literal["32", "16-mixed", "bf16-mixed"]:
    """The configured precision where it can be had: half precision with scaled losses is for CUDA alone."""
    if options.precision == "16-mixed" and not torch.cuda.is_available():
        rank_zero_only(print)("train.precision=16-mixed needs a CUDA device; going on with 32", file=sys.stderr)
        return "32"
    return options.precision


def _make_trainer(
    config: Config,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] | Literal[False] = False,
    epochs: int | None = None,
) -> Trainer:
    for package in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(package).setLevel(logging.WARNING)  # no remarks on the machine
    torchrun = TorchElasticEnvironment.detect()
    if torchrun:
        _leave_group_at_exit()
    environment: ClusterEnvironment = TorchElasticEnvironment() if torchrun else LightningEnvironment()
    devices = int(os.environ["LOCAL_WORLD_SIZE"]) if torchrun else 1
    options = config.train
    return Trainer(
        accelerator="auto",
        devices=devices,
        num_nodes=environment.world_size() // devices,
        strategy=DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True) if torchrun else "auto",
        sync_batchnorm=torchrun and torch.cuda.is_available(),
        plugins=[environment, CheckpointFiles()],
        precision=_precision(options),
        max_epochs=epochs,
        check_val_every_n_epoch=options.validate_every,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip or None,
        callbacks=list(callbacks),
        logger=loggers,
        log_every_n_steps=LOG_EVERY,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
