"""Table 9: time of a training step and of inference, peak memory and parameters, for each kind of queries."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dqdet.config import Config
from dqdet.data import open_dataset
from dqdet.data.loader import collate
from dqdet.errors import DqdetError
from dqdet.losses import make_loss
from dqdet.models import create_model
from dqdet.runs.folder import without_pretraining
from dqdet.studies.grouped import ARMS
from dqdet.studies.report import OF_PAPER, Report, table
from dqdet.studies.request import Request, subjects
from dqdet.studies.small import DETECTORS, detector, mask2former

REPEATS = 7
OWN = {label: detector(preset) for label, preset in DETECTORS.items()} | {"Mask2Former": mask2former("instance")}

# GPU hours of a training, and images a second: ratios to static.
PAPER = {
    ("deformable_detr_r50_refine", "modulated"): (69 / 61, 13.3 / 13.1),
    ("mask2former_r50_coco_instance", "modulated"): (80 / 71, 5.4 / 5.2),
}


def run(request: Request) -> Report:
    """Time all kinds of queries in turns, so that a machine whose speed drifts favours none of them.

    Raises:
        DqdetError: as `dqdet.studies.study`.
    """
    if request.model is not None:
        raise DqdetError("--model is of combinations and coefficients; cost makes its models")
    if request.report:
        raise DqdetError("--report is of studies that train; cost measures anew")
    every = subjects(request, OWN)
    request.check_labels([*every, *ARMS])
    own, arms = request.chosen(every), request.chosen(ARMS)
    results: dict[str, Any] = {}
    rows = []
    for number, (label, subject) in enumerate(own.items(), start=1):
        configs = {arm: subject.config(request.overrides, arms[arm].options) for arm in arms}
        results[label] = measured = _measure(configs, request.seeds or REPEATS)
        request.say(f"{number} of {len(own)} models, {label}")
        first = next(iter(measured))
        for arm, numbers in measured.items():
            steps, inferences = (_ratio(measured[first][task], numbers[task]) for task in ("step", "inference"))
            known = PAPER.get((subject.published, arm), (None, None)) if first == "static" else (None, None)
            rows.append(
                [
                    label,
                    arm,
                    f"{numbers['parameters'] / 1e6:.2f}",
                    *(f"{statistics.median(numbers[task]):.4f}" for task in ("step", "inference")),
                    *(f"{numbers[f'{task} memory'] / 2**20:.0f}" for task in ("step", "inference")),
                    f"{steps:.2f}",
                    "" if known[0] is None else f"{known[0]:.2f}",
                    f"{inferences:.2f}",
                    "" if known[1] is None else f"{known[1]:.2f}",
                ]
            )
    header = ["model", "queries", "parameters, M", "step, s", "inference, s", "step, MiB", "inference, MiB"]
    to = next(iter(arms))
    header += [f"step / {to}", f"the {OF_PAPER}", f"inference / {to}", f"the {OF_PAPER}"]
    return Report(
        title="What each kind of queries costs",
        results=results,
        tables=[table(header, rows)],
        note="Medians; a step is forward pass, loss and backward pass of a batch, inference is of one image. Memory is "
        "the peak of what they allocate. Ratios are medians over repeats, in which all kinds take turns.",
    )


def _measure(configs: dict[str, Config], repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of every repeat, peak memory in bytes and parameters, by kind of queries.

    A step is forward pass, loss and backward pass of ``train.batch / train.accumulate`` images; inference is of one.
    """
    config = next(iter(configs.values()))
    dataset = open_dataset(config.data, "train", config.train.seed)
    size = config.train.batch // config.train.accumulate
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = collate([dataset[number % len(dataset)] for number in range(size)]).to(device)
    one = batch.images[:1], batch.padding[:1]
    measured: dict[str, dict[str, Any]] = {}
    runs: dict[tuple[str, str], Callable[[], None]] = {}
    for arm, options in configs.items():
        filled = {"classes": dataset.classes, "category_ids": dataset.category_ids, "stuff": list(dataset.stuff)}
        torch.manual_seed(options.train.seed)
        model = create_model(without_pretraining(options.model_copy(update=filled))).to(device)
        criterion = make_loss(options.loss)

        def step(model=model, criterion=criterion) -> None:
            model.train()
            model.zero_grad()
            criterion(model(batch.images, batch.padding, batch.targets), batch.targets).total.backward()

        def inference(model=model) -> None:
            model.eval()
            with torch.inference_mode():
                model(*one)

        runs[arm, "step"], runs[arm, "inference"] = step, inference
        measured[arm] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    for arm, task in runs:
        runs[arm, task]()  # the first one is slower
        measured[arm][f"{task} memory"] = _peak_memory(runs[arm, task], device)
        measured[arm][task] = []
    for _ in range(repeats):
        for (arm, task), timed in runs.items():
            _wait(device)
            start = time.perf_counter()
            timed()
            _wait(device)
            measured[arm][task].append(time.perf_counter() - start)
    return measured


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _peak_memory(work: Callable[[], None], device: torch.device) -> int:
    """The most bytes of tensors that exist at a time during some work, beyond those from before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        work()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    changes = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    exists = peak = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        exists += change.nbytes()
        peak = max(peak, exists)
    return peak


def _ratio(first: list[float], second: list[float]) -> float:
    """How much longer the second takes: pair by pair within a repeat, so that slow moments of the machine cancel."""
    return statistics.median(b / a for a, b in zip(first, second, strict=True))
