"""The run folder: a model that describes itself, and what is needed to continue its training.

- ``config.yaml``: every option, resolved, with the class names (`dqdet.config.to_yaml`);
- ``model.safetensors``: the weights of the best validation so far (averaged ones, if ``train.ema`` is set);
- ``metrics.json``: what that validation measured, and after which step and epoch;
- ``last.ckpt``: the state of the training, for ``--resume``; ``logs/``: TensorBoard and CSV;
- ``curves.png``: how the training goes; ``thresholds.json``: of an evaluation, the best threshold of each class.

The first two are the model. Nothing in them is executed when they are loaded. Every file is written beside
the old one and then takes its place, so that an interruption or a full disk leaves the old one as it was. One
process at a time writes (`dqdet.runs.lock`).
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dqdet.config import Config, DataConfig, from_yaml, to_yaml
from dqdet.errors import DqdetError, printable
from dqdet.formats.records import FINITE, are_numbers
from dqdet.formats.writing import replacing
from dqdet.models import create_model
from dqdet.models.detector import Detector
from dqdet.runs.lock import InUse, held
from dqdet.runs.processes import is_first_process

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
LAST = "last.ckpt"
LOGS = "logs"
CURVES = "curves.png"
THRESHOLDS = "thresholds.json"

NO_CATEGORY = -1

# How large images are when they reach a model that is trained.
PREPARED = tuple(f"data.{name}" for name in DataConfig.model_fields if name.startswith("val_") or name == "max_size")

# The options that matter to a model that is trained: where the data is, how large its images are, what is reported.
MEASURED = (
    *(f"data.{name}" for name in ("kind", "task", "root", "val", "val_share")),
    *PREPARED,
    *(f"data.scenes.{name}" for name in ("size", "val_images", "frames", "seed")),
    "inference",
)
NOT_MEASURED = "has no effect on a model that is trained"

PREDICTED = ("inference", *PREPARED)  # the options that matter to a prediction
NOT_PREDICTED = "has no effect on a prediction"


@contextmanager
def new_run(path: Path | None, config: Config) -> Iterator[Path]:
    """Hold the folder of a new run, with its configuration, against other processes.

    Args:
        path: the folder; None: ``runs/PRESET``, or the first of ``runs/PRESET-2``, ``runs/PRESET-3``, ... that has no
            run and is not held. Of processes that train together, only the first one knows the number.
        config: of the run.

    Raises:
        DqdetError: it has a run already, is in use, or cannot be written to.
    """
    with ExitStack() as stack:
        if path is None:
            path = stack.enter_context(_new_folder(config.preset))
        else:
            stack.enter_context(_made_and_held(path))
        if is_first_process():
            prepare_folder(path, config)
        yield path


@contextmanager
def _new_folder(name: str) -> Iterator[Path]:
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    for path in (Path("runs") / name for name in names):
        with ExitStack() as stack:
            try:
                stack.enter_context(_made_and_held(path))
            except InUse:
                continue
            if not is_first_process() or not _written(path):
                yield path
                return


@contextmanager
def _made_and_held(path: Path) -> Iterator[None]:
    try:
        if is_first_process():  # other hosts may not see it
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DqdetError(f"{path}: cannot be written ({error.strerror})") from error
    with held(path):
        yield


def _written(path: Path) -> list[str]:
    return [name for name in (WEIGHTS, LAST) if (path / name).exists()]


def prepare_folder(path: Path, config: Config) -> None:
    """Make the folder of a new run, with its configuration.

    Raises:
        DqdetError: it has a run already, or cannot be written to.
    """
    used = _written(path)
    if used:
        raise DqdetError(
            f"{path}: has a run already ({' and '.join(used)}); continue it with --resume {path}, or choose "
            "another --out"
        )
    if (path / LOGS).is_symlink():  # replaced, as all links in a folder that is written, not followed
        (path / LOGS).unlink()
    write_file(path / CONFIG, to_yaml(config).encode())


def save_folder(
    path: Path, model: nn.Module | Mapping[str, Tensor], config: Config, metrics: Mapping[str, float]
) -> None:
    """Write a model, or its weights, with its configuration and what was measured of it.

    Raises:
        DqdetError: a file cannot be written; the previous one is kept.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    write_file(path / CONFIG, to_yaml(config).encode())
    # What was measured is in the weights, too: between the two files a process can be killed.
    metadata = {"format": "pt", "model": _summary(config), "metrics": json.dumps(metrics)}
    write_file(path / WEIGHTS, save(weights, metadata=metadata))
    save_metrics(path, metrics)


