"""``benchmarks/gpu.py`` without a GPU: measurements are made once, failures are kept, and the table has them all."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from dqdet.errors import DqdetError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def setting(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu.measurements import Setting

    return Setting(torch.device("cpu"), tiny=True)


@pytest.fixture
def run_script(setting, monkeypatch):
    """Runs the script as the command line does, but in this process, which has PyTorch and Lightning already."""

    def run(*arguments: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--tiny", *arguments])
        runpy.run_path(str(BENCHMARKS / "gpu.py"), run_name="__main__")

    return run


def test_sampling_is_measured_once_and_tabled(run_script, tmp_path, capsys):
    arguments = ("--out", str(tmp_path / "out"), "--table", str(tmp_path / "gpu.md"), "--pieces", "sampling")
    run_script(*arguments)
    files = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")}
    results = {file.stem: json.loads(content) for file, content in files.items()}
    assert len(results) == 7
    assert not [name for name, result in results.items() if "error" in result]
    table = (tmp_path / "gpu.md").read_text()
    assert results["copy"]["card"] in table
    for precision in ("bf16", "fp32", "fp16"):
        for direction in ("forward", "backward"):
            assert table.count(f"| {precision} | 1 | {direction} |") == 2  # of encoder and decoder

    capsys.readouterr()
    run_script(*arguments)
    assert "7 of 7 measured already" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*.json")} == files


def test_no_table_of_nothing(run_script, tmp_path):
    message = f"error: {tmp_path / 'out'}: nothing measured yet, so no table; run the pieces first"
    with pytest.raises(SystemExit, match=re.escape(message)):
        run_script("--out", str(tmp_path / "out"), "--table", str(tmp_path / "gpu.md"), "--pieces")
    assert not (tmp_path / "gpu.md").exists()


@pytest.mark.slow
def test_a_family_is_timed_in_turns(setting, tmp_path):
    from gpu import speed
    from gpu.measurements import Folder, run_piece
    from gpu.table import make_table

    folder = Folder(tmp_path)
    name = "deformable_detr_r50-fp32-1-inference"
    chosen = [m for m in speed.measurements(setting) if m.name in ("peak", name)]
    run_piece("speed", chosen, folder, setting, minutes=1)
    result = folder.read("speed", name)
    assert "error" not in result
    assert list(result["seconds"]) == ["transformers", "static", "modulated", "queries alone"]
    assert result["flops"]["modulated"] > result["flops"]["static"] > 1e8
    table = make_table(folder, setting)
    for kind in ("transformers", "static", "modulated", "queries alone"):
        assert f"| deformable_detr_r50 | fp32 | 1 | inference | {kind} |" in table


def test_what_fails_is_kept_and_tried_again_last(setting, tmp_path):
    from gpu.measurements import Folder, Measurement, run_piece

    folder = Folder(tmp_path)
    begun = []

    def measurement(name: str, fails: bool) -> Measurement:
        def measure() -> dict:
            begun.append(name)
            if fails:
                raise RuntimeError("out of memory\nand more")
            return {"value": 1}

        return Measurement(name, measure)

    def run(minutes: float, fails: bool) -> list[str]:
        begun.clear()
        run_piece(
            "speed", [measurement("bad", fails), *(measurement(x, False) for x in "ab")], folder, setting, minutes
        )
        return list(begun)

    assert run(minutes=0, fails=True) == []
    assert run(minutes=1, fails=True) == ["bad", "a", "b"]
    assert folder.read("speed", "bad")["error"] == "RuntimeError: out of memory"
    folder.file("speed", "a").unlink()
    assert run(minutes=1, fails=False) == ["a", "bad"]
    assert folder.read("speed", "bad")["value"] == 1
    assert run(minutes=1, fails=False) == []


def test_measurements_of_two_cards_are_not_mixed(setting, tmp_path):
    from gpu.measurements import Folder

    Folder(tmp_path).write("sampling", "copy", {}, setting)
    with pytest.raises(DqdetError, match=r"measured with tiny True, now False; choose another folder"):
        Folder(tmp_path).check(setting._replace(tiny=False))


def test_aims_that_were_missed_are_marked(setting):
    from gpu.table import aims

    seconds = {"transformers": [1.5], "static": [1.0], "modulated": [1.1]}
    result = {"preset": "detr_r50", "batch": 8, "task": "step", "seconds": seconds}
    result["peak_mib"] = {"transformers": 10.0, "static": 9.0, "modulated": None}
    bf16, fp32 = aims([result | {"precision": "bf16"}, result | {"precision": "fp32"}])[-2:]
    assert "| **1.500** (≥ 2) | 1.364 | 1.100 (≤ 1.15) |  | 0.900 (≤ 1) |  |" in bf16
    assert "| 1.500 | 1.364 | 1.100 |  | 0.900 |  |" in fp32
