import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR

from dqdet.config import TrainConfig, resolve
from dqdet.errors import DqdetError
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


# Attributes that are nn.Embedding, and parameters that are named, in the published code.
EMBEDDINGS = ("queries.basic.", "level_embed", "relative_position_bias_table")


def test_norms_and_embeddings_learn_without_weight_decay():
    config = resolve(
        "scenes_tiny_panoptic",
        {
            "model.backbone.name": "swin_tiny_patch4_window7_224",
            "model.decoder_layers": 1,
            "queries.count": 4,
            "classes": ["a"],
        },
    )
    model = create_model(config)
    optimiser = make_optimiser(model, TrainConfig(lr=3, backbone_lr=2, weight_decay=0.5, decay_norms=False))
    names = {parameter: name for name, parameter in model.named_parameters()}
    free = {names[p] for group in optimiser.param_groups if not group["weight_decay"] for p in group["params"]}
    decayed = {names[p] for group in optimiser.param_groups if group["weight_decay"] == 0.5 for p in group["params"]}
    assert free | decayed == set(names.values())
    assert not free & decayed

    # Norms are known by their type in the published code; here by how they start: with ones, and a bias beside them.
    ones = {name for name, p in model.named_parameters() if p.dim() == 1 and bool((p == 1).all())}
    norms = ones | {name.removesuffix("weight") + "bias" for name in ones}
    embeddings = {name for name in names.values() if name.startswith(EMBEDDINGS) or name.endswith(EMBEDDINGS)}
    assert free == norms | embeddings - {"pixel_decoder.encoder.level_embed"}  # a plain parameter, which decays
    assert {group["lr"] for group in optimiser.param_groups if group["name"].startswith("backbone")} == {2}

    everything = make_optimiser(model, TrainConfig(weight_decay=0.5))
    assert all(group["weight_decay"] == 0.5 for group in everything.param_groups)


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


def test_rates_fall_to_a_tenth_after_each_step_that_is_given():
    factor = learning_rate_factor(TrainConfig(drop=[], drop_steps=[7, 3]), steps_per_epoch=10)
    assert [factor(step) for step in (0, 2, 3, 6, 7, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_rates_rise_linearly_in_the_warm_up():
    factor = learning_rate_factor(TrainConfig(warmup=4, drop=[1.0]), steps_per_epoch=3)
    assert [factor(step) for step in range(5)] == pytest.approx([0.25, 0.5, 0.75, 0.1, 0.1])
    assert learning_rate_factor(TrainConfig(warmup=0), 10)(0) == 1


@pytest.mark.parametrize("steps", [None, 13])
def test_rates_fall_as_a_power_of_the_steps_left(steps):
    config = TrainConfig(schedule="poly", power=0.9, epochs=4, steps=steps)
    factor = learning_rate_factor(config, steps_per_epoch=5)
    total = steps or 20
    optimiser = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = PolynomialLR(optimiser, total_iters=total, power=0.9)
    for step in range(total + 2):
        assert factor(step) == pytest.approx(reference.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        reference.step()


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


# Decay of the blocks, number of blocks, factor on the decoder's rate; the rate of the encoder is 1.5e-4.
PUBLISHED_RATES = {
    "lw_detr_tiny": (0.8, 6, 0.7),
    "lw_detr_small": (0.8, 10, 0.7),
    "lw_detr_medium": (0.7, 10, 0.7),
    "lw_detr_large": (0.7, 10, 0.5),
    "lw_detr_xlarge": (0.75, 10, 0.5),
    "rf_detr_nano": (0.8, 13, 0.7),
}


@pytest.mark.parametrize("preset", PUBLISHED_RATES)
def test_rates_of_plain_transformers_are_those_of_the_published_code(preset):
    """``get_vit_lr_decay_rate`` of LW-DETR, and of RF-DETR, which counts one block more than there are."""
    layer_decay, blocks, component = PUBLISHED_RATES[preset]
    config = resolve(preset, {"model.backbone.pretrained": False, "classes": ["a"]})
    model = create_model(config)
    optimiser = make_optimiser(model, config.train)
    found = {p: (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        rate, decays = 1e-4, True
        if name.startswith(("decoder.", "norm.", "position_head.")):
            rate *= component
        elif name.startswith("backbone.body.norm."):  # published: without layer_decay
            assert found[parameter] == (pytest.approx(1.5e-4 * component**2 * layer_decay**2), 0.0)
            continue
        elif name.startswith("backbone."):
            layer = int(name.split(".")[3]) + 1 if ".blocks." in name else 0
            rate = 1.5e-4 * layer_decay ** (blocks + 1 - layer) * component**2
            decays = parameter.dim() > 1 and "pos_embed" not in name and "cls_token" not in name
        assert found[parameter] == (pytest.approx(rate), config.train.weight_decay if decays else 0.0), name


def test_layers_of_other_backbones_have_no_rates():
    with pytest.raises(DqdetError, match=r"train\.layer_decay is for plain transformers, not model\.family=detr"):
        resolve("detr_r50", ["train.layer_decay=0.8"])
