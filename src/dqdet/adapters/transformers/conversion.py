"""Models that dqdet has trained, as models of the ``transformers`` library.

The other way, `dqdet.load` and `dqdet.convert` read folders of modulated models as they read those of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from dqdet.adapters.transformers.modulated import modulated
from dqdet.config import Config
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.nn.backbone import SHORT_NAMES
from dqdet.runs.folder import differences
from dqdet.runs.sources import load_model
from dqdet.weights.backbones import RESNETS
from dqdet.weights.conditional_detr import CONDITIONAL_DETR
from dqdet.weights.dab_detr import DAB_DETR
from dqdet.weights.deformable_detr import DEFORMABLE_DETR
from dqdet.weights.detr import DETR
from dqdet.weights.lw_detr import LW_DETR, PublishedVit
from dqdet.weights.mask2former import MASK2FORMER
from dqdet.weights.preparation import of_processor
from dqdet.weights.published import Published
from dqdet.weights.renaming import State, fold_norms
from dqdet.weights.rf_detr import RF_DETR

EPSILON = 1e-5  # of the library's batch norms
Options = dict[str, Any]


def resnet(config: Config, outputs: int) -> Options:
    """The library's own ResNet, of which the last maps are read."""
    name = config.model.backbone.name
    short = SHORT_NAMES.get(name, name).split(".")[0]
    depths, bottleneck = next((key for key, known in RESNETS.items() if known == short), ((), False))
    if not depths:
        raise DqdetError(f"model.backbone.name={name}: models with {', '.join(RESNETS.values())} can be converted only")
    if config.model.backbone.dilation:
        raise DqdetError("model.backbone.dilation=true: the library's own ResNet has no dilated stage")
    options: Options = {
        "depths": list(depths),
        "hidden_sizes": [width * (4 if bottleneck else 1) for width in (64, 128, 256, 512)],
        "layer_type": "bottleneck" if bottleneck else "basic",
        "out_features": [f"stage{stage}" for stage in range(5 - outputs, 5)],
    }
    return {"backbone_config": transformers.ResNetConfig(**options)}


def detr(config: Config, outputs: int = 1) -> Options:
    """What DETR and the families after it have.

    Without auxiliary losses, with which the library's DETR and Conditional-DETR compute something else: the next layer
    gets the normed output.
    """
    model = config.model
    return resnet(config, outputs) | {
        "d_model": model.hidden,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers,
        "encoder_ffn_dim": model.feedforward,
        "decoder_ffn_dim": model.feedforward,
        "encoder_attention_heads": model.heads,
        "decoder_attention_heads": model.heads,
        "dropout": model.dropout,
        "num_queries": config.queries.count,
        "auxiliary_loss": False,
    }


def dab_detr(config: Any) -> Options:
    options, temperature = detr(config), config.model.temperature
    if not temperature.is_integer():
        raise DqdetError(f"model.temperature={temperature}: transformers has whole numbers only")
    return options | {
        "hidden_size": options.pop("d_model"),
        "activation_function": config.model.activation,
        "num_patterns": config.model.patterns,
        "temperature_height": int(temperature),
        "temperature_width": int(temperature),
        "auxiliary_loss": True,
    }


def deformable_detr(config: Any) -> Options:
    return detr(config, outputs=3) | {
        "num_feature_levels": config.model.levels,
        "encoder_n_points": config.model.points,
        "decoder_n_points": config.model.points,
        "with_box_refine": config.model.refine,
        "two_stage": config.model.two_stage,
        "two_stage_num_proposals": config.queries.count,
        "auxiliary_loss": True,
        "tie_word_embeddings": not config.model.refine,  # with refinement every layer has heads of its own
    }


def mask2former(config: Any) -> Options:
    model, loss = config.model, config.loss
    return resnet(config, outputs=4) | {
        "feature_size": model.hidden,
        "mask_feature_size": model.hidden,
        "hidden_dim": model.hidden,
        "num_attention_heads": model.heads,
        "encoder_layers": model.encoder_layers,
        "decoder_layers": model.decoder_layers + 1,  # the prediction before the first layer counts
        "dim_feedforward": model.feedforward,
        "encoder_feedforward_dim": model.encoder_feedforward,
        "dropout": model.dropout,
        "num_queries": config.queries.count,
        "class_weight": loss.class_weight,
        "mask_weight": loss.mask_weight,
        "dice_weight": loss.dice_weight,
        "no_object_weight": loss.no_object_weight,
        "train_num_points": loss.points,
        "oversample_ratio": loss.oversample,
        "importance_sample_ratio": loss.important,
    }


