"""LW-DETR and RF-DETR: groups of queries as basic ones, plain transformers, and what they refuse."""

from __future__ import annotations

import PIL.Image
import pytest
import torch
from torchvision import tv_tensors

import dqdet
from dqdet.config import Config, WindowedVitConfig, override, resolve
from dqdet.data.transforms import make_transform
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.nn.vit import WindowedVit
from dqdet.queries import combine, random_coefficients
from dqdet.runs.folder import load_config, load_folder, load_metrics, save_folder
from dqdet.runs.transfer import start_from
from dqdet.runs.upgrade import upgrade
from dqdet.studies.combinations import combined

GROUPS, COUNT = 13, 7
SMALL = {
    "model.backbone": {
        "name": "test_vit",
        "pretrained": False,
        "positions": 4,
        "taps": [1, 2],
        "global_blocks": [1],
    },
    "data.square": False,
    "model.hidden": 64,
    "model.heads": 2,
    "model.cross_heads": 4,
    "model.decoder_layers": 2,
    "model.feedforward": 32,
    "queries.count": COUNT,
    "queries.hidden": 16,
    "queries.basic": "groups",
    "classes": ["cat", "dog", "bird"],
}
PRESETS = ["lw_detr_small", "rf_detr_nano"]
every_preset = pytest.mark.parametrize("preset", PRESETS)


def small(preset: str, **queries) -> Config:
    options = {f"queries.{name}": value for name, value in queries.items()}
    return resolve(preset, SMALL | options)


def trained(preset: str, **queries):
    """A model with all groups, whose parameters are away from initial values that hide mistakes."""
    torch.manual_seed(0)
    config = small(preset, **{"kind": "grouped", "ratio": GROUPS - 1} | queries)
    model = create_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model, config


def batch():
    torch.manual_seed(1)
    padding = torch.zeros(3, 128, 128, dtype=torch.bool)
    padding[1, 100:] = True
    return torch.randn(3, 3, 128, 128), padding


@every_preset
def test_an_upgraded_model_starts_at_the_first_group(preset):
    model, config = trained(preset)
    upgraded, upgraded_config = upgrade(model, config)
    queries = upgraded_config.queries
    assert (queries.kind, queries.ratio, queries.basic) == ("modulated", GROUPS, "groups")
    with torch.no_grad():
        before, after = model(*batch()), upgraded(*batch())
    assert after.groups == {"modulated": COUNT}
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(after.boxes, before.boxes, rtol=1e-6, atol=1e-6)


@every_preset
def test_it_keeps_all_groups_with_their_places(preset):
    """In training, basic groups 2 to 13 are what the groups 2 to 13 were, and the first is near."""
    model, config = trained(preset)
    upgraded, _ = upgrade(model, config)
    projector = [model.projector.eval(), upgraded.projector.eval()]
    for one, of_projector in zip((model.train(), upgraded.train()), projector, strict=True):
        of_projector.eval()  # batch norms
        assert one.training
    with torch.no_grad():
        before, after = model(*batch()), upgraded(*batch())
    assert list(after.groups) == ["modulated", *(f"basic {number}" for number in range(1, GROUPS + 1))]
    for number, name in enumerate(before.groups, start=1):
        kept, was = after.group(f"basic {number}"), before.group(name)
        allowed = 1e-5 if number > 1 else 0.1
        torch.testing.assert_close(kept.logits, was.logits, rtol=0, atol=allowed)
        torch.testing.assert_close(kept.boxes, was.boxes, rtol=0, atol=allowed)
    torch.testing.assert_close(after.proposals.logits, before.proposals.logits)


@every_preset
def test_it_may_start_at_the_mean_of_all_groups(preset):
    model, config = trained(preset)
    upgraded, _ = upgrade(model, config, groups="mean")
    queries = upgraded.queries(torch.randn(1, 64, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool))
    for part, alternatives in model.queries.alternatives().items():
        torch.testing.assert_close(queries[part][0], alternatives.mean(1))


@every_preset
@pytest.mark.parametrize("groups", ["first", "mean"])
def test_fine_tuning_moves_its_coefficients(preset, groups):
    upgraded, _ = upgrade(*trained(preset), groups=groups)
    before = upgraded(*batch()).coefficients.detach()
    optimiser = torch.optim.AdamW(upgraded.queries.coefficients.parameters(), lr=1e-3)
    for _ in range(20):
        optimiser.zero_grad()
        upgraded(*batch()).logits.square().sum().backward()
        optimiser.step()
    after = upgraded(*batch()).coefficients.detach()
    assert (after - before).abs().max() > 1e-3
    assert (after[0] - after[2]).abs().max() > 1e-6  # they follow the image


