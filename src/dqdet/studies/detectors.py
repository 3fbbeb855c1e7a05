"""Table 2 in small: every detector with static and with modulated queries, on generated scenes.

    python -m dqdet.studies.detectors --out FOLDER [--seeds 3] [--steps 200] [--jobs 2] [--table docs/detectors.md]

All trainings have the same steps, data and seeds; the two of a pair differ in ``queries.kind`` alone. Runs that are
in the folder already are not repeated, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import dqdet
from dqdet.checkpoints.folder import load_metrics

# Each family as its preset has it, at the size of `scenes_tiny`.
PRESETS = {
    "DETR": "detr_r50",
    "Conditional-DETR": "conditional_detr_r50",
    "SMCA-DETR": "smca_detr_r50",
    "DAB-DETR": "dab_detr_r50",
    "Deformable-DETR": "deformable_detr_r50_refine",
    "DAB-Deformable-DETR": "dab_deformable_detr_r50",
}
KINDS = ("static", "modulated")
BATCH = 8


def options(preset: str, kind: str, seed: int, steps: int) -> dict[str, Any]:
    """Overrides that make a published preset small; its loss and its variant stay."""
    model: dict[str, Any] = {
        "backbone": {"name": "test_resnet", "pretrained": False, "freeze": False},
        "hidden": 64,
        "heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "feedforward": 256,
        "dropout": 0.0,
    }
    if "deformable" in preset:
        model["levels"] = 3
    return {
        "model": model,
        "queries": {"kind": kind, "count": 30, "hidden": 128},
        "data": {
            "kind": "scenes",
            "resize": [128],
            "max_size": 128,
            "val_resize": 128,
            "crop": False,
            "workers": 0,
            "scenes": {"train_images": steps * BATCH},
        },
        "train": {
            "epochs": 1,
            "batch": BATCH,
            "drop": [0.8],
            "warmup": 20,
            "lr": 1e-3,
            "backbone_lr": 1e-3,
            "offsets_lr": 1e-4,
            "seed": seed,
        },
    }


def run(preset: str, kind: str, seed: int, steps: int, folder: Path) -> None:
    """One training; its metrics end in the folder."""
    if not (folder / "metrics.json").exists():
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            dqdet.train(preset, out=folder, **options(preset, kind, seed, steps))


def table(results: dict[str, dict[str, list[dict[str, float]]]], seeds: int, steps: int) -> str:
    """Markdown: mean and standard deviation over seeds, and the difference of each pair of runs."""
    lines = [
        "# Static against modulated queries, six detectors",
        "",
        f"Generated scenes of 128 pixels, 200 held-out images, {steps} steps of {BATCH} images, {seeds} seeds: mean",
        "and standard deviation over the seeds. The models are tiny (hidden size 64, 1 + 2 layers, 30 queries,",
        "ratio 4) and far from converged; the single-scale ones see a map of 4 x 4 cells. These numbers show that",
        "every family trains with both kinds of queries under one budget. They do not predict results on real data.",
        "",
        "| detector | AP static | AP modulated | difference | AP50 static | AP50 modulated |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for family, kinds in results.items():
        ap = {kind: [metrics["AP"] for metrics in kinds[kind]] for kind in KINDS}
        ap50 = {kind: [metrics["AP50"] for metrics in kinds[kind]] for kind in KINDS}
        gain = [b - a for a, b in zip(ap["static"], ap["modulated"], strict=True)]
        cells = [family, *(spread(ap[kind]) for kind in KINDS), spread(gain, "+"), *(spread(ap50[k]) for k in KINDS)]
        lines.append(f"| {' | '.join(cells)} |")
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, PyTorch {torch.__version__}"
    lines += ["", f"Measured on {machine}. Again: `make study-detectors`.", ""]
    return "\n".join(lines)


def spread(values: list[float], sign: str = "") -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.3f} ± {deviation:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/study-detectors"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at a time, one thread each")
    parser.add_argument("--table", type=Path, help="write the table to this file")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    folders = {
        (family, kind, seed): arguments.out / f"{preset}-{kind}-{seed}"
        for (family, preset), kind, seed in product(PRESETS.items(), KINDS, range(arguments.seeds))
    }
    with ProcessPoolExecutor(
        arguments.jobs, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        jobs = {
            place: pool.submit(run, PRESETS[place[0]], place[1], place[2], arguments.steps, folder)
            for place, folder in folders.items()
        }
        for (family, kind, seed), job in jobs.items():
            job.result()
            metrics = load_metrics(folders[family, kind, seed])
            print(f"{family}, {kind}, seed {seed}: AP {metrics['AP']:.3f}, AP50 {metrics['AP50']:.3f}", flush=True)

    results = {
        family: {kind: [load_metrics(folders[family, kind, seed]) for seed in range(arguments.seeds)] for kind in KINDS}
        for family in PRESETS
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    text = table(results, arguments.seeds, arguments.steps)
    print(f"\n{text}")
    if arguments.table:
        arguments.table.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
