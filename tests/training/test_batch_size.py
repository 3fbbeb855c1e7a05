"""``train.batch=auto``: parts of the batch that fit into the memory, which is pretended or that of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import dqdet
from dqdet.errors import DqdetError
from dqdet.runs.folder import load_config
from dqdet.training import batch_size
from dqdet.training.batch_size import available_memory, by_growth, by_trying, parts_of
from dqdet.training.readiness import ready
from tiny import TINY, tiny

GIB = 2**30


def needing(fixed: float, image: float, there: float):
    """Steps that need so many GiB, and so many more of each image; more than ``there`` is out of memory."""
    asked = []

    def trial(images: int) -> int | None:
        asked.append(images)
        peak = fixed + image * images
        return None if peak > there else round(peak * GIB)

    return trial, asked


def test_parts_are_powers_of_two_that_divide_the_batch():
    assert parts_of(16) == [1, 2, 4, 8, 16]
    assert parts_of(12) == [1, 2, 4]
    assert parts_of(7) == [1]


def test_a_gpu_is_tried_from_the_largest_part_down():
    trial, asked = needing(2, 3, there=24)
    assert by_trying(parts_of(16), trial, limit=22 * GIB) == (4, "4 need 14.00 GiB, 8 need too much of 22.00 GiB")
    assert asked == [16, 8, 4]
    trial, asked = needing(2, 1, there=24)
    assert by_trying(parts_of(16), trial, limit=22 * GIB)[0] == 16
    assert asked == [16]
    with pytest.raises(DqdetError, match=r"not even one image at a time fits; 1 need too much, 2 need too much"):
        by_trying(parts_of(16), needing(2, 30, there=24)[0], limit=22 * GIB)


@given(st.floats(0.5, 8), st.floats(0.01, 4), st.sampled_from([2, 4, 12, 16, 64]), st.floats(1, 64))
def test_a_cpu_is_told_by_two_small_steps(fixed, image, batch, limit):
    """The part is the largest whose need, which grows evenly, is within the limit; no larger step was tried."""
    trial, asked = needing(fixed, image, there=1e9)
    fitting_parts = [part for part in parts_of(batch) if fixed + image * part <= limit - 1e-6]
    if not fitting_parts:
        if fixed + image > limit + 1e-6:
            with pytest.raises(DqdetError, match="not even one image"):
                by_growth(parts_of(batch), trial, round(limit * GIB))
        return
    part, reason = by_growth(parts_of(batch), trial, round(limit * GIB))
    assert part >= fitting_parts[-1]
    assert fixed + image * part <= limit + 1e-6
    assert max(asked) <= 4
    assert f"of {limit:.2f} GiB" in reason


def test_an_odd_batch_is_taken_one_by_one():
    trial, asked = needing(1, 1, there=9)
    assert by_growth(parts_of(5), trial, GIB) == (1, "an odd batch has no other parts of a power of two")
    assert asked == []


def test_out_of_memory_is_no_error_of_a_trial(monkeypatch):
    def fit(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(batch_size, "quietly", fit)
    data, config = ready(tiny())
    assert batch_size.peak_of_steps(config, data) is None


def test_a_training_with_a_small_memory_is_that_with_accumulated_parts(tmp_path, monkeypatch, capsys):
    peaks = {1: 1 * GIB, 2: 2 * GIB, 4: 4 * GIB}
    monkeypatch.setattr(batch_size, "peak_of_steps", lambda config, data: peaks[config.train.batch])
    monkeypatch.setattr(batch_size, "available_memory", lambda: round(2.5 * GIB))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = TINY | {"train.epochs": 1}
    chosen = dqdet.train("scenes_tiny", out=tmp_path / "auto", **options | {"train.batch": "auto"})
    assert (
        "train.batch=auto: 2 images at a time, train.accumulate=4 keeps the recipe's batch of 8; 2 need 2.00 GiB, "
        "4 need 4.00 GiB of 2.00 GiB\n"
    ) in capsys.readouterr().err
    assert load_config(chosen).train.batch == 8  # of scenes_tiny
    assert load_config(chosen).train.accumulate == 4
    given = dqdet.train("scenes_tiny", out=tmp_path / "given", **options | {"train.batch": 8, "train.accumulate": 4})
    weights, expected = (load_file(folder / "model.safetensors") for folder in (chosen, given))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)


def test_real_steps_of_a_cpu(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = [f"{name}={value}" for name, value in TINY.items() if name != "train.batch"]
    status, out, err = run("train", "scenes_tiny", *options, "train.batch=auto", "--dry-run")
    assert (status, err) == (0, "")
    first = out.splitlines()[0]
    assert first.startswith("train.batch=auto: 8 images at a time, train.accumulate=1 keeps the recipe's batch of 8; ")
    assert available_memory() > 100 * 2**20


def peaks_of_sizes() -> None:
    """Prints the peaks of large and of small images."""
    for size in (512, 64):
        data, config = ready(tiny(data__resize=[size], data__max_size=size, train__batch=2))
        print(batch_size.peak_of_steps(config, data))


@pytest.mark.slow
def test_larger_images_need_more():
    """The measured peaks are those of the steps; in a process that has no memory from before to use again."""
    code = "import test_batch_size; test_batch_size.peaks_of_sizes()"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    large, small = map(int, done.stdout.split())
    assert large > small + 10 * 2**20


def test_what_cannot_be_chosen_is_said(monkeypatch, run):
    assert run("train", "scenes_tiny", "train.batch=auto", "train.accumulate=2")[2] == (
        "error: train.batch=auto chooses train.accumulate; leave out one of them\n"
    )
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    data, config = ready(tiny())
    with pytest.raises(DqdetError, match="is for one process"):
        batch_size.fitted(config, data)
