"""Training and evaluation of a configuration: data, model, Lightning's Trainer and the run folder put together."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
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

from dqdet.config import Config, DataConfig, Overrides, TrainConfig, override_some, parse_overrides
from dqdet.data import open_dataset
from dqdet.errors import DISK_FULL, DqdetError, Interrupted, listed
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.folder import (
    LAST,
    LOGS,
    MEASURED,
    METRICS,
    NOT_MEASURED,
    check_classes,
    load_config,
    load_folder,
    load_metrics,
    match_classes,
    match_metrics,
    new_run,
    save_metrics,
    without_pretraining,
)
from dqdet.runs.lock import InUse, held, is_first_process
from dqdet.runs.transfer import start_from
from dqdet.training.callbacks import CheckpointFiles, LastCheckpoint, Validation
from dqdet.training.data_module import DataModule, validation_loader
from dqdet.training.evaluation import make_evaluation
from dqdet.training.logs import CsvLog, GoingOn, quiet_threads
from dqdet.training.module import LOG_EVERY, DetectionModule
from dqdet.training.progress import TrainingProgress

# What may differ when a training goes on; with anything else it would be another training.
RESUMABLE = ("train.epochs", "train.steps", "train.validate_every", "data.root", "data.workers")

# What else than the data and the inference matters to a measurement: how large its batches are, and their precision.
LOADED = ("data.workers", "train.batch", "train.accumulate", "train.precision")


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
    data = _open_data(config)
    config = config.model_copy(
        update={
            "classes": data.val_set.classes,
            "category_ids": data.val_set.category_ids,
            "stuff": list(data.val_set.stuff),
        }
    )
    torch.manual_seed(config.train.seed)
    if config.init is None:
        model = create_model(config)
    else:
        model = create_model(without_pretraining(config))
        rank_zero_only(print)(start_from(config.init, model, config), file=sys.stderr)
    with new_run(out, config) as folder:
        return _fit(DetectionModule(model, config), data, folder, None, callbacks)


def resume(run: Path, overrides: Overrides = (), callbacks: Sequence[Callback] = ()) -> None:
    """Go on with an interrupted training, or train a finished one for longer; otherwise as `train`.

    Args:
        run: folder of the run.
        overrides: of the options in `RESUMABLE`.
        callbacks: of Lightning, besides those of dqdet.
    """
    with held(run):
        config = override_some(load_config(run), overrides, RESUMABLE, "cannot change in a training that goes on")
        if is_first_process() and (noticed := match_metrics(run)):
            print(noticed, file=sys.stderr)
        data = _open_data(config)
        check_classes(config, data.val_set.classes, _place(config.data))
        module = DetectionModule(create_model(without_pretraining(config)), config)
        _fit(module, data, run, run / LAST, callbacks)


def evaluate(run: Path, overrides: Overrides = ()) -> dict[str, float]:
    """The official metrics of a run's task and model on the validation split.

    They are written to the run's ``metrics.json``, unless overrides make them those of something else.

    Args:
        run: folder of the run.
        overrides: of its configuration, for example ``data.root``; of `MEASURED` and `LOADED` options.

    Raises:
        DqdetError: the folder or the data is at fault, the data has classes that the model has not, or an option would
            have no effect on a model that is trained.
    """
    overrides = parse_overrides(overrides)
    config = override_some(load_config(run), overrides, (*MEASURED, *LOADED), NOT_MEASURED)
    before = load_metrics(run)
    model, _ = load_folder(run)
    metrics = measure(model, config)
    if set(overrides) <= {"data.workers"} and is_first_process():
        _keep_metrics(run, before, metrics)
    return metrics


def _keep_metrics(run: Path, before: dict[str, float], metrics: dict[str, float]) -> None:
    """Write what was measured, unless a training has a newer model there, or may have in a moment."""
    try:
        with held(run):
            if load_metrics(run) == before:
                save_metrics(run, before | metrics)
    except InUse as error:
        print(f"{METRICS} is left to the training that goes on: {error}", file=sys.stderr)


def measure(model: Detector, config: Config) -> dict[str, float]:
    """The official metrics of a model on the validation split of ``config.data``.

    Raises:
        DqdetError: the data is at fault, or has classes that the model has not.
    """
    dataset = open_dataset(config.data, "val", config.train.seed)
    category_ids = match_classes(config, dataset.classes, dataset.category_ids, _place(config.data))
    config = config.model_copy(update={"category_ids": category_ids})
    validation = Validation(make_evaluation(config, dataset))
    trainer = _make_trainer(config, [validation, TrainingProgress(config.train.batch, validation.evaluation.best)])
    loader = validation_loader(config, dataset, trainer.global_rank, trainer.world_size)
    try:
        _quietly(trainer.validate, DetectionModule(model, config), loader, verbose=False)
    except SystemExit as error:  # Lightning's answer to KeyboardInterrupt
        raise KeyboardInterrupt from error
    return validation.metrics


def _place(data: DataConfig) -> str:
    return f"data.root={data.root}" if data.kind == "coco" else f"data.kind={data.kind}"


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
    return DataModule(config, train, val)


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
    validation = Validation(evaluation, out)
    averaging = [EMAWeightAveraging(decay=config.train.ema)] if config.train.ema else []
    progress = TrainingProgress(config.train.batch, evaluation.best, config.train.steps)
    last = LastCheckpoint(out / LAST, config.train.steps, progress.print)
    events = TensorBoardLogger(out / LOGS, name="tensorboard", version=0)
    log = CsvLog(out / LOGS / "csv" / "version_0" / "metrics.csv")
    trainer = _make_trainer(
        config,
        # Validation measures and saves before the averaged weights are swapped out again; the last checkpoint is
        # saved after the average has taken in the step.
        [validation, *averaging, *callbacks, last, LearningRateMonitor(), progress, GoingOn(log, events)],
        [events, log],
    )
    parameters = sum(parameter.numel() for parameter in module.parameters())
    items = "videos" if config.data.task == "video" else "images"
    rank_zero_only(progress.print)(
        f"{out}: {config.preset} with {config.queries.kind} queries, {parameters / 1e6:.1f} M parameters, "
        f"{len(data.train_set)} training and {len(data.val_set)} validation {items}, {len(config.classes)} classes"
    )
    precision = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, in trainings alone
    try:
        with quiet_threads():
            _quietly(trainer.fit, module, datamodule=data, ckpt_path=checkpoint)
            if not trainer.strategy.broadcast(log.has_validation(trainer.global_step)):
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
    config: Config, callbacks: Sequence[Callback], loggers: Sequence[Logger] | Literal[False] = False
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
        max_epochs=options.epochs,
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
