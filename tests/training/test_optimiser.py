import pytest
import torch

from dqdet.config import TrainConfig
from dqdet.models import create_model
from dqdet.training.optimiser import learning_rate_factor, make_optimiser, make_schedule
from tiny import tiny


def groups(optimiser, model) -> dict[str, set[str]]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[p] for p in group["params"]} for group in optimiser.param_groups}


@pytest.mark.parametrize("freeze", [True, False])
def test_groups_are_those_of_the_published_code(freeze):
    config = tiny(classes=["a"], model__backbone__freeze=freeze)
    model = create_model(config)
    optimiser = make_optimiser(model, TrainConfig(lr=3, backbone_lr=2, offsets_lr=1, weight_decay=0.5))

    # The published rule: by parts of the names.
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    backbone = {name for name in trained if "backbone" in name}
    offsets = {name for name in trained if "reference_points" in name or "sampling_offsets" in name}
    assert groups(optimiser, model) == {
        "backbone": backbone,
        "offsets": offsets,
        "rest": trained - backbone - offsets,
    }
    assert {group["name"]: group["lr"] for group in optimiser.param_groups} == {"rest": 3, "backbone": 2, "offsets": 1}
    assert all(group["weight_decay"] == 0.5 for group in optimiser.param_groups)
    assert len(offsets) == 2 * (1 + 2 + 1)  # weights and biases: encoder layer, two decoder layers, first references
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert bool(frozen) == freeze


def test_a_backbone_rate_of_zero_freezes_it():
    model = create_model(tiny(classes=["a"]))
    optimiser = make_optimiser(model, TrainConfig(backbone_lr=0))
    assert set(groups(optimiser, model)) == {"rest", "offsets"}
    assert not any(parameter.requires_grad for parameter in model.backbone.parameters())
    assert all(p.requires_grad for group in optimiser.param_groups for p in group["params"])


def test_every_trained_parameter_gets_a_gradient():
    # Otherwise several processes would wait for one that never comes.
    config = tiny(classes=["a"])
    model = create_model(config).train()
    predictions = model(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool))
    (predictions.logits.sum() + predictions.boxes.sum()).backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_rates_fall_to_a_tenth_after_each_drop():
    factor = learning_rate_factor(TrainConfig(drop=[4.5, 2.0]), steps_per_epoch=10)
    assert [factor(step) for step in (0, 19)] == [1, 1]
    assert [factor(step) for step in (20, 44)] == pytest.approx([0.1, 0.1])
    assert [factor(step) for step in (45, 1000)] == pytest.approx([0.01, 0.01])


def test_rates_rise_linearly_in_the_warm_up():
    factor = learning_rate_factor(TrainConfig(warmup=4, drop=[1.0]), steps_per_epoch=3)
    assert [factor(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 0.1, 0.1])
    assert learning_rate_factor(TrainConfig(warmup=0), 10)(0) == 1


def test_the_schedule_moves_all_groups():
    model = create_model(tiny(classes=["a"]))
    config = TrainConfig(lr=1.0, backbone_lr=0.1, offsets_lr=0.01, drop=[1.0])
    optimiser = make_optimiser(model, config)
    schedule = make_schedule(optimiser, config, steps_per_epoch=2)
    seen = []
    for _ in range(3):
        seen.append({group["name"]: group["lr"] for group in optimiser.param_groups})
        optimiser.step()
        schedule.step()
    assert seen[0] == seen[1] == {"rest": 1.0, "backbone": 0.1, "offsets": 0.01}
    assert seen[2] == pytest.approx({"rest": 0.1, "backbone": 0.01, "offsets": 0.001})