def match_metrics(path: Path) -> str | None:
    """See to it that a run's metrics are those of its model, before a training looks for a better one.

    Where they are missing, or older than the model, they are written again, as the model has them.

    Returns:
        what was done, if anything.

    Raises:
        DqdetError: the model that the metrics are of is missing, or nothing says how good the model is.
    """
    weights, metrics = path / WEIGHTS, load_metrics(path)
    if not weights.exists():
        if metrics:
            raise DqdetError(
                f"{weights}: missing, while {METRICS} says what was measured of it; put it back, or remove {METRICS} "
                "if the best model from now on is to be kept"
            )
        return None
    try:
        with safe_open(weights, framework="pt") as opened:
            of_model = json.loads((opened.metadata() or {}).get("metrics", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise DqdetError(f"{weights}: damaged or cut short ({error}); copy it again or remove it") from error
    if not of_model and not metrics:
        raise DqdetError(
            f"{path / METRICS}: missing, so that nothing says how good {WEIGHTS} is; put it back, write it again with "
            f"`dqdet eval {path}`, or remove {WEIGHTS}"
        )
    if not of_model or of_model.get("step") == metrics.get("step"):
        return None
    save_metrics(path, of_model)
    return f"{path / METRICS}: was {'older than the model' if metrics else 'missing'}; written again from {WEIGHTS}"


def save_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    write_file(path / METRICS, (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode())


def run_folder(path: Path) -> Path:
    """The folder of a run that is meant by one of its files, such as its weights; any other path as it is."""
    of_run = path.name in (CONFIG, WEIGHTS, METRICS, LAST) and os.path.isfile(path.parent / CONFIG)
    return path.parent if of_run else path


def is_run(path: Path) -> bool:
    """Whether it is the folder of a run, or one of its files."""
    return os.path.isfile(run_folder(path) / CONFIG)


def load_folder(path: Path) -> tuple[Detector, Config]:
    """The model of a run, on the CPU and ready for inference, and its configuration.

    Args:
        path: folder of the run, or one of its files: ``last.ckpt`` means its newest weights (averaged ones, if
            ``train.ema`` is set), any other one those of the best validation.

    Raises:
        DqdetError: a file is missing or damaged, or the weights are of another model than the configuration.
    """
    config = load_config(path)
    model = create_model(without_pretraining(config))
    if path.name == LAST:
        load_last(model, path)
    else:
        load_weights(model, run_folder(path) / WEIGHTS)
    model.eval()
    return model, config


def load_config(path: Path) -> Config:
    """The configuration of a run, given by its folder or one of its files.

    Raises:
        DqdetError: there is none, or it cannot be read.
    """
    path = run_folder(path)
    if not os.path.isdir(path):
        raise DqdetError(f"{path}: no such folder; give the folder of a run")
    file = path / CONFIG
    if not file.is_file():
        raise DqdetError(f"{path}: not the folder of a run, it has no {CONFIG}")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DqdetError(f"{file}: cannot be read ({error})") from error
    return from_yaml(text, source=str(file))


def load_metrics(path: Path) -> dict[str, float]:
    """What was measured of the model that `load_folder` gives; empty when nothing was, yet."""
    if path.name == LAST:
        return {}
    file = run_folder(path) / METRICS
    try:
        metrics = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DqdetError(f"{file}: cannot be read ({error}); remove it or evaluate again") from error
    if not (isinstance(metrics, dict) and are_numbers([*metrics.values()], FINITE)):
        raise DqdetError(f"{file}: not metrics, which are numbers by their names; remove it or evaluate again")
    return metrics


def load_thresholds(path: Path, classes: Sequence[str]) -> list[float]:
    """The threshold of each class, as the last evaluation of a run found it; 1 of a class that its data had not.

    Raises:
        DqdetError: there are none, or they cannot be read.
    """
    file = run_folder(path) / THRESHOLDS
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DqdetError(f"{file}: no such file; `dqdet eval {run_folder(path)}` writes it") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DqdetError(f"{file}: cannot be read ({error}); write it again with `dqdet eval`") from error
    if not (isinstance(found, dict) and are_numbers([*found.values()], 1)):
        raise DqdetError(f"{file}: not thresholds in 0..1 by the names of classes; write it again with `dqdet eval`")
    return [found.get(name, 1.0) for name in classes]


def load_weights(model: nn.Module, file: Path) -> None:
    """Fill a model from a ``.safetensors`` file that has exactly its tensors.

    Raises:
        DqdetError: the file is missing or damaged, or its tensors are not the model's.
    """
    if not file.is_file():
        hint = "; it is written by the first validation of a training" if file.name == WEIGHTS else ""
        raise DqdetError(f"{file}: no such file{hint}")
    try:
        with safe_open(file, framework="pt") as opened:
            origin = (opened.metadata() or {}).get("model", "not written by dqdet")
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    except (OSError, SafetensorError) as error:
        raise DqdetError(f"{file}: damaged or cut short ({error}); copy or make it again") from error
    if other := differences(model.state_dict(), weights):
        raise DqdetError(f"{file}: weights of another model than configured ({origin}): {other}")
    model.load_state_dict(weights)
    check_finite(model.state_dict(), str(file))


def check_finite(weights: Mapping[str, Tensor], source: str) -> None:
    """Raise DqdetError if weights, as a model holds them, are infinite or NaN. ``source`` is named in it."""
    if wrong := [name for name, tensor in weights.items() if not bool(tensor.isfinite().all())]:
        raise DqdetError(f"{source}: {len(wrong)} tensors are not finite ({_few(wrong)}); use another checkpoint")


def load_last(model: nn.Module, file: Path) -> None:
    """Fill a model with the newest weights of a training, from its ``last.ckpt``; otherwise as `load_weights`."""
    if not file.is_file():
        raise DqdetError(f"{file}: no such file; a training writes it after its first epoch, or when it is interrupted")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
        weights = {name.removeprefix("model."): state[name] for name in state if name.startswith("model.")}
    except Exception as error:  # whatever unpickling damaged bytes brings
        raise DqdetError(f"{file}: damaged or cut short ({type(error).__name__}); take {WEIGHTS} instead") from error
    if other := differences(model.state_dict(), weights):
        raise DqdetError(f"{file}: weights of another model than configured: {other}")
    model.load_state_dict(weights)
    check_finite(model.state_dict(), str(file))


def without_pretraining(config: Config) -> Config:
    """A configuration whose model is made without fetching weights, for models that are filled afterwards."""
    config = config.model_copy(deep=True)
    config.model.backbone.pretrained = False
    config.model.backbone.weights = None
    return config


def check_classes(config: Config, found: Sequence[str], source: str) -> None:
    """Raise DqdetError unless ``found``, the class names of a data set, are those the model was made for."""
    if list(found) == config.classes:
        return
    if sorted(found) == sorted(config.classes):
        difference = "the same names in another order"
    else:
        unknown = _few([name for name in found if name not in config.classes])
        absent = _few([name for name in config.classes if name not in found])
        difference = f"only in the data: {unknown or 'none'}; only in the model: {absent or 'none'}"
    raise DqdetError(
        f"{source}: its {len(found)} classes are not the {len(config.classes)} of the model ({difference})"
    )


def match_classes(config: Config, found: Sequence[str], category_ids: Sequence[int], source: str) -> list[int]:
    """The category id that a data set has for each of the model's classes, by their names.

    A model may have more classes than the data, such as those of COCO's unused ids; they get an id that no
    annotation has, so that detections of them count as wrong at no class of the data.

    Args:
        config: of the model.
        found: names of the data set's classes.
        category_ids: their ids in the data set.
        source: named in errors.

    Raises:
        DqdetError: the data has a class that the model has not, or a name is not unique.
    """
    if list(found) == config.classes:
        return list(category_ids)
    if any(config.classes.count(name) != 1 for name in found) or len(set(found)) < len(found):
        check_classes(config, found, source)
    ids = dict(zip(found, category_ids, strict=True))
    return [ids.get(name, NO_CATEGORY) for name in config.classes]


def write_file(path: Path, content: bytes | memoryview) -> None:
    """Write a file beside ``path`` and put it in its place: at any moment there is the old or the new one, whole.

    Raises:
        DqdetError: it cannot be written; what was at ``path`` is as before.
    """
    try:
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        kept = "; the previous file is kept" if path.is_file() else ""
        raise DqdetError(f"{path}: cannot be written ({error.strerror}){kept}") from error


def _summary(config: Config) -> str:
    return (
        f"{config.preset}, {config.model.family} with {config.queries.kind} queries and {len(config.classes)} classes"
    )


def differences(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], listed: int = 3) -> str:
    """How two sets of named tensors differ, in words; empty when names and shapes are the same."""
    missing = [name for name in expected if name not in found]
    unknown = [name for name in found if name not in expected]
    reshaped = [
        f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = {"missing": missing, "unknown": unknown, "of another shape": reshaped}
    return "; ".join(f"{len(names)} {kind} ({_few(names, listed)})" for kind, names in kinds.items() if names)


def _few(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(map(printable, names[:count])) + (", ..." if len(names) > count else "")
