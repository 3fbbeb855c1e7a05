"""Where a training is logged, beside its own CSV file: Lightning's loggers of TensorBoard, Weights & Biases and MLflow.

The last two belong to the extra ``loggers``. A training that goes on has the same run there, whose id is kept in
``logs/runs.json``. Neither can forget: of a training that was killed they have the steps after its last checkpoint
twice, where the CSV file and TensorBoard's curves have them once.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.runs.folder import LOGS, write_file
from dqdet.runs.lock import is_first_process

OPTIONAL = ("wandb", "mlflow")  # the packages have these names, too
PROJECT = "dqdet"  # in both; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME say otherwise
RUNS = "runs.json"  # name of a logger -> the id of its run


def check_loggers(names: Iterable[str]) -> None:
    """Raises DqdetError where a package is missing."""
    if missing := [name for name in OPTIONAL if name in names and find_spec(name) is None]:
        raise DqdetError(
            f"train.logger={missing[0]} needs the package {missing[0]}: pip install 'dqdet[loggers]', or leave it out"
        )


def make_loggers(config: Config, out: Path) -> list[Logger]:
    """Those of ``train.logger`` for a run, apart from its CSV file.

    Raises:
        DqdetError: one of them cannot be opened.
    """
    names = config.train.logger
    loggers: list[Logger] = []
    if "tensorboard" in names:
        loggers.append(TensorBoardLogger(out / LOGS, name="tensorboard", version=0))
    known = _runs(out)
    chosen = [name for name in OPTIONAL if name in names]
    for name in chosen:
        try:
            loggers.append(_opened(name, out, known, config))
        except Exception as error:  # whatever their servers, files and accounts may say
            reason = " ".join(str(error).split())
            instead = "WANDB_MODE=offline" if name == "wandb" else "MLFLOW_TRACKING_URI to another place"
            raise DqdetError(f"train.logger={name}: {reason}; set {instead}, or leave it out") from error
    if chosen and is_first_process():
        write_file(out / LOGS / RUNS, json.dumps(known).encode())
    return loggers


def _opened(name: str, out: Path, known: dict[str, str], config: Config) -> Logger:
    """A logger whose run, of the first process, is open and among the ``known`` ones."""
    logger = (_wandb if name == "wandb" else _mlflow)(out, known.get(name))
    if is_first_process():
        _ = logger.experiment
        if name not in known:
            logger.log_hyperparams(config.model_dump(mode="json"))
        assert logger.run_id is not None
        known[name] = logger.run_id
    return logger


def finish(loggers: Sequence[Logger]) -> None:
    """The next training of this process has a run of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger) and is_first_process():
            logger.experiment.finish()


class _Wandb(WandbLogger):
    """With the name that MLflow's logger has for the id."""

    @property
    def run_id(self) -> str | None:
        version = self.version
        return None if version is None else str(version)


class _Mlflow(MLFlowLogger):
    """Has AP.person for AP/person: in files of MLflow a metric is no folder of others."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        places = {name: name.partition("/") for name in metrics}
        renamed = {
            f"{first}{slash}{rest.replace('/', '.')}": metrics[name] for name, (first, slash, rest) in places.items()
        }
        super().log_metrics(renamed, step)


def _wandb(out: Path, run: str | None) -> _Wandb:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return _Wandb(name=out.name, save_dir=out / LOGS, id=run or secrets.token_hex(4), project=project)


def _mlflow(out: Path, run: str | None) -> _Mlflow:
    place = os.environ.get("MLFLOW_TRACKING_URI")
    if place is None:
        place = f"file:{(out / LOGS / 'mlruns').resolve()}"
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want to be asked for it
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    return _Mlflow(experiment, run_name=out.name, tracking_uri=place, run_id=run)


def _runs(out: Path) -> dict[str, str]:
    try:
        return json.loads((out / LOGS / RUNS).read_text())
    except (OSError, ValueError):  # a new run, or one whose loggers begin anew
        return {}
