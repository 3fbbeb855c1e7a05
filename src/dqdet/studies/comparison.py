"""Static against modulated queries: the same trainings with both, over several seeds, as a table.

The two trainings of a pair differ in ``queries.kind`` alone. Runs that are in the folder already are not repeated, so
an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

import dqdet
from dqdet.runs.folder import load_metrics

KINDS = ("static", "modulated")

Results = dict[str, dict[str, list[dict[str, float]]]]  # experiment -> kind of queries -> metrics of each seed


class Experiment(NamedTuple):
    """What is trained with both kinds of queries."""

    preset: str
    options: dict[str, Any]  # overrides
    metrics: tuple[str, ...]  # that are reported; of the first one the difference too


def run(experiment: Experiment, kind: str, seed: int, folder: Path) -> None:
    """One training; its metrics end in the folder."""
    if not (folder / "metrics.json").exists():
        options = {**experiment.options, "queries.kind": kind, "train.seed": seed}
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            dqdet.train(experiment.preset, out=folder, **options)


def table(experiments: Mapping[str, Experiment], results: Results) -> list[str]:
    """Lines of Markdown: mean and standard deviation over seeds, and the difference of each pair of runs."""
    lines = ["| | metric | static | modulated | difference |", "| --- | --- | --- | --- | --- |"]
    for label, kinds in results.items():
        for metric in experiments[label].metrics:
            static, modulated = ([metrics[metric] for metrics in kinds[kind]] for kind in KINDS)
            gain = spread([b - a for a, b in zip(static, modulated, strict=True)], "+")
            difference = gain if metric == experiments[label].metrics[0] else ""
            lines.append(f"| {label} | {metric} | {spread(static)} | {spread(modulated)} | {difference} |")
    return lines


def spread(values: Sequence[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ± {deviation:.3f}"


def study(name: str, title: str, about: str, experiments: Callable[[int], dict[str, Experiment]], steps: int) -> None:
    """A script that trains all experiments with both kinds of queries and prints the table.

    Args:
        name: of the study's target in the Makefile and of its folder in ``runs``.
        title: of the table.
        about: a paragraph that says what was done, with places for ``{steps}`` and ``{seeds}``.
        experiments: label -> experiment, of so many optimiser steps.
        steps: of a training, unless the command line says another number.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--out", type=Path, default=Path("runs") / name)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time, one thread each")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    chosen = experiments(arguments.steps)

    folders = {
        (label, kind, seed): arguments.out / f"{label.lower().replace(' ', '-')}-{kind}-{seed}"
        for seed, label, kind in product(range(arguments.seeds), chosen, KINDS)
    }
    with ProcessPoolExecutor(
        arguments.jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = {
            place: pool.submit(run, chosen[place[0]], place[1], place[2], folder) for place, folder in folders.items()
        }
        for (label, kind, seed), job in jobs.items():
            job.result()
            metrics = load_metrics(folders[label, kind, seed])
            found = ", ".join(f"{metric} {metrics[metric]:.3f}" for metric in chosen[label].metrics)
            print(f"{label}, {kind}, seed {seed}: {found}", flush=True)

    results: Results = {
        label: {kind: [load_metrics(folders[label, kind, seed]) for seed in range(arguments.seeds)] for kind in KINDS}
        for label in chosen
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, PyTorch {torch.__version__}"
    text = "\n".join(
        [
            f"# {title}",
            "",
            about.format(steps=arguments.steps, seeds=arguments.seeds),
            "",
            *table(chosen, results),
            "",
            f"Measured on {machine}. Again: `make {name}`.",
            "",
        ]
    )
    print(f"\n{text}")
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")
