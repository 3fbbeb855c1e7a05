"""SeqFormer's outputs, matchings, losses and gradients equal to those recorded from the official implementation."""

from __future__ import annotations

import pytest
import torch
from recorded import LOSSES, Recorded, assert_total_and_gradients, close, official_loss, pairs, recorded_pairs
from torch import Tensor

from dqdet.config import QueriesConfig, SeqFormerConfig, SequenceLossConfig
from dqdet.losses.sequences import SequenceSetLoss
from dqdet.models.seqformer import SeqFormer
from dqdet.types import Target
from dqdet.weights.seqformer import SEQFORMER


class Case(Recorded):
    def model(self) -> SeqFormer:
        options = self.config
        config = SeqFormerConfig(
            hidden=options["hidden_dim"],
            heads=options["nheads"],
            encoder_layers=options["enc_layers"],
            decoder_layers=options["dec_layers"],
            feedforward=options["dim_feedforward"],
            levels=options["num_feature_levels"],
            points=options["dec_n_points"],
            dropout=options["dropout"],
            see_padding=True,
        )
        queries = QueriesConfig(kind="static", count=options["num_queries"])
        model = SeqFormer(config, queries, options["num_classes"], list(options["backbone_channels"].values()))
        model.load_state_dict(SEQFORMER.from_official(self.weights), strict=True)
        return model

    def features(self, part: str, videos: int) -> list[Tensor]:
        maps = [self.io[f"{part}.features.{name}"] for name in self.config["backbone_channels"]]
        return [x.unflatten(0, (videos, -1)).clone().requires_grad_() for x in maps]

    def padding(self) -> Tensor:
        return self.io["train.mask"].bool().unflatten(0, (self.config["batch_size"], -1))[:, 0]

    def targets(self) -> list[Target]:
        frames = self.config["num_frames"]
        targets = []
        for video, size in enumerate(self.config["sizes"]):
            labels, boxes, masks = (self.io[f"train.targets.{video}.{name}"] for name in ("labels", "boxes", "masks"))
            targets.append(
                Target(
                    labels=labels,
                    boxes=boxes.unflatten(0, (-1, frames)),
                    size=tuple(size),
                    original_size=tuple(size),
                    masks=masks.bool().unflatten(0, (-1, frames)),
                )
            )
        return targets

    def criterion(self) -> SequenceSetLoss:
        costs, weights = self.config["matcher_costs"], self.config["loss_weights"]
        config = SequenceLossConfig(
            class_cost=costs["class"],
            box_cost=costs["bbox"],
            giou_cost=costs["giou"],
            class_weight=weights["ce"],
            box_weight=weights["bbox"],
            giou_weight=weights["giou"],
            mask_weight=weights["mask"],
            dice_weight=weights["dice"],
        )
        assert config == SequenceLossConfig(), "the defaults are the published weights"
        return SequenceSetLoss(config)


@pytest.fixture(scope="module")
def run(shared):
    """The case, our model, and its predictions in training mode from features that keep their gradients."""
    case = Case.read(shared / "parity" / "seqformer")
    model, features = case.model().train(), case.features("train", case.config["batch_size"])
    return case, model, features, model.forward_features(features, case.padding())


def test_outputs_of_all_layers(run):
    case, _, _, predictions = run
    close(predictions.logits, case.io["train.pred_logits"])
    close(predictions.boxes, case.io["train.pred_boxes"].transpose(2, 3))
    close(predictions.masks.features, case.io["train.mask_features"])
    close(predictions.final.masks.all()[0], case.io["eval.pred_masks"])
    for layer, of_videos in enumerate(case.expected["indices"]):
        found = [predictions.masks.of(layer, i, torch.tensor(queries)) for i, (queries, _) in enumerate(of_videos)]
        close(torch.cat(found), case.io[f"train.matched_masks.{layer}"])


def test_inference(run):
    """The features of the recorded video have no padding, but a size of the image that no stride divides."""
    case, model, _, _ = run
    model.eval()
    with torch.no_grad():
        padding = torch.zeros(1, *case.config["infer_size"], dtype=torch.bool)
        predictions = model.forward_features(case.features("infer", 1), padding)
    model.train()
    close(predictions.logits, case.io["infer.pred_logits"])
    close(predictions.boxes, case.io["infer.pred_boxes"].transpose(2, 3))
    close(predictions.masks.all(), case.io["infer.pred_masks"])


def test_matchings(run):
    case, _, _, predictions = run
    found = case.criterion().match(predictions, case.targets())
    assert pairs(found) == recorded_pairs(case.expected["indices"])


def test_losses(run):
    case, _, _, predictions = run
    terms = case.criterion()(predictions, case.targets()).terms
    expected = case.expected["losses_unweighted"]
    layers = case.config["dec_layers"]
    assert len(terms) == len(LOSSES) * layers
    for key, value in terms.items():
        _, name = official_loss(key, layers - 1)
        assert value.item() == pytest.approx(expected[name], rel=1e-5), key


def test_total_and_gradients(run):
    case, model, features, predictions = run
    total = case.criterion()(predictions, case.targets()).total
    # The box heads are listed twice.
    heads = {name: name.replace("transformer.decoder.bbox_embed", "bbox_embed") for name in case.weights}
    assert_total_and_gradients(case, model, features, total, SEQFORMER.from_official, aliases=heads)