def vit_decoder(config: Any) -> Options:
    """What LW-DETR and RF-DETR have beside their backbones. Their own groups of queries train in groups only."""
    model, queries = config.model, config.queries
    if queries.kind != "static" and (queries.kind not in ("grouped", "modulated") or queries.basic != "groups"):
        raise DqdetError(
            f"queries.kind={queries.kind} with queries.basic={queries.basic}: {model.family} of transformers trains "
            "groups of queries, each with proposals of its own; only static ones, or grouped and modulated ones with "
            "queries.basic=groups can be converted"
        )
    return {
        "d_model": model.hidden,
        "decoder_layers": model.decoder_layers,
        "decoder_ffn_dim": model.feedforward,
        "decoder_self_attention_heads": model.heads,
        "decoder_cross_attention_heads": model.cross_heads,
        "decoder_n_points": model.points,
        "dropout": model.dropout,
        "num_queries": queries.count,
        "group_detr": {"static": 1, "grouped": 1 + queries.ratio, "modulated": queries.ratio}[queries.kind],
    }


def vit(config: Any, published: PublishedVit) -> Options:
    """What the backbones of both have."""
    backbone = config.model.backbone
    widths = {name: width for width, name in published.backbones.items()}
    name = backbone.name.split(".")[0]
    if name not in widths:
        raise DqdetError(f"model.backbone.name={backbone.name}: models with {', '.join(widths)} can be converted only")
    return {"hidden_size": widths[name], "patch_size": backbone.patch, "out_indices": backbone.taps}


def windowed_blocks(config: Any) -> list[int]:
    backbone = config.model.backbone
    return [block for block in range(backbone.taps[-1]) if block not in backbone.global_blocks]


def lw_detr(config: Any) -> Options:
    backbone = config.model.backbone
    options = vit(config, LW_DETR) | {
        "num_hidden_layers": backbone.taps[-1],
        "num_attention_heads": 12,
        "pretrain_image_size": backbone.patch * backbone.positions,
        "image_size": backbone.patch * backbone.windows**3,  # read by nothing but the configuration's own check
        "num_windows": backbone.windows**2,
        "window_block_indices": windowed_blocks(config),
    }
    return vit_decoder(config) | {
        "backbone_config": transformers.LwDetrViTConfig(**options),
        "projector_scale_factors": config.model.scales,
    }


def rf_detr(config: Any) -> Options:
    backbone = config.model.backbone
    options = vit(config, RF_DETR)
    options |= {
        "num_attention_heads": options["hidden_size"] // 64,
        "image_size": backbone.patch * backbone.positions,
        "num_windows": backbone.windows,
        "window_block_indexes": windowed_blocks(config),
        "drop_path_rate": backbone.drop_path or 0.0,
    }
    return vit_decoder(config) | {
        "backbone_config": transformers.RfDetrDinov2Config(**options),
        "layer_norm_eps": config.model.norm_epsilon,
        "intermediate_size": 4 * config.model.hidden,  # of the head for masks
    }


# Our families: the class of the library, its configuration, the options of that, and how its parameters become ours.
THERE: dict[str, tuple[str, str, Callable[[Any], Options], Published]] = {
    "detr": ("DetrForObjectDetection", "DetrConfig", detr, DETR),
    "conditional_detr": ("ConditionalDetrForObjectDetection", "ConditionalDetrConfig", detr, CONDITIONAL_DETR),
    "dab_detr": ("DabDetrForObjectDetection", "DabDetrConfig", dab_detr, DAB_DETR),
    "deformable_detr": ("DeformableDetrForObjectDetection", "DeformableDetrConfig", deformable_detr, DEFORMABLE_DETR),
    "mask2former": ("Mask2FormerForUniversalSegmentation", "Mask2FormerConfig", mask2former, MASK2FORMER),
    "lw_detr": ("LwDetrForObjectDetection", "LwDetrConfig", lw_detr, LW_DETR),
    "rf_detr": ("RfDetrForObjectDetection", "RfDetrConfig", rf_detr, RF_DETR),
    "rf_detr_seg": ("RfDetrForInstanceSegmentation", "RfDetrConfig", rf_detr, RF_DETR),
}


