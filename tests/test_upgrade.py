"""A static model that becomes modulated computes the same."""

import pytest
import torch
from torch import Tensor

import dqdet
from dqdet.errors import DqdetError
from dqdet.losses import SetLoss
from dqdet.models import create_model
from dqdet.models.seqformer import SeqFormer
from dqdet.models.video_mask2former import VideoMask2Former
from dqdet.runs.folder import load_config, load_folder, load_metrics, save_folder
from dqdet.runs.upgrade import upgrade
from dqdet.types import Predictions, Target, pad_images
from tiny import PRESETS, TINY, tiny, tiny_family

RATIO = 3
SEGMENTATION = ["mask2former_r50_coco_instance", "video_mask2former_r50", "seqformer_r50"]


def static(preset: str, **options):
    """A model whose parameters are away from initial values that hide mistakes."""
    torch.manual_seed(0)
    config = tiny_family(preset, queries__kind="static", classes=["cat", "dog", "bird"], **options)
    model = create_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval(), config


def batch():
    torch.manual_seed(1)
    return pad_images([torch.randn(3, 64, 100), torch.randn(3, 96, 70), torch.randn(3, 96, 100)])


def outputs(model, images: Tensor, padding: Tensor) -> Predictions:
    if isinstance(model, VideoMask2Former | SeqFormer):
        images = torch.stack([images, images.flip(-1)], 1)  # [B, T, 3, H, W]
    with torch.no_grad():
        return model(images, padding)


@pytest.mark.parametrize("preset", [*PRESETS, *SEGMENTATION])
def test_outputs_stay_the_same(preset):
    model, config = static(preset)
    upgraded, upgraded_config = upgrade(model, config, RATIO)
    assert (upgraded_config.queries.kind, upgraded_config.queries.ratio) == ("modulated", RATIO)
    before, after = outputs(model, *batch()), outputs(upgraded, *batch())
    assert after.groups == {"modulated": 5}
    assert after.coefficients.shape == (3, 5, RATIO)
    assert (after.coefficients[0] - after.coefficients[1]).abs().max() > 0
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(after.boxes, before.boxes, rtol=0, atol=1e-5)
    assert (after.masks is not None) == (preset in SEGMENTATION)
    if after.masks is not None:
        torch.testing.assert_close(after.masks.all(), before.masks.all(), rtol=1e-4, atol=1e-4)


def test_a_static_model_without_context_gets_one():
    model, config = static("detr_r50")
    config.queries.context = "none"
    upgraded, config = upgrade(model, config, RATIO)
    assert config.queries.context == "backbone"
    assert outputs(upgraded, *batch()).coefficients[0].ne(outputs(upgraded, *batch()).coefficients[1]).any()


@pytest.mark.parametrize("preset", PRESETS)
def test_training_moves_the_coefficients_which_follow_the_image_and_the_queries_apart(preset):
    # With one channel a group, as many as TINY has, the group norm would make the means of all images equal.
    model, config = upgrade(*static(preset, model__hidden=64), RATIO)
    before = model(*batch()).coefficients.detach()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = SetLoss(config.loss)
    targets = [
        Target(torch.tensor([i]), torch.tensor([[0.2 + 0.2 * i, 0.5, 0.2, 0.3]]), (64, 64), (64, 64)) for i in range(3)
    ]
    model.train()
    for _ in range(5):
        optimiser.zero_grad()
        criterion(model(*batch()), targets).total.backward()
        optimiser.step()
    after = model.eval()(*batch()).coefficients.detach()
    spread = (after - after.mean(0)).abs().mean()
    assert spread > 1e-3
    assert (after - before).abs().mean() > 1e-3
    for table in model.queries.basic.values():  # what was one query has become several
        assert (table.unflatten(0, (-1, RATIO)).std(1) > 1e-5).any(-1).all()


@pytest.mark.parametrize("preset", [*PRESETS, *SEGMENTATION])
def test_a_perturbation_is_relative_to_the_queries(preset):
    model, config = static(preset)
    upgraded, _ = upgrade(model, config, RATIO, perturbation=0.1)
    for name, table in model.queries.table.items():
        noise = upgraded.queries.basic[name] - table.repeat_interleave(RATIO, 0)
        assert noise.std().item() == pytest.approx(0.1 * table.std().item(), rel=0.5)


def test_patterns_of_dab_detr_are_kept():
    model, config = static("dab_detr_r50", model__patterns=2)
    upgraded, _ = upgrade(model, config, RATIO)
    with torch.no_grad():
        before, after = model(*batch()), upgraded(*batch())
    torch.testing.assert_close(after.boxes, before.boxes, rtol=0, atol=1e-5)


def test_coefficients_become_convex():
    """Raw ones would change the outputs."""
    model, config = static("detr_r50", queries__coefficients="raw")
    upgraded, upgraded_config = upgrade(model, config, RATIO)
    assert upgraded_config.queries.coefficients == "softmax"
    torch.testing.assert_close(upgraded(*batch()).coefficients.sum(-1), torch.ones(3, 5))


def test_folders(tmp_path):
    save_folder(tmp_path / "static", *static("detr_r50"), {"step": 7, "AP": 0.25})
    assert dqdet.upgrade(tmp_path / "static", tmp_path / "same", ratio=2) == tmp_path / "same"
    dqdet.upgrade(tmp_path / "static", tmp_path / "other", perturbation=0.01)
    assert load_metrics(tmp_path / "same") == {"step": 0, "AP": 0.25}
    assert load_metrics(tmp_path / "other") == {"step": 0}
    assert load_config(tmp_path / "same").init == str(tmp_path / "static")
    model, config = load_folder(tmp_path / "same")
    assert (config.queries.kind, config.queries.count, config.queries.ratio) == ("modulated", 5, 2)
    with torch.no_grad():
        expected = load_folder(tmp_path / "static")[0](*batch())
        torch.testing.assert_close(model(*batch()).logits, expected.logits, rtol=0, atol=1e-5)
    with pytest.raises(DqdetError, match="same: has a run already"):
        dqdet.upgrade(tmp_path / "static", tmp_path / "same")
    with pytest.raises(DqdetError, match="same: only static queries can be upgraded; this model has modulated ones"):
        dqdet.upgrade(tmp_path / "same", tmp_path / "twice")
    with pytest.raises(DqdetError, match=r"queries\.ratio=0: should be greater than 0"):
        dqdet.upgrade(tmp_path / "static", tmp_path / "zero", ratio=0)


def test_proposals_of_the_encoder_are_no_queries_to_combine():
    model, config = static("deformable_detr_r50", model__refine=True, model__two_stage=True)
    with pytest.raises(DqdetError, match="this model has the encoder's proposals"):
        upgrade(model, config)


def test_an_upgraded_model_is_trained_further(tmp_path, capsys):
    options = TINY | {"train.steps": 2}
    static_run = dqdet.train("scenes_tiny", out=tmp_path / "static", **options | {"queries.kind": "static"})
    upgraded = dqdet.upgrade(static_run, tmp_path / "upgraded", ratio=options["queries.ratio"])
    queries = tiny().queries
    assert load_config(upgraded).queries == queries
    capsys.readouterr()
    run = dqdet.train("scenes_tiny", out=tmp_path / "run", init=str(upgraded), **options)
    assert f"init={upgraded}: loaded" in capsys.readouterr().err
    assert load_config(run).init == str(upgraded)
