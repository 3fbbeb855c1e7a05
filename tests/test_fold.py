"""A model whose combinations do not depend on the image becomes a static one with the same outputs."""

import pytest
import torch

import dqdet
from dqdet import cli
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.runs.fold import fold
from dqdet.runs.folder import save_folder
from tiny import PRESETS, tiny, tiny_family

SEGMENTATION = ["mask2former_r50_coco_instance", "video_mask2former_r50", "seqformer_r50"]


def model_of(preset: str, **queries):
    options = {f"queries__{name}": value for name, value in queries.items()}
    config = tiny_family(preset, classes=["cat", "dog"], **options)
    torch.manual_seed(0)
    model = create_model(config).eval()
    with torch.no_grad():
        for parameter in model.queries.coefficients.parameters():
            parameter.normal_()
    return model, config


@pytest.mark.parametrize("preset", [*PRESETS, *SEGMENTATION])
@pytest.mark.parametrize("kind", ["modulated", "shared"])
def test_outputs_stay_the_same(preset, kind):
    model, config = model_of(preset, context="none", kind=kind)
    folded, static = fold(model, config)
    assert (static.queries.kind, static.queries.count) == ("static", config.queries.count)
    frames = (2,) if config.data.task == "video" else ()
    images, padding = torch.randn(2, *frames, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    with torch.inference_mode():
        before, after = model(images, padding), folded(images, padding)
    torch.testing.assert_close(after.logits, before.logits, rtol=0, atol=1e-6)
    if before.boxes is not None:
        torch.testing.assert_close(after.boxes, before.boxes, rtol=0, atol=1e-6)
    assert "queries.coefficients.values" not in folded.state_dict()


def test_combinations_of_the_image_cannot_be_folded():
    with pytest.raises(DqdetError, match=r"queries\.kind=modulated and queries\.context=backbone"):
        fold(*model_of("detr_r50"))


def test_command(tmp_path, monkeypatch, capsys):
    config = tiny(classes=["cat"], queries__context="none")
    save_folder(tmp_path / "run", create_model(config), config, {"AP": 0.25})
    monkeypatch.setattr("sys.argv", ["dqdet", "fold", str(tmp_path / "run"), "--out", str(tmp_path / "static")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "5 static queries" in capsys.readouterr().out
    assert dqdet.load(tmp_path / "static").metrics == {"AP": 0.25}
