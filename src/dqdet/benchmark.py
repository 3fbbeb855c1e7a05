"""What a trained model costs, measured on the artefact that is used: a run folder, or an exported file."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

import dqdet
from dqdet.config import Precision
from dqdet.errors import DqdetError
from dqdet.exporting.formats import is_exported
from dqdet.runs.folder import PREDICTED

WARM_UP = 3  # passes
PAUSE = 0.05  # seconds before each pass, in which a processor cools and others have their turn
PHOTOGRAPH = (480, 640)  # height and width of the images of COCO


@dataclass(frozen=True)
class Conditions:
    """How models are measured.

    Attributes:
        precision: of a run's weights and features; exported files have their own.
        compiled: compile a run's network.
        size: height and width of the pictures, which are then prepared as the model's configuration says.
        batch: images of a pass that throughput is measured with; latency is that of one image.
        repeats: passes of each kind.
        overrides: of the model's configuration, and of its data where ``data`` is set.
        data: measure the metrics on the validation split, too.
    """

    precision: Precision = "fp32"
    compiled: bool = False
    size: tuple[int, int] = PHOTOGRAPH
    batch: int = 8
    repeats: int = 30
    overrides: Mapping[str, Any] | None = None
    data: bool = False


def benchmark(models: Sequence[str], conditions: Conditions) -> list[dict[str, Any]]:
    """Latency, throughput, memory and, if wanted, metrics of models, each in a process of its own.

    A pass is the network and the selection of what it found, from pictures that are resized already.

    Args:
        models: anything that `dqdet.load` takes.
        conditions: the same for all.

    Returns:
        for each model ``latency_ms`` (median) and ``latency_p95_ms`` of one image, ``images_per_s`` in batches,
        ``memory_mib`` (peak, of the card where there is one, otherwise of the process), ``pixels`` (height and width
        that the network sees), ``device``, the conditions, and ``metrics``.

    Raises:
        DqdetError: as `dqdet.load` and `dqdet.evaluate`; or a process was ended, for lack of memory perhaps.
    """
    context = multiprocessing.get_context("spawn")
    measured = []
    for model in models:
        with ProcessPoolExecutor(1, context) as pool:
            try:
                measured.append(pool.submit(_measured, model, conditions).result())
            except BrokenProcessPool as error:
                raise DqdetError(f"{model}: its process was ended, for lack of memory perhaps") from error
    return measured


def _measured(model: str, conditions: Conditions) -> dict[str, Any]:
    overrides = dict(conditions.overrides or {})
    fast: dict[str, Any] = {"precision": conditions.precision, "compile": conditions.compiled}
    if is_exported(model):
        fast = {}
    prepared_by = {
        name: value
        for name, value in overrides.items()
        if not conditions.data or any(name == one or name.startswith(f"{one}.") for one in PREDICTED)
    }
    predictor = dqdet.load(model, **fast, **prepared_by)
    if predictor.config.data.task == "video":
        raise DqdetError(f"{model}: a model of videos; images alone are measured")
    height, width = conditions.size
    pixels = np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8)
    prepared = predictor.prepared(Image.fromarray(pixels))
    if predictor.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(predictor.device)
    one, many = ([prepared] * count for count in (1, conditions.batch))
    latencies = _seconds(lambda: predictor.outcomes_of(one), conditions.repeats)
    batches = _seconds(lambda: predictor.outcomes_of(many), conditions.repeats)
    found = {
        "model": model,
        **asdict(conditions),
        **({"precision": "as exported", "compiled": False} if is_exported(model) else {}),
        "device": torch.cuda.get_device_name(predictor.device) if predictor.device.type == "cuda" else "cpu",
        "pixels": tuple(prepared.pixels.shape[1:]),
        "latency_ms": 1000 * statistics.median(latencies),
        "latency_p95_ms": 1000 * float(np.quantile(latencies, 0.95)),
        "images_per_s": conditions.batch / statistics.median(batches),
        "memory_mib": _peak_memory(predictor.device),
    }
    if conditions.data:
        with TemporaryDirectory() as folder:
            found["metrics"] = dqdet.evaluate(model, Path(folder) / "eval", **fast, **overrides)
    return found


def _seconds(run: Callable[[], object], repeats: int) -> list[float]:
    for _ in range(WARM_UP):
        run()
    seconds = []
    for _ in range(repeats):
        time.sleep(PAUSE)
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