def to_transformers(model: Detector, config: Config) -> transformers.PreTrainedModel:
    """A model of dqdet as one of the library, with the same outputs.

    Args:
        model: of a family that `THERE` has.
        config: of that model.

    Returns:
        a modulated class, or with static queries the library's own.

    Raises:
        DqdetError: the library has no such family or backbone, or the model has parameters that fit none there.
    """
    family = config.model.family
    if family not in THERE:
        raise DqdetError(f"transformers has no {family}; it has {', '.join(THERE)}")
    name, configuration, options_of, published = THERE[family]
    options = options_of(config) | {"id2label": dict(enumerate(config.classes))}
    theirs = getattr(transformers, configuration)(**options)
    kind: Any = getattr(transformers, name)
    own = ("static", "grouped") if "group_detr" in options else ("static",)  # what the library's class trains itself
    if config.queries.kind not in own:
        theirs.modulated = config.queries.model_dump() | {"denoising": 0, "beta": config.loss.beta}
        kind = modulated(kind)
    made = kind(theirs).eval()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("denoising.")}
    fill(made, fold_norms(state), published)  # of a ResNet whose batch norms have trained, too
    return made


@torch.no_grad()
def fill(made: nn.Module, state: State, published: Published) -> None:
    """Give a model of the library our parameters.

    `Published.from_huggingface` renames, cuts and stacks the library's tensors. Of tensors that number their own
    entries it makes the numbers of where each of our entries belongs. Batch norms of backbones are folded there: with a
    mean of 0 and a variance of 1 (less the epsilon that is added), weight and bias become what they are folded to.

    Raises:
        DqdetError: parameters of ours are missing there, or have another shape.
    """
    theirs, numbers, count = made.state_dict(keep_vars=True), {}, 0
    numbered: dict[int, torch.Tensor] = {}  # shared parameters have the same numbers
    folds = not any(name.endswith("running_mean") for name in state)  # LW-DETR has batch norms, and no ResNet
    for name, tensor in theirs.items():
        if folds and name.endswith("running_mean"):
            tensor.zero_()
            numbers[name] = torch.zeros_like(tensor, dtype=torch.float64)
        elif folds and name.endswith("running_var"):
            tensor.fill_(1 - EPSILON)
            numbers[name] = torch.full_like(tensor, 1 - EPSILON, dtype=torch.float64)
        else:
            if id(tensor) not in numbered:
                numbered[id(tensor)] = torch.arange(count, count + tensor.numel(), dtype=torch.float64).view(
                    tensor.shape
                )
                count += tensor.numel()
            numbers[name] = numbered[id(tensor)]
    places = published.from_huggingface(numbers, made.config.to_dict())  # type: ignore[union-attr, operator]
    if other := differences(state, places):
        raise DqdetError(f"the {published.family} of transformers has other parameters: {other}")
    values = torch.full((count,), torch.nan)
    for name, of_entries in places.items():
        values[of_entries.round().long().flatten()] = state[name].float().flatten()
    for name, tensor in theirs.items():
        if id(tensor) in numbered:
            given = values[numbers[name].long()]
            tensor.copy_(torch.where(given.isnan(), tensor, given))  # the library's own stay: what no model here has


def image_processor(model: transformers.PreTrainedModel, config: Config) -> transformers.BaseImageProcessor:
    """What prepares images for a model, as the library has it for the model's class.

    Raises:
        DqdetError: it cannot prepare them as ``config`` says.
    """
    *_, published = THERE[config.model.family]
    assert published.huggingface is not None
    # The library names none for DAB-DETR, whose classes are like those of Conditional-DETR.
    family = "conditional_detr" if config.model.family == "dab_detr" else model.config.model_type
    kind = getattr(transformers, IMAGE_PROCESSOR_MAPPING_NAMES[family]["torchvision"])
    return kind(**of_processor(config.data, published.huggingface))


def convert(source: str | Path, out: str | Path) -> Path:
    """Write the model of any source that `dqdet.load` takes as a folder of ``transformers``, with its image processor.

    `dqdet.transformers.load` opens it, or ``from_pretrained`` where the queries are static.

    Returns:
        the folder.

    Raises:
        DqdetError: as `load_model` and `to_transformers`.
    """
    model, config, _ = load_model(source)
    try:
        made = to_transformers(model, config)
        processor = image_processor(made, config)
    except DqdetError as error:
        raise DqdetError(f"{source}: {error}") from error
    made.save_pretrained(out)
    processor.save_pretrained(out)
    return Path(out)
