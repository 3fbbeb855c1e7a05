"""Requests a second of `dqdet serve` with 32 clients, against the images a second of `dqdet benchmark`.

    python benchmarks/serving.py [MODEL] [--clients 32] [--requests 2000] [--repeats 3] [--json FILE]

Of a run folder, or of ``scenes_tiny`` as it is before training. Pictures are PNG files of scenes of 128x128. Both take
turns; ratios are medians of those within repeats. Clients run on the same machine and need a part of it: how much, and
what the server takes for HTTP (its first thread) and with the model (reading pictures, the network, JSON), is in
milliseconds of a processor for each request, beside all that the processors could give in that time. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clients import ask, scenes, served
from dqdet.benchmark import Conditions, benchmark
from dqdet.config import resolve
from dqdet.data import open_dataset
from dqdet.models import create_model
from dqdet.runs.folder import save_folder
from timing import machine

SIDE = 128


def untrained(folder: Path) -> Path:
    """A run of the small model on scenes."""
    config = resolve("scenes_tiny", {})
    dataset = open_dataset(config.data, "val", 0)
    config.classes, config.category_ids = dataset.classes, dataset.category_ids
    save_folder(folder, create_model(config), config, {})
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description="`dqdet serve` against `dqdet benchmark`.")
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    pictures = scenes(64, SIDE)
    measured = []
    with TemporaryDirectory() as folder:
        model = options.model or untrained(Path(folder))
        with served(model) as server:
            ask(server, pictures, options.clients, 200)  # warm-up
            for _ in range(options.repeats):
                (alone,) = benchmark([str(model)], Conditions(size=(SIDE, SIDE)))
                before, own, start = server.cpu_seconds(), time.process_time(), time.perf_counter()
                answers = ask(server, pictures, options.clients, options.requests)
                seconds = time.perf_counter() - start
                clients, taken = time.process_time() - own, server.cpu_seconds()
                taken.subtract(before)
                rate = len(answers) / seconds
                each = 1000 / len(answers)
                with_model = taken["model"] + taken["dqdet-sample"]
                available = seconds * len(os.sched_getaffinity(0))
                assert all(answer.status == 200 for answer in answers)
                measured.append(
                    {
                        "benchmark_images_per_s": alone["images_per_s"],
                        "requests_per_s": rate,
                        "ratio": rate / alone["images_per_s"],
                        "ratio_without_clients": rate / alone["images_per_s"] / (1 - clients / available),
                        "cpu_ms_available": available * each,
                        "cpu_ms_clients": clients * each,
                        "cpu_ms_http": (taken.total() - with_model) * each,
                        "cpu_ms_model": with_model * each,
                        "p95_ms": 1000 * float(np.quantile([answer.seconds for answer in answers], 0.95)),
                    }
                )
    medians = {name: statistics.median(one[name] for one in measured) for name in measured[0]}
    print(f"{options.clients} clients, {options.requests} requests, {options.repeats} repeats, {machine()}\n")
    for name, value in medians.items():
        print(f"{name:28}{value:10.3f}   {', '.join(f'{one[name]:.3f}' for one in measured)}")
    if options.json:
        options.json.write_text(json.dumps({**machine(), "medians": medians, "repeats": measured}, indent=1))


if __name__ == "__main__":
    main()