@every_preset
def test_a_model_with_one_group_repeats_it(preset):
    model, config = trained(preset, kind="static")
    upgraded, upgraded_config = upgrade(model, config, ratio=3)
    assert upgraded_config.queries.ratio == 3
    with torch.no_grad():
        torch.testing.assert_close(upgraded(*batch()).boxes, model(*batch()).boxes, rtol=1e-6, atol=1e-6)
        training = upgraded.train()(*batch())
    assert len({tuple(part.flatten().tolist()) for part in training.proposals.logits[0].split(COUNT, 1)}) == 1


def test_what_cannot_be_upgraded(tmp_path):
    model, config = trained("rf_detr_nano")
    with pytest.raises(DqdetError, match="has 13 groups of queries, which all become basic ones; leave out --ratio 4"):
        upgrade(model, config, ratio=4)
    with pytest.raises(DqdetError, match="there is one group of queries, which is their mean; leave it out"):
        upgrade(*trained("rf_detr_nano", kind="static"), groups="mean")
    with pytest.raises(DqdetError, match="only static queries can be upgraded; this model has modulated ones"):
        upgrade(*trained("rf_detr_nano", kind="modulated"))


def test_training_queries_that_are_no_groups_of_as_many_are_left_out():
    model, config = trained("rf_detr_nano", basic="whole")
    upgraded, _ = upgrade(model, config)
    with torch.no_grad():
        torch.testing.assert_close(upgraded(*batch()).logits, model(*batch()).logits, rtol=1e-5, atol=1e-5)


def test_folders_of_several_groups(tmp_path):
    save_folder(tmp_path / "groups", *trained("rf_detr_nano"), {"AP": 0.25})
    dqdet.upgrade(tmp_path / "groups", tmp_path / "first")
    dqdet.upgrade(tmp_path / "groups", tmp_path / "mean", groups="mean")
    assert (load_metrics(tmp_path / "first"), load_metrics(tmp_path / "mean")) == ({"AP": 0.25, "step": 0}, {"step": 0})
    assert load_config(tmp_path / "first").queries.ratio == GROUPS
    model, _ = load_folder(tmp_path / "first")
    expected, _ = load_folder(tmp_path / "groups")
    with torch.no_grad():
        torch.testing.assert_close(model(*batch()).logits, expected(*batch()).logits, rtol=1e-6, atol=1e-6)


def test_a_training_starts_from_all_groups_and_the_classes_that_it_knows(tmp_path):
    model, config = trained("rf_detr_nano")
    save_folder(tmp_path, model, config, {})
    ours = override(small("rf_detr_nano", kind="modulated", ratio=GROUPS), {"classes": ["bird", "fish"]})
    made = create_model(ours).eval()
    said = start_from(str(tmp_path), made, ours)
    assert "13 groups of queries as basic ones; re-made queries.coefficients, class_head (with 1 of 2 classes" in said
    upgraded, _ = upgrade(model, config)
    for name, tensor in made.state_dict().items():
        if name.startswith("queries.basic"):
            torch.testing.assert_close(tensor, upgraded.state_dict()[name])
    for number in range(GROUPS):
        kept = made.proposals[number].class_head.weight[0]
        torch.testing.assert_close(kept, model.proposals[number].class_head.weight[2])
    with torch.no_grad():
        bird = model(*batch()).logits[..., 2]
        assert made(*batch()).coefficients[..., 0].min() > 0.98
        assert made(*batch()).logits[..., 0].shape == bird.shape


def test_a_checkpoint_of_another_size_is_refused_in_one_line(tmp_path):
    save_folder(tmp_path, *trained("rf_detr_nano"), {})
    for option, value in (("model.backbone.patch", 14), ("model.backbone.windows", 1), ("model.decoder_layers", 3)):
        ours = override(small("rf_detr_nano"), {option: value})
        with pytest.raises(DqdetError) as error:
            start_from(str(tmp_path), create_model(ours), ours)
        assert f"the model to train differs in {option}={value};" in str(error.value)
        assert "\n" not in str(error.value)


@every_preset
def test_combinations_of_all_groups_need_no_training(preset):
    """Convex combinations of 13 groups are queries with the places of the first."""
    model, config = trained(preset)
    fewer, made = combined(model, config, random_coefficients("convex", COUNT, GROUPS))
    assert (made.queries.kind, made.queries.count) == ("static", COUNT)
    first = torch.eye(GROUPS)[:1].expand(COUNT, -1)
    same, _ = combined(model, config, first)
    with torch.no_grad():
        expected = model(*batch())
        torch.testing.assert_close(same(*batch()).logits, expected.logits)
        changed = fewer(*batch())
    torch.testing.assert_close(changed.proposals.boxes, expected.proposals.boxes)
    assert (changed.logits - expected.logits).abs().max() > 1e-3
    for part, alternatives in model.queries.alternatives().items():
        torch.testing.assert_close(same.queries.table[part], combine(alternatives.flatten(0, 1), first))


