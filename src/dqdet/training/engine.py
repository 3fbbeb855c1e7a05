"""Training of a configuration: data, model, Lightning's Trainer and the run folder put together."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor
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
from dqdet.errors import DISK_FULL, DqdetError, Interrupted
from dqdet.models import create_model
from dqdet.runs.folder import (
    CURVES,
    LAST,
    LOGS,
    check_classes,
    load_config,
    match_metrics,
    new_run,
    without_pretraining,
)
from dqdet.runs.lock import held, is_first_process
from dqdet.runs.transfer import start_from
from dqdet.training.callbacks import LastCheckpoint, Validation
from dqdet.training.data_module import DataModule
from dqdet.training.evaluation import make_evaluation
from dqdet.training.fitting import fitted
from dqdet.training.logs import CsvLog, GoingOn, quiet_threads
from dqdet.training.module import DetectionModule
from dqdet.training.progress import TrainingProgress
from dqdet.training.readiness import described, open_data, place_of, ready, warn
from dqdet.training.trainer import make_trainer, quietly
from dqdet.training.watching import Curves, Patience, ValidationPictures

logger = logging.getLogger(__name__)

# What may differ when a training goes on; with anything else it would be another training.
RESUMABLE = (
    *(f"train.{name}" for name in ("epochs", "steps", "drop", "drop_steps", "validate_every", "patience", "pictures")),
    *("data.root", "data.workers", "data.check"),
)

# What Lightning and PyTorch raise where a part of a checkpoint is missing, or another than it should be.
NOT_RESTORED = (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, ArithmeticError)


def train(
    config: Config, out: Path | None = None, callbacks: Sequence[Callback] = (), fit_memory: bool = False
) -> Path:
    """Train a new model.

    Run by ``torchrun``, all its processes train together; otherwise this process trains, on one device.

    Args:
        config: resolved; its classes are filled from the data set.
        out: folder of the run; see `dqdet.runs.folder`. None: as `new_run` names it.
        callbacks: of Lightning, besides those of dqdet.
        fit_memory: take the batch in the largest parts that fit, see `dqdet.training.fitting`.

    Returns:
        the folder of the run.

    Raises:
        DqdetError: data, options or folder are at fault, or the loss is not finite.
        Interrupted: by SIGINT or SIGTERM; the state is saved.
    """
    data, config = ready(config)
    if fit_memory:
        data, config, line = fitted(config, data)
        rank_zero_only(print)(line, file=sys.stderr)
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
        module = DetectionModule(create_model(without_pretraining(config)), config)
        _fit(module, data, run, run / LAST, callbacks)


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
    trainer = make_trainer(
        config,
        # Validation measures and saves before the averaged weights are swapped out again; the last checkpoint is
        # saved after the average has taken in the step.
        [validation, *averaging, *callbacks, last, LearningRateMonitor(), progress, GoingOn(log, events), *watching],
        [events, log],
        epochs=-(-total_steps(config.train, data.steps_per_epoch) // data.steps_per_epoch),
    )
    rank_zero_only(progress.print)(f"{out}: {described(config, module, data)}")
    precision = torch.get_float32_matmul_precision()
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32, in trainings alone
    try:
        with quiet_threads():
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
