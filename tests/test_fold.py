"""A model whose combinations do not depend on the image becomes a static one with the same outputs."""

import re

import PIL.Image
import pytest
import torch

import dqdet
from dqdet import cli
from dqdet.config import resolve
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.predict.averaging import mean_queries
from dqdet.predict.predictor import Predictor
from dqdet.queries import combine
from dqdet.runs.fold import fold
from dqdet.runs.folder import save_folder
from test_vit_families import SMALL
from tiny import PRESETS, tiny, tiny_family

SEGMENTATION = ["mask2former_r50_coco_instance", "video_mask2former_r50", "seqformer_r50"]
TRANSFORMERS = ["lw_detr_small", "rf_detr_nano", "rf_detr_seg_nano"]  # with proposal heads for groups of queries
AVERAGED = ["detr_r50", "dab_deformable_detr_r50", "dino_r50", "mask2former_r50_coco_instance"]
EVERY = [*PRESETS, *SEGMENTATION, *TRANSFORMERS]


def config_of(preset: str, **queries):
    options = {f"queries.{name}": value for name, value in queries.items()}
    if preset in TRANSFORMERS:
        return resolve(preset, SMALL | {"queries.ratio": 3, "data.val_resize": 64} | options)
    options = {name.replace(".", "__"): value for name, value in options.items()}
    return tiny_family(preset, classes=["cat", "dog"], data__val_resize=64, data__max_size=96, **options)


def model_of(preset: str, **queries):
    config = config_of(preset, **queries)
    torch.manual_seed(0)
    model = create_model(config).eval()
    with torch.no_grad():
        for parameter in model.queries.coefficients.parameters():
            parameter.normal_()
    return model, config


@pytest.mark.parametrize(
    ("preset", "kind", "basic"),
    [
        *((preset, kind, "whole") for preset in EVERY for kind in ("modulated", "shared")),
        *((preset, "modulated", basic) for preset in ("dino_r50", *TRANSFORMERS) for basic in ("groups", "one")),
    ],
)
def test_outputs_stay_the_same(preset, kind, basic):
    model, config = model_of(preset, context="none", kind=kind, basic=basic)
    folded, static = fold(model, config)
    assert (static.queries.kind, static.queries.count) == ("static", config.queries.count)
    frames = (2,) if config.data.task == "video" else ()
    images, padding = torch.randn(2, *frames, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    with torch.inference_mode():
        before, after = model(images, padding), folded(images, padding)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-6)
    if before.boxes is not None:
        torch.testing.assert_close(after.boxes, before.boxes, rtol=0, atol=1e-6)
    assert not [name for name in folded.state_dict() if name.startswith(("queries.coefficients", "proposals.1"))]


@pytest.mark.parametrize("basic", ["whole", "groups"])
@pytest.mark.parametrize("preset", ["deformable_detr_r50", "mask2former_r50_coco_instance", "rf_detr_nano"])
def test_groups_that_only_train_end_with_the_training(preset, basic):
    torch.manual_seed(0)
    config = config_of(preset, kind="grouped", basic=basic)
    model = create_model(config).eval()
    folded, static = fold(model, config)
    assert static.queries.kind == "static"
    images, padding = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    with torch.inference_mode():
        before, after = model(images, padding), folded(images, padding)
    assert torch.equal(after.logits, before.logits)


def test_static_queries_cannot_be_folded():
    config = config_of("detr_r50", kind="static")
    with pytest.raises(DqdetError, match="static already; there is nothing to fold"):
        fold(create_model(config), config)


def test_combinations_of_the_image_cannot_be_folded():
    with pytest.raises(DqdetError, match=r"queries\.kind=modulated with queries\.context=backbone makes other"):
        fold(*model_of("detr_r50"))


@pytest.mark.parametrize(
    ("preset", "kind", "basic"),
    [
        *((preset, kind, "whole") for preset in AVERAGED for kind in ("modulated", "generated")),
        *((preset, "modulated", "groups") for preset in TRANSFORMERS),
    ],
)
def test_the_mean_over_equal_images_is_that_of_each(preset, kind, basic, tmp_path):
    torch.manual_seed(0)
    config = config_of(preset, kind=kind, basic=basic)
    model = create_model(config).eval()
    with torch.no_grad():
        for parameter in model.queries.parameters():
            parameter.normal_()
    image = PIL.Image.effect_noise((96, 64), 50).convert("RGB")
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    predictor = Predictor(model, config, device="cpu")
    folded, _ = fold(model, config, mean_queries(predictor, tmp_path))
    wanted, found = (next(iter(one.outcomes([image]))) for one in (predictor, Predictor(folded, config, device="cpu")))
    torch.testing.assert_close(found.scores, wanted.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.boxes, wanted.boxes, rtol=0, atol=1e-3)  # pixels


def test_the_mean_is_that_of_the_mean_coefficients(tmp_path):
    model, config = model_of("deformable_detr_r50")
    for number, level in enumerate((0, 120, 250)):
        PIL.Image.new("RGB", (64, 64), (level, 90, 20)).save(tmp_path / f"{number}.png")
    seen = []
    handle = model.queries.register_forward_hook(lambda module, inputs, queries: seen.append(queries.coefficients))
    mean = mean_queries(Predictor(model, config, device="cpu"), tmp_path)
    handle.remove()
    coefficients = torch.cat(seen).mean(0, keepdim=True)  # [1, m, r]
    assert torch.cat(seen).std(0).max() > 1e-3
    for name, basic in model.queries.basic.items():
        torch.testing.assert_close(mean[name], combine(basic, coefficients)[0].detach())


def test_what_cannot_be_averaged_is_one_line(tmp_path):
    for preset, kind, message in (
        ("detr_r50", "static", "queries.kind=static has the same queries for every image; leave out --images"),
        ("detr_r50", "grouped", "queries.kind=grouped has the same queries for every image; leave out --images"),
        ("video_mask2former_r50", "modulated", "only queries that are made from an image can be averaged; this model"),
    ):
        config = tiny_family(preset, classes=["cat"], queries__kind=kind)
        with pytest.raises(DqdetError, match=re.escape(message)):
            mean_queries(Predictor(create_model(config), config, device="cpu"), tmp_path)
    model, config = model_of("detr_r50")
    with pytest.raises(DqdetError, match="no images in this folder"):
        mean_queries(Predictor(model, config, device="cpu"), tmp_path)


def test_command(tmp_path, monkeypatch, capsys):
    config = tiny(classes=["cat"], queries__context="none")
    save_folder(tmp_path / "run", create_model(config), config, {"AP": 0.25})
    monkeypatch.setattr("sys.argv", ["dqdet", "fold", str(tmp_path / "run"), "--out", str(tmp_path / "static")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "5 static queries" in capsys.readouterr().out
    assert dqdet.load(tmp_path / "static").metrics == {"AP": 0.25, "step": 0}