@every_preset
def test_more_queries_than_proposals(preset):
    model = create_model(small(preset, count=65)).eval()
    with pytest.raises(
        DqdetError, match=r"queries\.count=65 is more than the 64 proposals of an image whose finest map"
    ):
        model(*batch())


@every_preset
def test_images_are_padded_to_what_patch_and_windows_divide(preset):
    config = small(preset)
    model = create_model(config).eval()
    side = config.model.backbone.patch * config.model.backbone.windows
    images, padding = model.prepare(
        torch.randn(1, 3, 3 * side - 5, 2 * side + 1), torch.zeros(1, 3 * side - 5, 2 * side + 1).bool()
    )
    assert images.shape[2:] == (3 * side, 3 * side)
    assert padding.sum() == (3 * side) ** 2 - (3 * side - 5) * (2 * side + 1)


@pytest.mark.parametrize("name", ["test_vit", "vit_xsmall_patch16_clip_224", "flexivit_small"])
def test_tokens_of_one_window_are_those_of_timm(name):
    """Some have a norm before the blocks, some no position of the class token."""
    torch.manual_seed(0)
    sizes = {"patch": 16, "positions": 3, "windows": 1, "global_blocks": [0], "taps": [2]}
    model = WindowedVit(WindowedVitConfig(name=name, **sizes)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 48, 48)
    (found,) = model(images)
    model.body.blocks = model.body.blocks[:2]
    expected = model.body.forward_features(images)[:, 1:]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model.backbone.name": "resnet50"}, "model.backbone.name=resnet50: no plain vision transformer with a class"),
        ({"model.backbone.name": "vit_little_patch16_reg1_gap_256"}, "no plain vision transformer with a class token"),
        ({"model.backbone.taps": [5, 9]}, "model.backbone.name=test_vit: no plain vision .* and 9 blocks"),
        ({"model.backbone": {"name": "cae_tiny", "pretrained": True}}, "its weights are not on the hub"),
    ],
)
def test_other_backbones_are_refused(options, message):
    with pytest.raises(DqdetError, match=message):
        create_model(override(small("lw_detr_small"), options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data.val_resize=400"], "patch times windows of the backbone (16 x 2); the nearest sizes are 384 and 416"),
        (["data.resize=[384, 300]"], "data.resize: 300 is not divisible by 32"),
        (["data.val_resize=256"], "an image of 256 pixels has 256 proposals, fewer than queries.count=300"),
        (["model.backbone.windows=3"], "data.resize: 320 is not divisible by 48"),
        (["model.scales=[0.25]"], "model.scales=[0.25]: scales are 0.5, 1 and 2"),
        (["model.encoder_layers=3"], "model.encoder_layers=3"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_in_one_line(options, message):
    with pytest.raises(DqdetError) as error:
        resolve("rf_detr_nano", options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_that_keep_proportions_are_padded_and_any_fits():
    assert resolve("rf_detr_nano", ["data.val_fit=exact", "data.val_resize=400"]).data.val_resize == 400


def test_masks_need_whole_cells():
    with pytest.raises(DqdetError, match=r"patch=14 times model\.backbone\.windows=1 is not divisible by 4"):
        resolve("rf_detr_seg_nano", {"model.backbone.patch": 14, "data.square": False})


def test_squares_do_not_keep_proportions():
    config = resolve("rf_detr_nano", ["data.resize=[288, 352]", "data.val_resize=384"]).data
    image = PIL.Image.new("RGB", (640, 480))
    boxes = tv_tensors.BoundingBoxes([[64.0, 48.0, 320.0, 240.0]], format="XYXY", canvas_size=(480, 640))
    sizes = set()
    for seed in range(8):
        torch.manual_seed(seed)
        sample = make_transform(config.model_copy(update={"crop": False, "flip": False}), train=True)(
            {"image": image, "boxes": boxes, "labels": torch.tensor([1])}
        )
        side = sample["image"].shape[1]
        sizes.add(tuple(sample["image"].shape))
        torch.testing.assert_close(sample["boxes"], torch.tensor([[0.1, 0.1, 0.5, 0.5]]) * side)
    assert sizes == {(3, 288, 288), (3, 352, 352)}
    assert make_transform(config, train=False)(image).shape == (3, 384, 384)
