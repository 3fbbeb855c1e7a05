"""``benchmarks/families.py`` on sizes that not every family takes."""

import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize(
    ("size", "preset", "reason"),
    [
        ("600", "lw_detr_small", "600 is not divisible by 64, .* the nearest sizes are 576 and 640"),
        ("64", "rf_detr_nano", "an image of 64 pixels has 16 proposals, fewer than queries.count=300"),
    ],
)
def test_a_size_that_a_family_does_not_take_is_said_in_one_line(monkeypatch, capsys, size, preset, reason):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'dqdet[transformers]'")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["families.py", "--size", size, "--families", "detr_r50", preset])
    with pytest.raises(SystemExit, match=f"^--size {size}: {preset}: .*{reason}.*; or leave it out of --families$"):
        runpy.run_path(str(BENCHMARKS / "families.py"), run_name="__main__")
    assert capsys.readouterr().out == ""  # nothing has been measured
