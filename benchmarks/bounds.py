"""How much faster than ``transformers`` a model can be that computes the same products and convolutions.

    python benchmarks/bounds.py [--models mask2former_r50 detr_r50 ...] [--repeats 3] [--json FILE]

Matrix products, convolutions and attention run in the same kernels on both sides, forward and backward. Where they are
a share s of the time that ``transformers`` takes, a model of nothing else takes s of it, and is 1 / s times as fast.
Shares are of the operators' own times in ``torch.profiler``, medians over passes; the models and inputs are those of
``mask2former.py``, ``deformable_detr.py`` and ``families.py``. The same shares of ours say how near we are.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

import deformable_detr
import families
import mask2former
from dqdet.losses import make_loss
from dqdet.types import Batch
from timing import machine, make_input

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "conv", "scaled_dot_product")  # in the names of operators
DENSE = ("detr_r50", "conditional_detr_r50", "dab_detr_r50")
TASKS = ("inference", "step")
KINDS = ("transformers", "static", "modulated")


def runs(name: str) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Task, kind of model and what is profiled, one after the other."""
    for task in TASKS:
        for kind in KINDS:
            match name:
                case "mask2former_r50":
                    yield task, kind, mask2former.make_named(f"{task}, {kind}", 512, 1)
                case "deformable_detr_r50":
                    yield task, kind, deformable_detr.make_run(f"{task}, {kind}", 640, 1)
                case _:
                    config = families.our_config(name)
                    models = families.make_models(name, config)
                    families.set_mode(models, task)
                    batch = Batch(*make_input((480, 480), 1))
                    yield task, kind, families.make_run(kind, task, models[kind], make_loss(config.loss), batch)


def times(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of products and convolutions in a pass, and of all operators."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run()
    every = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    products = sum(seconds for key, seconds in every.items() if is_product(key))
    return products, sum(every.values())


def is_product(key: str) -> bool:
    name = key.removeprefix("aten::").lstrip("_")
    return key.startswith("aten::") and (name in PRODUCTS or any(part in name for part in PRODUCTS[-2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", default=["mask2former_r50", "deformable_detr_r50", *DENSE])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; seconds of products and convolutions, of all, share\n")
    found = {}
    for name in options.models:
        for task, kind, run in runs(name):
            run()  # the first one is slower
            passes = [times(run) for _ in range(options.repeats)]
            products, total = (statistics.median(column) for column in zip(*passes, strict=True))
            share = statistics.median(some / every for some, every in passes)
            found[f"{name}, {task}, {kind}"] = {"products": products, "all": total, "share": share}
            bound = f"   at most {1 / share:.2f} times as fast" if kind == KINDS[0] else ""
            print(f"{name:24}{task:12}{kind:14}{products:8.3f}{total:8.3f}{share:7.2f}{bound}", flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**machine(), "repeats": options.repeats, "found": found}, file, indent=1)


if __name__ == "__main__":
    main()
