"""Exported files on a CPU: ONNX Runtime and OpenVINO beside PyTorch and ``transformers``.

    python benchmarks/exported.py [--models deformable_detr_r50 ...] [--compile] [--repeats 7] [--json FILE]

One image, all with the same weights, drawn at random; what they find is checked equal first. Ours take pixels and give
the selected boxes (and masks at a quarter of the resolution); ``transformers`` takes a normalised image and selects
nothing. bfloat16 is measured where the processor has it. All take turns within every repeat; ratios are medians of
those within repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import families
import mask2former
from dqdet.config import Config
from dqdet.exporting import onnx_files, openvino_files
from dqdet.exporting.export import of_size
from dqdet.exporting.meaning import outputs
from dqdet.exporting.network import Network
from dqdet.exporting.tracing import trace
from dqdet.models.fast import made_fast
from timing import machine, ratio, take_turns

THEIRS = "transformers"
SIZES = {"deformable_detr_r50": (640, 640), "mask2former_r50": (512, 512), "detr_r50": (800, 1066)}
RUNTIMES = {"ONNX Runtime": (onnx_files, ".onnx"), "OpenVINO": (openvino_files, ".xml")}


def make_models(name: str) -> tuple[dict[str, nn.Module], Config]:
    """Theirs and ours with equal weights, and our configuration."""
    if name == "mask2former_r50":
        return mask2former.make_models(), mask2former.our_config()
    config = families.our_config(name)
    return families.make_models(name, config), config


def make_runs(name: str, compiled: bool, folder: Path) -> dict[str, Callable[[], object]]:
    """What is timed of a model: passes of one image by their names."""
    size = SIZES[name]
    models, config = make_models(name)
    theirs, ours = models[THEIRS], models["static"]
    config = of_size(config, size)
    images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([size])
    normalised = torch.randn(1, 3, *size)

    def of_pytorch(model: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
        network = Network(model, config)

        @torch.inference_mode()
        def run() -> tuple[Tensor, ...]:
            return network(images, sizes)

        return run

    @torch.inference_mode()
    def run_theirs() -> object:
        return theirs(normalised)

    runs = {THEIRS: run_theirs, "PyTorch, float32": of_pytorch(ours)}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # without, it is many times slower than float32
        runs["PyTorch, bfloat16"] = of_pytorch(made_fast(ours, "bf16"))
    if compiled:
        runs["PyTorch, float32, compiled"] = of_pytorch(made_fast(ours, "fp32", compiled=True))
    program = trace(Network(ours, config), ours, config, size)
    expected = dict(zip(outputs(config), runs["PyTorch, float32"](), strict=True))["scores"]
    for runtime, (module, suffix) in RUNTIMES.items():
        file = folder / f"{name}{suffix}"
        module.write(program, list(outputs(config)), {}, file)
        session = module.Session(file)
        runs[runtime] = lambda session=session: session.run(images.numpy(), sizes.numpy())
        scores = dict(zip(outputs(config), runs[runtime](), strict=True))["scores"]
        torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=1e-3, atol=1e-3)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description="Exported files against PyTorch and transformers.")
    parser.add_argument("--models", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--compile", action="store_true", help="compiled networks, too")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    found = []
    print(machine())
    for name in options.models:
        with TemporaryDirectory() as folder:
            seconds = take_turns(make_runs(name, options.compile, Path(folder)), options.repeats)
        print(f"\n{name}, {SIZES[name][0]}x{SIZES[name][1]}: median s, transformers / it")
        for run, times in seconds.items():
            faster = ratio(seconds[THEIRS], times)
            found.append({"model": name, "run": run, "seconds": times, "ratio": faster})
            print(f"{run:28}{statistics.median(times):8.3f}{faster:8.2f}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({**machine(), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
