"""Training of a configuration: data, model, Lightning's Trainer and the run folder put together."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from dqdet.config import (
    Config,
    Overrides,
    about_drops,
    override_some,
    prolonged,
    total_steps,
)
from dqdet.config.effects import beyond_the_end
from dqdet.data.loader import killed_worker
from dqdet.errors import DISK_FULL, DqdetError, Interrupted, lack_of_memory
from dqdet.metrics.processes import from_first
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.folder import (
    CONFIG,
    CURVES,
    LAST,
    LOGS,
    check_classes,
    load_config,
    match_metrics,
    new_run,
    without_pretraining,
)
from dqdet.runs.lock import held
from dqdet.runs.processes import is_first_process, is_started_again
from dqdet.runs.transfer import start_from
from dqdet.training.batch_size import fitted
from dqdet.training.callbacks import LastCheckpoint, Validation
from dqdet.training.data_module import DataModule
from dqdet.training.distributed import check_same, everywhere, lost, meet, timeout_of
from dqdet.training.loggers import finish, make_loggers
from dqdet.training.logs import CsvLog, GoingOn, quiet_threads
from dqdet.training.module import DetectionModule
from dqdet.training.monitoring import Curves, Patience, ValidationPictures
from dqdet.training.progress import TrainingProgress
from dqdet.training.readiness import described, described_for_others, open_data, place_of, ready, warn
from dqdet.training.task_metrics import make_metric
from dqdet.training.trainer import make_trainer, products_rounded, quietly, weight_averaging

logger = logging.getLogger(__name__)

# What may differ when a training goes on; with anything else it would be another training.
LONGER = tuple(f"train.{name}" for name in ("epochs", "steps", "drop", "drop_steps", "validate_every", "patience"))
ELSEWHERE = (  # where and how it runs, which is nothing to what it learns
    *("data.root", "data.cache", "data.workers", "data.check"),
    *("train.pictures", "train.logger", "train.timeout", "train.strategy", "train.recompute"),
)
RESUMABLE = (*LONGER, *ELSEWHERE)

# What Lightning and PyTorch raise where a part of a checkpoint is missing, or another than it should be.
NOT_RESTORED = (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, ArithmeticError)


def train(
    config: Config, out: Path | None = None, callbacks: Sequence[Callback] = (), fit_memory: bool = False
) -> Path:
    """Train a new model.

    Run by ``torchrun`` or ``srun``, all processes train together; otherwise this process trains, on one device. Where
    they are started again when one of them dies, a run of the same configuration in ``out`` goes on.

    Args:
        config: resolved; its classes are filled from the data set.
        out: folder of the run; see `dqdet.runs.folder`. None: as `new_run` names it.
        callbacks: of Lightning, besides those of dqdet.
        fit_memory: take the batch in the largest parts that fit, see `dqdet.training.batch_size`.

    Returns:
        the folder of the run.

    Raises:
        DqdetError: data, options or folder are at fault, or the loss is not finite.
        Interrupted: by SIGINT or SIGTERM; the state is saved.
    """
    if is_started_again() and out is None:
        raise DqdetError("give the run a folder (--out): processes that are started again go on with what is there")
    meet(config.train.timeout)
    data, config = everywhere(lambda: ready(config))
    if fit_memory:
        data, config, line = fitted(config, data)
        rank_zero_only(print)(line, file=sys.stderr)
    check_same(described_for_others(config, data))
    if out is not None and is_started_again() and from_first(lambda: _is_begun(out, config)):
        with ExitStack() as stack:
            everywhere(lambda: stack.enter_context(held(out)))
            return _go_on(out, config, data, callbacks)
    model = everywhere(lambda: _new_model(config))
    with ExitStack() as stack:
        folder = everywhere(lambda: stack.enter_context(new_run(out, config)))
        return _fit(DetectionModule(model, config), data, folder, None, callbacks)


def _new_model(config: Config) -> Detector:
    torch.manual_seed(config.train.seed)
    if config.init is None:
        return create_model(config)
    model = create_model(without_pretraining(config))
    rank_zero_only(print)(start_from(config.init, model, config), file=sys.stderr)
    return model


def _is_begun(run: Path, config: Config) -> bool:
    """Whether there is a run of this configuration to go on with."""
    return (run / LAST).is_file() and (run / CONFIG).is_file() and load_config(run) == config


def resume(run: Path, overrides: Overrides = (), callbacks: Sequence[Callback] = ()) -> None:
    """Go on with an interrupted training, or train a finished one for longer; otherwise as `train`.

    Args:
        run: folder of the run.
        overrides: of the options in `RESUMABLE`.
        callbacks: of Lightning, besides those of dqdet.
    """
    meet(timeout_of(lambda: override_some(load_config(run), overrides, RESUMABLE, "")))
    with ExitStack() as stack:
        everywhere(lambda: stack.enter_context(held(run)))
        config, data = everywhere(lambda: _resumed(run, overrides))
        _go_on(run, config, data, callbacks)


def _resumed(run: Path, overrides: Overrides) -> tuple[Config, DataModule]:
    """The configuration of a training that goes on, and its data."""
    before = load_config(run)
    given = prolonged(before, overrides)
    config = override_some(before, given, RESUMABLE, "cannot change in a training that goes on")
    if is_first_process() and (noticed := match_metrics(run)):
        print(noticed, file=sys.stderr)
    data = open_data(config)
    warn(beyond_the_end(config, data.steps_per_epoch))
    if line := about_drops(before.train, config.train):
        rank_zero_only(print)(line, file=sys.stderr)
    check_classes(config, data.val_set.classes, place_of(config.data))
    return config, data


def _go_on(run: Path, config: Config, data: DataModule, callbacks: Sequence[Callback]) -> Path:
    """Train from the last checkpoint of a folder that is held."""
    check_same(described_for_others(config, data))
    everywhere(lambda: _check_is_seen(run))
    model = everywhere(lambda: create_model(without_pretraining(config)))
    return _fit(DetectionModule(model, config), data, run, run / LAST, callbacks)


def _check_is_seen(run: Path) -> None:
    if not (run / LAST).is_file() and not is_first_process():
        raise DqdetError(f"{run / LAST}: is not there; a run goes on in a folder that all hosts see")


def _fit(
    module: DetectionModule,
    data: DataModule,
    out: Path,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
) -> Path:
    """Train, and return the folder as the first process knows it."""
    config = module.config
    metric = make_metric(config, data.val_set)
    averaging = weight_averaging(config.train.ema)
    progress = TrainingProgress(config.train.batch, metric.best, config.train.steps)
    validation = Validation(metric, out, progress.print)
    last = LastCheckpoint(out / LAST, config.train.steps, progress.print)
    loggers = make_loggers(config, out)
    events = next((logger for logger in loggers if isinstance(logger, TensorBoardLogger)), None)
    log = CsvLog(out / LOGS / "csv" / "version_0" / "metrics.csv")
    watching: list[Callback] = [Curves(out / CURVES, log, metric.best)]
    if config.train.patience is not None:
        watching.append(Patience(config.train.patience, log, metric.best, progress.print))
    if config.train.pictures and config.data.task in ("detection", "instance"):
        watching.append(ValidationPictures(data.val_set, config.train.pictures, out / LOGS / "pictures"))
    trainer = make_trainer(
        config,
        # Validation measures and saves before the averaged weights are swapped out again; the last checkpoint is
        # saved after the average has taken in the step.
        [validation, *averaging, *callbacks, last, LearningRateMonitor(), progress, GoingOn(log, events), *watching],
        [*loggers, log],
        epochs=-(-total_steps(config.train, data.steps_per_epoch) // data.steps_per_epoch),
    )
    rank_zero_only(progress.print)(f"{out}: {described(config, module, data)}")
    try:
        with quiet_threads(), products_rounded(config.train.tf32):
            quietly(trainer.fit, module, datamodule=data, ckpt_path=checkpoint)
            measured = validation.step == trainer.global_step or log.has_validation(trainer.global_step)
            if not trainer.strategy.broadcast(measured):
                quietly(trainer.validate, module, datamodule=data, verbose=False)
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
    except (*NOT_RESTORED, MemoryError) as error:
        if lack := lack_of_memory(error):
            raise DqdetError(
                f"{lack}; `dqdet train --resume {out} train.recompute=true` goes on from the last checkpoint, if there "
                "is one, with less; a new training needs less with train.batch=auto or smaller images"
            ) from error
        if killed := killed_worker(error, f", then `dqdet train --resume {out}` goes on from the last checkpoint"):
            raise killed from error
        if gone := lost(
            error, f"`dqdet train --resume {out}` goes on from the last checkpoint, with any number of them"
        ):
            raise gone from error
        if checkpoint is None or module.restored:
            raise
        raise DqdetError(
            f"{checkpoint}: is not the state of this training ({type(error).__name__}: {error}); the training cannot "
            "go on from it"
        ) from error
    finally:
        finish(loggers)
    return trainer.strategy.broadcast(out)
