"""All families of detectors, static and modulated, and ``transformers`` where it has the model; most with ResNet-50.

    python benchmarks/families.py [--size 640] [--repeats 5] [--families detr_r50 ...] [--json FILE]

Prints one table: parameters, decoder GFLOPs (everything after the encoder, at inference), medians of inference and
of a training step (forward, loss, backward) on one image, and ratios. The models of a family have the same weights,
and the same outputs, which is checked before they are timed; they take turns within every repeat.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import LwDetrViTConfig, PreTrainedModel, ResNetConfig
from transformers.models.rf_detr.configuration_rf_detr import RfDetrDinov2Config

from dqdet.config import Config, LwDetrConfig, resolve
from dqdet.errors import DqdetError
from dqdet.losses import SetLoss
from dqdet.models import create_model
from dqdet.nn.flops import decoder_flops
from dqdet.runs.upgrade import upgrade
from dqdet.types import Batch
from dqdet.weights import PUBLISHED
from timing import CLASSES, Seconds, machine, make_input, make_task, ratio, take_turns, their_labels, train_same_stages

# Preset -> name in transformers, None where it does not have the model.
FAMILIES = {
    "detr_r50": "Detr",
    "conditional_detr_r50": "ConditionalDetr",
    "smca_detr_r50": None,
    "dab_detr_r50": "DabDetr",
    "deformable_detr_r50": "DeformableDetr",
    "dab_deformable_detr_r50": None,
    "dino_r50": None,
    "lw_detr_small": "LwDetr",
    "rf_detr_nano": "RfDetr",
}
THEIRS = "transformers"
TASKS = ("inference", "step")


def their_plain_model(name: str, config: Config) -> PreTrainedModel:
    """The same of LW-DETR and RF-DETR, with one group of queries, as theirs has in inference mode."""
    model, backbone = config.model, config.model.backbone
    assert isinstance(model, LwDetrConfig)
    side = backbone.patch * backbone.positions
    windowed = [block for block in range(backbone.taps[-1]) if block not in backbone.global_blocks]
    if name == "LwDetr":
        transformer = LwDetrViTConfig(
            hidden_size=192,
            num_hidden_layers=backbone.taps[-1],
            pretrain_image_size=side,
            num_windows=backbone.windows**2,
            window_block_indices=windowed,
            out_indices=backbone.taps,
        )
        own = {"projector_scale_factors": model.scales}
    else:
        transformer = RfDetrDinov2Config(
            hidden_size=384,
            num_attention_heads=6,
            image_size=side,
            patch_size=backbone.patch,
            num_windows=backbone.windows,
            out_indices=backbone.taps,
        )
        own = {"layer_norm_eps": model.norm_epsilon}
    options = getattr(transformers, f"{name}Config")(
        backbone_config=transformer,
        num_queries=config.queries.count,
        group_detr=1,
        num_labels=CLASSES,
        decoder_layers=model.decoder_layers,
        decoder_n_points=model.points,
        dropout=0.0,
        **own,
    )
    theirs = getattr(transformers, f"{name}ForObjectDetection")(options).eval()
    for parameter, tensor in theirs.named_parameters():
        tensor.requires_grad = not parameter.endswith("mask_token")  # of the pre-training
    return theirs


def their_model(name: str, config: Config) -> PreTrainedModel:
    """The model of ``transformers`` with the sizes of a preset, which are its defaults but for the queries."""
    if isinstance(config.model, LwDetrConfig):
        return their_plain_model(name, config)
    stages = ["stage2", "stage3", "stage4"] if name == "DeformableDetr" else ["stage4"]
    options = getattr(transformers, f"{name}Config")(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(out_features=stages, downsample_in_bottleneck=False),
        num_queries=config.queries.count,
        num_labels=CLASSES,
        dropout=0.0,
        auxiliary_loss=True,
    )
    model = getattr(transformers, f"{name}ForObjectDetection")(options).eval()
    train_same_stages(model)
    return model


def our_config(preset: str, size: int | None = None) -> Config:
    """Of the static model; with a size in pixels, that of its images.

    Raises:
        DqdetError: the model does not take images of this size.
    """
    overrides: dict[str, Any] = {
        "model": {"dropout": 0.0, "backbone": {"pretrained": False}},
        "queries": {"kind": "static"},
        "loss": {"class_weight": 1.0},  # as transformers weighs it
        "classes": [f"class {i}" for i in range(CLASSES)],
    }
    if size is not None:
        overrides["data"] = {"resize": [size], "val_resize": size}
    return resolve(preset, overrides)


def make_models(preset: str, config: Config) -> dict[str, nn.Module]:
    """The models of a family, with equal weights, for inference."""
    torch.manual_seed(0)
    static = create_model(config).eval()
    models: dict[str, nn.Module] = {}
    if name := FAMILIES[preset]:
        theirs = models[THEIRS] = their_model(name, config)
        published = PUBLISHED[config.model.family]
        static.load_state_dict(published.from_huggingface(theirs.state_dict(), theirs.config.to_dict()))
    return models | {"static": static, "modulated": upgrade(static, config)[0]}


def check_equal(models: dict[str, nn.Module], criterion: SetLoss, batch: Batch) -> None:
    """All models of a family give the same logits, boxes and loss of the last layer, and train as many parameters."""
    images, padding, targets = batch.images, batch.padding, batch.targets
    outputs = {}
    with torch.no_grad():
        for kind in ("static", "modulated"):
            found = models[kind](images, padding)
            last = replace(found.final, proposals=found.proposals)
            outputs[kind] = (last.logits[-1], last.boxes[-1], criterion(last, targets).total)
        if theirs := models.get(THEIRS):
            theirs.config.auxiliary_loss = False
            found = theirs(images, pixel_mask=(~padding).long(), labels=their_labels(targets))
            outputs[THEIRS] = (found.logits, found.pred_boxes, found.loss)
            # Training needs the losses of all layers. In their DETR and Conditional-DETR this also feeds normed outputs
            # to the next layer, so it is off in the comparison; the work is the same but for the norms.
            theirs.config.auxiliary_loss = True
            assert trainable(theirs) == trainable(models["static"])
    for other in outputs.values():
        torch.testing.assert_close(outputs["static"], other, rtol=1e-3, atol=1e-3)


def trainable(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def make_run(
    kind: str,
    task: str,
    model: nn.Module,
    criterion: SetLoss,
    batch: Batch,
    autocast: torch.autocast | None = None,
) -> Callable[[], object]:
    """What is timed: a batch through one of the models, both on the same device."""
    images, padding, targets = batch.images, batch.padding, batch.targets
    if kind == THEIRS:
        mask, labels = (~padding).long(), their_labels(targets)

        def predict():
            return model(images, pixel_mask=mask)

        def loss():
            return model(images, pixel_mask=mask, labels=labels).loss
    else:

        def predict():
            return model(images, padding)

        def loss():
            return criterion(model(images, padding, targets), targets).total

    return make_task(task, model, predict, loss, autocast)


def set_mode(models: dict[str, nn.Module], task: str) -> None:
    """Training mode for a step, but for theirs: in inference mode it computes the same, as its batch norms are fixed
    and it has no dropout."""
    for kind, model in models.items():
        model.train(task == "step" and kind != THEIRS)


def measure(preset: str, size: int, repeats: int) -> dict[str, Any]:
    """Parameters, decoder FLOPs and seconds of the models of a family, by kind of model."""
    config = our_config(preset, size)
    criterion = SetLoss(config.loss)
    models = make_models(preset, config)
    batch = Batch(*make_input((size, size), 1))
    check_equal(models, criterion, batch)
    result: dict[str, Any] = {
        "parameters": {kind: sum(p.numel() for p in model.parameters()) for kind, model in models.items()},
        "decoder_flops": {
            kind: decoder_flops(model, batch.images, batch.padding) for kind, model in models.items() if kind != THEIRS
        },
    }
    for task in TASKS:
        set_mode(models, task)
        runs = {kind: make_run(kind, task, model, criterion, batch) for kind, model in models.items()}
        result[task] = take_turns(runs, repeats)
    return result


def ratios(seconds: Seconds, kind: str) -> dict[str, float]:
    """Against ``transformers``, above 1 where we are faster, and against our static queries."""
    found = {}
    if THEIRS in seconds and kind != THEIRS:
        found["transformers / ours"] = ratio(seconds[THEIRS], seconds[kind])
    if kind == "modulated":
        found["modulated / static"] = ratio(seconds["modulated"], seconds["static"])
    return found


COLUMNS = [
    "preset".ljust(max(map(len, FAMILIES))),
    "model".ljust(len(THEIRS)),
    "parameters, M",
    "decoder GFLOPs",
    *(f"{task}, s" for task in TASKS),
    *(f"{task}: transformers / ours" for task in TASKS),
    *(f"{task}: modulated / static" for task in TASKS),
]


def row(preset: str, kind: str, measured: dict[str, Any]) -> list[str]:
    flops = measured["decoder_flops"].get(kind)
    cells = [preset, kind, f"{measured['parameters'][kind] / 1e6:.1f}", f"{flops / 1e9:.3f}" if flops else ""]
    cells += [f"{statistics.median(measured[task][kind]):.3f}" for task in TASKS]
    found = [ratios(measured[task], kind) for task in TASKS]
    for label in ("transformers / ours", "modulated / static"):
        cells += [f"{of_task[label]:.2f}" if label in of_task else "" for of_task in found]
    return cells


def print_row(cells: list[str]) -> None:
    padded = (cell.ljust(len(column)) for cell, column in zip(cells, COLUMNS, strict=True))
    print(f"| {' | '.join(padded)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), metavar="PRESET")
    parser.add_argument("--json", help="write the numbers to this file")
    options = parser.parse_args()
    for preset in options.families:  # before any is measured
        try:
            our_config(preset, options.size)
        except DqdetError as error:
            raise SystemExit(f"--size {options.size}: {preset}: {error}; or leave it out of --families") from error

    print(f"1 x {options.size}x{options.size}, {torch.get_num_threads()} threads\n")
    print_row(COLUMNS)
    print_row(["---"] * len(COLUMNS))
    families = {}
    for preset in options.families:
        measured = families[preset] = measure(preset, options.size, options.repeats)
        for kind in measured["parameters"]:
            print_row(row(preset, kind, measured))
        measured["ratios"] = {
            task: {kind: ratios(measured[task], kind) for kind in ("static", "modulated")} for task in TASKS
        }
        gc.collect()  # models hold references to themselves
    if options.json:
        result = {
            **machine(),
            "transformers": transformers.__version__,
            "size": options.size,
            "batch": 1,
            "families": families,
        }
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
