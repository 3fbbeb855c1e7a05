"""Outputs, losses, matchings and gradients equal to those recorded from the official implementations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recorded import LOSSES, DetectorCase, close, frozen, model_config, official_loss, pairs, recorded_pairs

from dqdet.losses import SetLoss
from dqdet.losses.matching import match
from dqdet.types import Predictions
from dqdet.weights import PUBLISHED

SMALL = [
    "detr",
    "conditional_detr",
    "conditional_detr_dq",
    "smca_detr",
    "smca_detr_dq",
    "dab_detr",
    "dab_detr_dq",
    "deformable_detr",
    "deformable_detr_refine",
    "deformable_detr_two_stage",
    "deformable_detr_dq",
    "dab_deformable_detr",
    "dab_deformable_detr_dq",
]
FULL = [f"{name}_r50_full" for name in SMALL]
FROZEN = ["detr_r50_full", "deformable_detr_dq_r50_full"]  # of these, those that every clone has
CASES = [
    *SMALL,
    *(pytest.param(name, marks=pytest.mark.slow) for name in FULL),
    *(pytest.param(frozen(name), id=f"frozen-{name}") for name in FROZEN),
]


@pytest.fixture(scope="module", params=CASES)
def run(request):
    """The case, our model, and its predictions in training mode from features that keep their gradients."""
    folder = request.param
    if not isinstance(folder, Path):
        folder = request.getfixturevalue("shared") / "parity" / folder
    case = DetectorCase.read(folder)
    config = model_config(case)
    model = case.build(config).train()
    features = [feature.requires_grad_() for feature in case.features]
    predictions = model.forward_features(features, case.padding())
    return case, config.family, model, features, predictions


def branches(case: DetectorCase, predictions: Predictions) -> list[tuple[str, str, Predictions]]:
    """Prefix of tensors, suffix of expected entries, and predictions of every branch."""
    first, *others = predictions.groups
    found = [("", "", predictions.group(first))]
    return found + [("org_", "_org", predictions.group(name)) for name in others]


def test_outputs_of_all_layers(run):
    case, _, _, _, predictions = run
    for prefix, _, branch in branches(case, predictions):
        close(branch.boxes, case.io[f"{prefix}boxes"])
        if f"{prefix}logits" in case.io:
            close(branch.logits, case.io[f"{prefix}logits"])
        else:
            if f"{prefix}logits_last" in case.io:
                close(branch.logits[-1], case.io[f"{prefix}logits_last"])
            norms = torch.tensor(case.expected[f"{prefix}logits_norm_per_layer"])
            close(branch.logits.flatten(1).norm(dim=1), norms.float())
    if case.dynamic:
        close(predictions.coefficients, case.io["coefficients"])


def test_encoder_proposals(run):
    case, _, _, _, predictions = run
    if predictions.proposals is None:
        assert "enc_logits" not in case.io
        return
    if "enc_logits" in case.io:
        close(predictions.proposals.logits[0], case.io["enc_logits"])
        close(predictions.proposals.boxes[0], case.io["enc_boxes"])


def test_inference_is_the_first_branch(run):
    case, _, model, features, _ = run
    model.eval()
    with torch.no_grad():
        predictions = model.forward_features(features, case.padding())
    model.train()
    close(predictions.final.boxes, case.io["boxes"][-1:])
    assert list(predictions.groups.values()) == [case.options["num_queries"]]


@pytest.mark.parametrize("targets", ["targets", "targets_2"])
def test_matchings(run, targets):
    case, _, _, _, predictions = run
    suffix = "_2" if targets == "targets_2" else ""
    if f"indices{suffix}" not in case.expected:
        pytest.skip("recorded for the small cases only")
    for _, branch, group in branches(case, predictions):
        found = match(group, case.targets(targets), case.loss())
        assert pairs(found) == recorded_pairs(case.expected[f"indices{branch}{suffix}"])


@pytest.mark.parametrize("targets", ["targets", "targets_2"])
def test_losses(run, targets):
    case, _, _, _, predictions = run
    suffix = "_2" if targets == "targets_2" else ""
    if f"losses{suffix}" not in case.expected:
        pytest.skip("recorded for the small cases only")
    terms = SetLoss(case.loss())(predictions, case.targets(targets)).terms
    compared = 0
    for key, value in terms.items():
        group, name = official_loss(key, case.options["dec_layers"] - 1)
        branch = "_org" if group == "basic" else ""
        expected = case.expected[f"losses{branch}{suffix}"]
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), key
        compared += 1
    recorded = [k for b in ("", "_org") for k in case.expected.get(f"losses{b}{suffix}", {})]
    assert compared == sum(k.startswith(tuple(LOSSES.values())) for k in recorded)


def test_total_and_gradients(run):
    case, family, model, features, predictions = run
    total = SetLoss(case.loss())(predictions, case.targets()).total
    assert total.item() == pytest.approx(case.expected["total_loss"], rel=1e-4)
    gradients = torch.autograd.grad(total, [*features, *model.parameters()], retain_graph=True, allow_unused=True)
    for level, gradient in enumerate(gradients[: len(features)]):
        if f"grad_features_{level}" in case.io:
            expected = case.io[f"grad_features_{level}"]
            assert (gradient - expected).norm() < 1e-3 * expected.norm()
        else:
            assert gradient.norm().item() == pytest.approx(case.expected["grad_features_norms"][level], rel=2e-3)
    names = [name for name, _ in model.named_parameters()]
    by_name = dict(zip(names, gradients[len(features) :], strict=True))
    aliases = {alias: name for name, others in case.config["shared_parameters"].items() for alias in others}
    norms = case.gradient_norms(by_name, PUBLISHED[family].from_official, aliases)
    # Some gradients are zero but for rounding, which grows with the others.
    noise = max(1e-4, 1e-7 * max(norm or 0.0 for norm in case.expected["grad_norms"].values()))
    for name, expected in case.expected["grad_norms"].items():
        assert norms[name] == pytest.approx(expected or 0.0, rel=2e-3, abs=noise), name
