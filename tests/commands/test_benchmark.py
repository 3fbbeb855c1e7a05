"""``dqdet benchmark``: what a model costs, and what it finds, in one table."""

from __future__ import annotations

import json

import pytest


def test_models_are_measured_side_by_side(run, small_run, tmp_path):
    file = tmp_path / "found.json"
    code, out, err = run(
        "benchmark", small_run, small_run, "--repeats", 3, "--batch", 2, "--size", "96x128", "--out", file
    )
    assert (code, err) == (0, "")
    assert "images/s" in out
    first, second = json.loads(file.read_text())
    assert first["model"] == second["model"] == str(small_run)
    for one in first, second:
        assert one["pixels"] == [128, 170]  # the shorter side is resized to 128
        assert 0 < one["latency_ms"] <= one["latency_p95_ms"]
        assert one["images_per_s"] > 0
        assert one["memory_mib"] > 50
        assert one["precision"] == "fp32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inference.limit=3"], "which models? give runs or exported files"),
        (["{folder}", "--size", "0"], "--size 0: not a size"),
        (["{folder}", "train.lr=1"], "train.lr has no effect on a prediction"),
    ],
)
def test_what_cannot_be_measured_is_one_line(run, small_run, arguments, message):
    code, out, err = run("benchmark", *(argument.format(folder=small_run) for argument in arguments))
    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
