"""Whole models: inference and training step of every family, against ``transformers``, eager and compiled.

Those of a family have equal weights. A step is forward, loss and backward pass; inputs lie on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import nn

import families
import mask2former
from dqdet.losses import make_loss
from dqdet.nn.flops import flop_counter
from dqdet.types import Batch
from gpu.clocks import Run, clock, matrix_product, peak_memory, times
from gpu.measurements import Measurement, Result, Setting, one_line
from timing import make_input

THEIRS = families.THEIRS
KINDS = (THEIRS, "static", "modulated")
QUERIES = "queries alone"  # making the modulated ones
PRECISIONS = ("bf16", "fp32")
BATCHES = (1, 8)
TASKS = families.TASKS
MASK2FORMER = "mask2former_r50_coco_instance"
PRESETS = (*families.FAMILIES, MASK2FORMER)
TINY_PRESETS = ("deformable_detr_r50",)

PHOTOGRAPH = (800, 1066)  # height, width: of 640 x 480 with its shorter side resized to 800
PADDED = (800, 1088)  # as Mask2Former pads it
SQUARES = {"lw_detr_small": (640, 640), "rf_detr_nano": (384, 384)}  # of presets that are published for these
SMALL = (320, 416)  # where equality is checked, if not in such a square
TINY = (64, 96)


class Family(NamedTuple):
    """The models of a family on the device, and how they are run."""

    models: dict[str, nn.Module]
    criterion: nn.Module
    make_batch: Callable[[tuple[int, int], int], Batch]
    make_run: Callable[..., Run]
    check_equal: Callable[[dict[str, nn.Module], Any, Batch], None]


@lru_cache(maxsize=1)  # measurements of a family follow each other
def load(preset: str, device: torch.device) -> Family:
    if preset == MASK2FORMER:
        config, models = mask2former.our_config(), mask2former.make_models()
        module, make_inputs = mask2former, mask2former.make_masks
    else:
        config = families.our_config(preset)
        models, module, make_inputs = families.make_models(preset, config), families, make_input
    return Family(
        models={kind: model.to(device) for kind, model in models.items()},
        criterion=make_loss(config.loss),
        make_batch=lambda size, batch: Batch(*make_inputs(size, batch)).to(device),
        make_run=module.make_run,
        check_equal=module.check_equal,
    )


def use_tf32(enabled: bool) -> None:
    torch.set_float32_matmul_precision("high" if enabled else "highest")
    torch.backends.cudnn.allow_tf32 = enabled


def measure_peaks(setting: Setting) -> Result:
    """The matrix product that a share of peak is a share of."""
    use_tf32(True)
    types = {"bf16": torch.bfloat16, "fp32": torch.float32}
    return {"flops": {name: matrix_product(setting.device, dtype, setting.tiny) for name, dtype in types.items()}}


def measure_equality(setting: Setting, preset: str) -> Result:
    """Whether the models of a family compute the same, in float32."""
    use_tf32(False)
    family = load(preset, setting.device)
    families.set_mode(family.models, "inference")
    family.check_equal(
        family.models, family.criterion, family.make_batch(TINY if setting.tiny else SQUARES.get(preset, SMALL), 1)
    )
    return {"preset": preset, "equal": list(family.models)}


def measure_eager(setting: Setting, preset: str, precision: str, batch: int, task: str) -> Result:
    """All kinds of a family in turns; operations too, and of inference how long queries take to make."""
    use_tf32(True)
    family = load(preset, setting.device)
    families.set_mode(family.models, task)
    autocast, inputs = conditions(setting, family, preset, precision, batch)
    runs = {
        kind: family.make_run(kind, task, model, family.criterion, inputs, autocast)
        for kind, model in family.models.items()
    }
    found: Result = {"preset": preset, "precision": precision, "batch": batch, "task": task, "peak_mib": {}}
    errors = []
    for kind, run in list(runs.items()):
        for model in family.models.values():
            model.zero_grad()
        try:
            run()
            family.models[kind].zero_grad()
            found["peak_mib"][kind] = peak_memory(run, setting.device, family.models[kind])
        except Exception as error:  # the other kinds go on
            errors.append(f"{kind}: {one_line(error)}")
            del runs[kind]
    if task == "inference" and "modulated" in runs:
        runs[QUERIES] = queries_alone(family.models["modulated"], runs["modulated"], autocast)
    found["seconds"] = times(runs, setting.device, setting.tiny)
    found["flops"] = {kind: operations(family, kind, task, inputs, autocast) for kind in runs if kind in KINDS[1:]}
    return found | ({"error": "; ".join(errors)} if errors else {})


def measure_compiled(setting: Setting, preset: str, precision: str, batch: int, task: str, kind: str) -> Result:
    """One kind, compiled for these shapes."""
    use_tf32(True)
    torch.compiler.reset()
    family = load(preset, setting.device)
    families.set_mode(family.models, task)
    autocast, inputs = conditions(setting, family, preset, precision, batch)
    for model in family.models.values():
        model.zero_grad()
    model = torch.compile(family.models[kind], dynamic=False)
    run = family.make_run(kind, task, model, family.criterion, inputs, autocast)
    first = clock(setting.device)(run)
    run()
    model.zero_grad()
    return {
        "preset": preset,
        "precision": precision,
        "batch": batch,
        "task": task,
        "first_run_s": first,
        "peak_mib": {kind: peak_memory(run, setting.device, model)},
        "seconds": times({kind: run}, setting.device, setting.tiny),
    }


def conditions(
    setting: Setting, family: Family, preset: str, precision: str, batch: int
) -> tuple[torch.autocast | None, Batch]:
    """Autocast, if the precision needs it, and the batch."""
    autocast = torch.autocast(setting.device.type, torch.bfloat16) if precision == "bf16" else None
    size = TINY if setting.tiny else SQUARES.get(preset, PADDED if preset == MASK2FORMER else PHOTOGRAPH)
    return autocast, family.make_batch(size, batch)


def queries_alone(model: nn.Module, run: Run, autocast: torch.autocast | None) -> Run:
    """Makes the queries of what ``run`` does, from the same feature map."""
    given: list[Any] = []
    queries = model.get_submodule("queries")
    hook = queries.register_forward_pre_hook(lambda _, arguments: given.extend(arguments))
    run()
    hook.remove()

    def make() -> object:
        with torch.inference_mode(), torch.autocast(given[0].device.type, torch.bfloat16, enabled=autocast is not None):
            return queries(*given)

    return make


def operations(family: Family, kind: str, task: str, inputs: Batch, autocast: torch.autocast | None) -> int:
    """Floating-point operations of a run; sampling counts in the forward pass alone."""
    model = family.models[kind]
    with flop_counter() as counter:
        if task == "step":
            family.make_run(kind, task, model, family.criterion, inputs, autocast)()
        else:
            model(inputs.images, inputs.padding)
    return counter.get_total_flops()


def measurements(setting: Setting) -> list[Measurement]:
    """Eager before compiled, bf16 before fp32: what matters most first.

    On a CPU nothing is compiled, and no step in bf16, which takes minutes there.
    """
    presets = TINY_PRESETS if setting.tiny else PRESETS
    batches = BATCHES[:1] if setting.tiny else BATCHES
    found = [Measurement("peak", partial(measure_peaks, setting))]
    for precision, preset in product(PRECISIONS, presets):
        if precision == PRECISIONS[0]:
            found.append(Measurement(f"{preset}-equal", partial(measure_equality, setting, preset)))
        tasks = TASKS[:1] if setting.device.type == "cpu" and precision == "bf16" else TASKS
        for batch, task in product(batches, tasks):
            measure = partial(measure_eager, setting, preset, precision, batch, task)
            found.append(Measurement(name(preset, precision, batch, task), measure))
    if setting.device.type == "cpu":
        return found
    for precision, preset, batch, task in product(PRECISIONS, presets, batches, TASKS):
        for kind in KINDS:
            if kind != THEIRS or preset == MASK2FORMER or families.FAMILIES[preset]:
                measure = partial(measure_compiled, setting, preset, precision, batch, task, kind)
                found.append(Measurement(name(preset, precision, batch, task, kind), measure))
    return found


def name(preset: str, precision: str, batch: int, task: str, compiled: str = "") -> str:
    """Of a measurement; ``compiled`` is the kind that is, empty for all kinds eager."""
    return "-".join([preset, precision, str(batch), task, *([f"compiled-{compiled}"] if compiled else [])])
