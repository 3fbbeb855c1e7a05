"""The scripts of examples/ at tiny sizes: they run to their end and leave what they promise."""

import importlib.util
import json
from pathlib import Path

import PIL.Image
import pytest
import torch

import dqdet
import dqdet.queries
from documentation import SIZES, as_words, prepare
from dqdet.errors import DqdetError

FOLDER = Path(__file__).resolve().parent.parent / "examples"
SMALL = as_words({name: value for name, value in SIZES.items() if not name.startswith("model.")})


def example(name: str):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_data_from_zero(tmp_path):
    prepare(tmp_path)
    out = example("bccd").main(["--data", str(tmp_path / "data/cells"), "--out", str(tmp_path / "out"), *SMALL])
    assert "red" in (out / "data.html").read_text()
    assert PIL.Image.open(out / "predictions.png").height > 100
    assert (out / "run" / "eval" / "metrics.json").is_file()


@pytest.mark.slow
def test_upgrade_and_fine_tune(tmp_path):
    prepare(tmp_path)
    options = ["--data", str(tmp_path / "data/cells"), "--out", str(tmp_path / "out"), "--ratio", "2", *SMALL]
    assert set(example("fine_tune").main(options)) == {"static", "modulated"}
    predictors = [dqdet.load(tmp_path / "out" / name) for name in ("start", "upgraded", "modulated")]
    assert [predictor.config.queries.kind for predictor in predictors] == ["static", "modulated", "modulated"]
    before, upgraded = (next(p.predictions([tmp_path / "street.jpg"]))[0].boxes for p in predictors[:2])
    torch.testing.assert_close(upgraded, before)


@pytest.mark.slow
def test_panoptic_scenes(tmp_path):
    out = example("panoptic").main(["--out", str(tmp_path / "out"), *SMALL])
    assert all(PIL.Image.open(out / f"{number}.png").width >= 64 for number in range(4))
    assert "PQ" in json.loads((out / "run" / "eval" / "metrics.json").read_text())


@pytest.mark.slow
def test_a_video(tmp_path):
    out = example("video").main(["--out", str(tmp_path / "out"), *SMALL, "data.scenes.train_images=4"])
    assert (out / "video.mp4").stat().st_size > 0
    assert (out / "found" / "results.json").is_file()
    assert list((out / "found").glob("*.mp4"))


def test_own_queries_train_and_load_where_the_program_brings_them(tmp_path, monkeypatch):
    monkeypatch.setattr(dqdet.queries, "own", None)
    module = example("own_queries")
    assert set(module.main(["--out", str(tmp_path / "out"), *SMALL])) == {"static", "own"}
    run = tmp_path / "out" / "own"
    predictor = dqdet.load(run)
    assert type(predictor.model.queries) is module.ShiftedQueries
    images = [PIL.Image.new("RGB", (64, 64), colour) for colour in ("black", "white")]
    queries = []
    predictor.model.queries.register_forward_hook(lambda *given: queries.append(given[-1]["content"]))
    predictor(images)
    black, white = queries[0]
    assert (black - white).abs().max() > 1e-4  # they depend on the image
    torch.testing.assert_close(black - black[:1], white - white[:1], atol=1e-4, rtol=1e-4)  # all by the same vector

    monkeypatch.setattr(dqdet.queries, "own", None)
    with pytest.raises(DqdetError, match=r"queries\.kind=own needs a program that sets dqdet\.queries\.own"):
        dqdet.load(run)
