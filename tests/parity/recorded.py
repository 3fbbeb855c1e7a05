"""Cases recorded from the official implementations (``shared/parity``; two of them ``cases``), read through their
parameter names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dqdet.config import (
    ConditionalDetrConfig,
    DabDeformableDetrConfig,
    DabDetrConfig,
    DeformableDetrConfig,
    DetrConfig,
    DinoConfig,
    LossConfig,
    QueriesConfig,
    SmcaDetrConfig,
    TransformerConfig,
)
from dqdet.losses.matching import Matches
from dqdet.models import FAMILIES
from dqdet.models.detector import Detector
from dqdet.types import Target
from dqdet.weights import PUBLISHED

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class Recorded:
    """What an official model was given, and what came of it."""

    config: dict[str, Any]
    expected: dict[str, Any]
    io: dict[str, Tensor]
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> Self:
        config, expected = (json.loads((folder / f"{part}.json").read_text()) for part in ("config", "expected"))
        io = load_file(folder / "io.safetensors")
        if (folder / "weights.safetensors").exists():
            weights = load_file(folder / "weights.safetensors")
        else:
            weights, features = generated(config, json.loads((folder / "weights_recipe.json").read_text()))
            io |= features
        return cls(config, expected, io, weights)

    def gradient_norms(
        self, gradients: dict[str, Tensor | None], convert: Convert, aliases: dict[str, str]
    ) -> dict[str, float]:
        """Norms of the gradients under the official names.

        The official state dict goes through the conversion once more, with the number of its parameter in place of
        each value, so that every element of ours knows where it comes from.

        Args:
            gradients: by our names.
            convert: what turns a state dict of official names into ours.
            aliases: official name -> the other name of the same parameter.
        """
        canonical = {name: aliases.get(name, name) for name in self.weights}
        numbers = {name: i for i, name in enumerate(dict.fromkeys(canonical.values()))}
        owners = convert({name: torch.full(w.shape, numbers[canonical[name]]) for name, w in self.weights.items()})
        squares = torch.zeros(len(numbers), dtype=torch.float64)
        for name, gradient in gradients.items():
            if gradient is not None:
                squares.index_add_(0, owners[name].flatten(), gradient.double().square().flatten())
        return {name: squares[numbers[canonical[name]]].sqrt().item() for name in self.weights}


def assert_total_and_gradients(
    case: Recorded, model: Detector, features: list[Tensor], total: Tensor, convert: Convert, aliases: dict[str, str]
) -> None:
    """Of a model with masks: the loss, and the norms of its gradients."""
    assert total.item() == pytest.approx(case.expected["loss_total"], rel=1e-5)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(total, [*features, *parameters.values()], retain_graph=True)
    of_features = zip(gradients[: len(features)], case.expected["feature_grad_norms"].values(), strict=True)
    for gradient, expected in of_features:
        assert gradient.norm().item() == pytest.approx(expected, rel=1e-3)
    norms = case.gradient_norms(dict(zip(parameters, gradients[len(features) :], strict=True)), convert, aliases)
    for name, expected in case.expected["grad_norms"].items():
        assert norms[name] == pytest.approx(expected or 0, rel=1e-3, abs=1e-5), name


def frozen(name: str) -> Path:
    """The folder of a case that every clone has."""
    return Path(__file__).parent / "cases" / name


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def pairs(matches: Matches) -> list[tuple[int, ...]]:
    """Layer, image, query and object of every pair, in order."""
    fields = (matches.layer, matches.image, matches.query, matches.object)
    return sorted(zip(*(field.tolist() for field in fields), strict=True))


def recorded_pairs(indices: list[list[list[list[int]]]], first: int = 0) -> list[tuple[int, ...]]:
    """The same of what is recorded, by layers and images, of queries that are counted from ``first``."""
    return sorted(
        (layer, image, query + first, object_)
        for layer, images in enumerate(indices)
        for image, (queries, objects) in enumerate(images)
        for query, object_ in zip(queries, objects, strict=True)
    )


LOSSES = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou", "mask": "loss_mask", "dice": "loss_dice"}


def official_loss(key: str, last: int) -> tuple[str, str]:
    """The group and the official name of a loss whose key is ``group/layer/term``; ``last`` is the last layer."""
    group, layer, term = key.split("/")
    place = "_enc" if group == "encoder" else "" if int(layer) == last else f"_{layer}"
    return group, LOSSES[term] + place


class DetectorCase(Recorded):
    """Of a model that predicts boxes."""

    @property
    def features(self) -> list[Tensor]:
        return [self.io[f"features_{level}"] for level in range(len(self.config["feature_channels"]))]

    @property
    def options(self) -> dict[str, Any]:
        return self.config["config"]

    @property
    def dynamic(self) -> bool:
        return "dynamic_queries" in self.config

    def targets(self, prefix: str = "targets") -> list[Target]:
        sizes = self.config["image_sizes"]
        return [
            Target(
                labels=self.io[f"{prefix}_labels_{i}"],
                boxes=self.io[f"{prefix}_boxes_{i}"],
                size=tuple(size),
                original_size=tuple(size),
            )
            for i, size in enumerate(sizes)
        ]

    def queries(self, hidden: int) -> QueriesConfig:
        """Queries as the published code makes them."""
        if not self.dynamic:
            denoising = {"denoising": 100} if self.config["model"] == "dino" else {}
            return QueriesConfig(kind="static", count=self.options["num_queries"], **denoising)
        return QueriesConfig(
            kind="modulated",
            count=self.options["num_queries"],
            ratio=self.config["dynamic_queries"]["query_ratio"],
            hidden=hidden,
            context=model_config(self).published_context,
            pool="max",
            pool_padding=True,
            coefficients="softmax" if self.config["dynamic_queries"]["coefficients_softmax"] else "raw",
        )

    def loss(self) -> LossConfig:
        options, weights = self.options, self.config["loss_weight_dict"]
        cross_entropy = self.config["model"] == "detr"
        dynamic = self.config.get("dynamic_queries", {})
        return LossConfig(
            classification="cross_entropy" if cross_entropy else "focal",
            class_cost=options["set_cost_class"],
            box_cost=options["set_cost_bbox"],
            giou_cost=options["set_cost_giou"],
            class_weight=weights["loss_ce"],
            box_weight=weights["loss_bbox"],
            giou_weight=weights["loss_giou"],
            no_object_weight=options["eos_coef"] if cross_entropy else 0.1,
            box_epsilon=1e-6 if "dab" in self.config["model"] or self.config["model"] == "dino" else 0.0,
            beta=dynamic.get("org_branch_loss_weight", 1.0),
        )

    def padding(self) -> Tensor:
        """``[B, H, W]``, from the sizes of the images."""
        padding = torch.ones(len(self.config["image_sizes"]), *self.config["padded_image_size"], dtype=torch.bool)
        for mask, (height, width) in zip(padding, self.config["image_sizes"], strict=True):
            mask[:height, :width] = False
        return padding

    def build(self, config: TransformerConfig) -> Detector:
        """Our model with the official weights loaded, every name used."""
        hidden = len(self.weights["query_weight.0.weight"]) if self.dynamic else 512
        model = FAMILIES[config.family](
            config,
            self.queries(hidden),
            self.options["num_classes"],
            self.config["feature_channels"],
        )
        model.load_state_dict(PUBLISHED[config.family].from_official(self.weights), strict=True)
        return model


def model_config(case: DetectorCase) -> TransformerConfig:
    options = case.options
    sizes = {
        "hidden": options["hidden_dim"],
        "heads": options["nheads"],
        "encoder_layers": options["enc_layers"],
        "decoder_layers": options["dec_layers"],
        "feedforward": options["dim_feedforward"],
        "dropout": 0.0,
    }
    match case.config["model"].removesuffix("_dq"):
        case "detr":
            return DetrConfig(**sizes)
        case "conditional_detr":
            return ConditionalDetrConfig(**sizes)
        case "smca_detr":
            return SmcaDetrConfig(**sizes)
        case "dab_detr":
            return DabDetrConfig(
                **sizes,
                temperature=options["pe_temperatureH"],
                activation=options["transformer_activation"],
                patterns=options["num_patterns"],
            )
        case "dino":
            strides = case.config["feature_strides"]
            return DinoConfig(**sizes, finest=strides[0], levels=options["num_feature_levels"])
        case "dab_deformable_detr":
            return DabDeformableDetrConfig(**sizes)
        case _:
            return DeformableDetrConfig(**sizes, refine=options["with_box_refine"], two_stage=options["two_stage"])


def generated(config: dict[str, Any], recipe: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and features of a full-size case, made as the README of the folder says."""
    seed = recipe["seed"]
    weights = {}
    for name, shape, index, mean, std in recipe["rows"]:
        drawn = np.random.RandomState(seed + index).standard_normal(shape)
        weights[name] = torch.from_numpy((mean + std * drawn).astype("float32"))
    features = {}
    height, width = config["padded_image_size"]
    for level, (channels, stride) in enumerate(zip(config["feature_channels"], config["feature_strides"], strict=True)):
        shape = (config["batch_size"], channels, -(-height // stride), -(-width // stride))
        drawn = np.random.RandomState(seed + 100000 + level).standard_normal(shape)
        features[f"features_{level}"] = torch.from_numpy(np.maximum(drawn + 0.3, 0).astype("float32"))
    return weights, features
