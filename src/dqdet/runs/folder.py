"""The run folder: a model that describes itself, and what is needed to continue its training.

- ``config.yaml``: every option, resolved, with the class names (`dqdet.config.to_yaml`);
- ``model.safetensors``: the weights of the best validation so far (averaged ones, if ``train.ema`` is set);
- ``metrics.json``: what that validation measured, and after which step and epoch;
- ``last.ckpt``: the state of the training, for ``--resume``; ``logs/``: TensorBoard and CSV.

The first two are the model. Nothing in them is executed when they are loaded. Every file is written beside
the old one and then takes its place, so that an interruption or a full disk leaves the old one as it was.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dqdet.config import Config, from_yaml, to_yaml
from dqdet.errors import DqdetError, printable
from dqdet.formats.records import FINITE, are_numbers
from dqdet.models import create_model
from dqdet.models.detector import Detector

CONFIG = "config.yaml"
WEIGHTS = "model.safetensors"
METRICS = "metrics.json"
LAST = "last.ckpt"

NO_CATEGORY = -1

# The options that matter to a model that is trained: where the data is, how large its images are, what is reported.
MEASURED = (
    *(f"data.{name}" for name in ("kind", "task", "root", "val", "max_size", "val_resize", "val_max_size")),
    *(f"data.scenes.{name}" for name in ("size", "val_images", "frames", "seed")),
    "inference",
)
NOT_MEASURED = "has no effect on a model that is trained"


def new_folder(name: str) -> Path:
    """``runs/NAME``, or the first of ``runs/NAME-2``, ``runs/NAME-3``, ... that has no run."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for path in (Path("runs") / name for name in names) if not _written(path))


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
    write_file(path / CONFIG, to_yaml(config).encode())


def save_folder(path: Path, model: nn.Module, config: Config, metrics: Mapping[str, float]) -> None:
    """Write a model with its configuration and what was measured of it.

    Raises:
        DqdetError: a file cannot be written; the previous one is kept.
    """
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_file(path / CONFIG, to_yaml(config).encode())
    write_file(path / WEIGHTS, save(weights, metadata={"format": "pt", "model": _summary(config)}))
    save_metrics(path, metrics)


def save_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    write_file(path / METRICS, (json.dumps(metrics, indent=2, ensure_ascii=False) + "\n").encode())


def load_folder(path: Path) -> tuple[Detector, Config]:
    """The model of a run folder, on the CPU and ready for inference, and its configuration.

    Raises:
        DqdetError: a file is missing or damaged, or the weights are of another model than the configuration.
    """
    config = load_config(path)
    model = create_model(without_pretraining(config))
    load_weights(model, path / WEIGHTS)
    model.eval()
    return model, config


def load_config(path: Path) -> Config:
    """The configuration of a run folder.

    Raises:
        DqdetError: there is none, or it cannot be read.
    """
    if not path.is_dir():
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
    """What was measured of the model of a run folder; empty when nothing was, yet."""
    file = path / METRICS
    try:
        metrics = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise DqdetError(f"{file}: cannot be read ({error}); remove it or evaluate again") from error
    if not (isinstance(metrics, dict) and are_numbers([*metrics.values()], FINITE)):
        raise DqdetError(f"{file}: not metrics, which are numbers by their names; remove it or evaluate again")
    return metrics


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
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
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
