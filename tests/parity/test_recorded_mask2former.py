"""Mask2Former's outputs, matchings, losses (at the recorded points) and gradients equal to those recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import pytest
import torch
from recorded import Recorded, assert_total_and_gradients, close, official_loss, pairs, recorded_pairs
from torch import Tensor

from dqdet.config import Mask2FormerConfig, MaskLossConfig, QueriesConfig
from dqdet.losses.masks import MaskSetLoss, ObjectMasks, RandomPoints
from dqdet.losses.matching import Matches
from dqdet.models.mask2former import Mask2Former
from dqdet.models.video_mask2former import VideoMask2Former, joined
from dqdet.nn.pixel_decoder import PixelFeatures
from dqdet.types import Target
from dqdet.weights.mask2former import MASK2FORMER

CASES = ["mask2former", "mask2former_dq", "video_mask2former", "video_mask2former_dq"]


class Case(Recorded):
    @classmethod
    def read(cls, folder: Path) -> Self:
        case = super().read(folder)
        # Only the cases of videos tell training from inference.
        case.io = {name.removeprefix("train."): tensor for name, tensor in case.io.items()}
        return case

    @property
    def frames(self) -> int:
        return self.config["num_frames"] if self.config["video"] else 1

    @property
    def prefixes(self) -> dict[str, str]:
        """Our name of each group of queries -> prefix of what is recorded of it."""
        return {"modulated": "", "basic": "org_"} if self.config["dq"] else {"static": ""}

    def model(self) -> Mask2Former:
        options = self.config
        config = Mask2FormerConfig(
            hidden=options["hidden_dim"],
            heads=options["nheads"],
            encoder_layers=options["pixel_decoder_enc_layers"],
            encoder_feedforward=options["pixel_decoder_dim_feedforward"],
            decoder_layers=options["dec_layers"],
            feedforward=options["dim_feedforward"],
            points=options["pixel_decoder_n_points"],
        )
        queries = QueriesConfig(kind="static", count=options["num_queries"])
        if options["dq"]:
            queries = QueriesConfig(
                kind="modulated",
                context=config.published_context,
                count=options["num_queries"],
                ratio=options["query_ratio"],
                hidden=options["hidden_dim"],
                pool="max",
                pool_padding=True,
                coefficients="raw",
            )
        family = VideoMask2Former if options["video"] else Mask2Former
        model = family(config, queries, options["num_classes"], list(options["backbone_channels"].values()))
        model.load_state_dict(MASK2FORMER.from_official(self.weights), strict=True)
        return model

    def features(self) -> list[Tensor]:
        """Maps ``[B, C, h, w]`` (video: ``[B, T, C, h, w]``) that keep their gradients."""
        maps = [self.io[f"features.{name}"].clone() for name in self.config["backbone_channels"]]
        if self.config["video"]:
            maps = [x.unflatten(0, (-1, self.frames)) for x in maps]
        return [x.requires_grad_() for x in maps]

    def padding(self) -> Tensor:
        return torch.zeros(self.config["batch_size"], *self.config["image_size"], dtype=torch.bool)

    def targets(self) -> list[Target]:
        size = tuple(self.config["image_size"])
        return [
            Target(
                labels=self.io.get(f"targets.{i}.labels", torch.zeros(count, dtype=torch.long)),
                boxes=torch.zeros(count, 4),
                size=size,
                original_size=size,
                masks=self.io.get(f"targets.{i}.masks", torch.zeros(count, *size)).bool(),  # video: [N, T, H, W]
            )
            for i, count in enumerate(self.config["num_targets"])
        ]

    def indices(self, group: str) -> list[list[list[list[int]]]]:
        return self.expected[f"{self.prefixes[group]}indices"]

    def criterion(self) -> MaskSetLoss:
        weights = self.config["loss_weights"]
        config = MaskLossConfig(
            class_weight=weights["class"],
            mask_weight=weights["mask"],
            dice_weight=weights["dice"],
            no_object_weight=weights["no_object"],
            points=self.config["num_points"],
            oversample=self.config["oversample_ratio"],
            important=self.config["importance_sample_ratio"],
        )
        return MaskSetLoss(config, RecordedPoints(self))


class RecordedPoints(RandomPoints):
    """The points that the official loss drew."""

    def __init__(self, case: Case):
        self.case = case
        # The official rows of one layer and group: its pairs in the order of images, then queries.
        self.rows = {}
        for group, prefix in case.prefixes.items():
            offset = case.config["num_queries"] if group == "basic" else 0
            for layer, images in enumerate(case.indices(group)):
                pairs = [(image, query) for image, (queries, _) in enumerate(images) for query in queries]
                for row, (image, query) in enumerate(pairs):
                    self.rows[layer, image, query + offset] = (f"{prefix}points.loss.{layer}", row)

    def of_images(self, layer: int, group: str, images: int, count: int, device: torch.device) -> Tensor:
        prefix = self.case.prefixes[group]
        return torch.cat([self.case.io[f"{prefix}points.match.{layer}.{image}"] for image in range(images)])

    def of_pairs(self, pairs: Matches, frames: int, count: int) -> Tensor:
        found = [torch.empty(0, frames, count, 2)]
        for pair in zip(pairs.layer.tolist(), pairs.image.tolist(), pairs.query.tolist(), strict=True):
            name, row = self.rows[pair]
            drawn = {len(self.case.io[f"{name}.{kind}"][row]): kind for kind in ("oversampled", "random")}
            found.append(self.case.io[f"{name}.{drawn[count]}"].unflatten(0, (-1, frames))[row : row + 1])
        return torch.cat(found)


@pytest.fixture(scope="module", params=CASES)
def run(request, shared):
    """The case, our model, and its predictions in training mode from features that keep their gradients."""
    case = Case.read(shared / "parity" / request.param)
    model, features = case.model().train(), case.features()
    return case, model, features, model.forward_features(features, case.padding())


def pixel_features(case: Case, model: Mask2Former, features: list[Tensor]) -> PixelFeatures:
    return model.pixels([x.flatten(0, -4) for x in features], case.padding().repeat_interleave(case.frames, 0))


def test_pixel_decoder(run):
    case, model, features, _ = run
    pixels = pixel_features(case, model, features)
    close(pixels.mask_features, case.io["pixel_decoder.mask_features"])
    for level, feature in enumerate(pixels.maps):
        close(feature, case.io[f"pixel_decoder.multi_scale_features.{level}"])


def test_outputs_of_all_layers(run):
    case, _, _, predictions = run
    assert list(predictions.groups) == list(case.prefixes)
    for group, prefix in case.prefixes.items():
        branch = predictions.group(group)
        close(branch.logits, case.io[f"{prefix}pred_logits"])
        close(branch.masks.all(), case.io[f"{prefix}pred_masks"])
    if case.config["dq"]:
        close(predictions.coefficients, case.io["dynamic.query_filter"])


def test_attention_is_masked_as_recorded(run):
    case, model, features, predictions = run
    levels = [joined(level, case.frames) for level in model.levels(pixel_features(case, model, features))]
    for group, prefix in case.prefixes.items():
        embeddings = predictions.group(group).masks.embeddings
        for layer in range(case.config["dec_layers"]):
            bias = levels[layer % 3].attention_bias(embeddings[layer])[:, 0]
            assert torch.equal(bias == -torch.inf, case.io[f"{prefix}attn_mask.{layer}"].bool())


def test_inference_is_the_first_branch(run):
    case, model, features, _ = run
    model.eval()
    with torch.no_grad():
        predictions = model.forward_features(features, case.padding())
    model.train()
    assert list(predictions.groups.values()) == [case.config["num_queries"]]
    close(predictions.final.logits, case.io["pred_logits"][-1:])
    close(predictions.final.masks.all(), case.io["pred_masks"][-1:])


def test_inference_on_longer_clips(run):
    case, model, _, _ = run
    if not case.config["video"]:
        pytest.skip("recorded for videos")
    features = [case.io[f"infer.features.{name}"][None] for name in case.config["backbone_channels"]]
    with torch.no_grad():
        predictions = model.eval().forward_features(features, case.padding()[:1])
    model.train()
    close(predictions.logits, case.io["infer.pred_logits"])
    close(predictions.masks.all(), case.io["infer.pred_masks"])


def test_matchings(run):
    case, _, _, predictions = run
    targets = case.targets()
    found = case.criterion().match(predictions, targets, ObjectMasks(targets, case.frames, *case.config["image_size"]))
    first = {group: case.config["num_queries"] if group == "basic" else 0 for group in case.prefixes}
    expected = [pair for group in case.prefixes for pair in recorded_pairs(case.indices(group), first[group])]
    assert pairs(found) == sorted(expected)


def test_losses(run):
    case, _, _, predictions = run
    terms = case.criterion()(predictions, case.targets()).terms
    expected = case.expected["losses_unweighted"]
    assert len(terms) == len(expected)
    for key, value in terms.items():
        group, name = official_loss(key, case.config["dec_layers"])
        assert value.item() == pytest.approx(expected[case.prefixes[group] + name], rel=1e-4), key


def test_total_and_gradients(run):
    case, model, features, predictions = run
    total = case.criterion()(predictions, case.targets()).total
    assert_total_and_gradients(case, model, features, total, MASK2FORMER.from_official, aliases={})
