import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from recorder import Recorder

from dqdet.runs.folder import load_metrics
from dqdet.training.engine import resume, train
from dqdet.training.measurement import evaluate
from tiny import tiny, tiny_scenes

HERE = Path(__file__).parent

# No randomness but the data's, and no norm over the batch.
SAME = {
    "model__dropout": 0.0,
    "model__backbone__name": "test_convnext",
    "train__ema": 0.9,
    "data__scenes__val_images": 5,
}

# DETR has the cross-entropy. Of 14 images two fill no step of 4.
ACCUMULATED = SAME | {"preset": "detr_r50", "train__accumulate": 2, "data__scenes__train_images": 14}


def train_with_two(out: Path, overrides: dict) -> Path:
    """The run folder of a training of two processes."""
    path = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(HERE / "several_processes.py"), str(out), json.dumps(overrides)),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return out


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    return train_with_two(tmp_path_factory.mktemp("two"), SAME)


def test_two_processes_train_like_one(two, tmp_path):
    recorder = Recorder()
    train(tiny(**SAME), tmp_path, [recorder])
    shares = [json.loads((two / f"process-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(recorder.steps) == len(shares[0]["seen"]) == 9
    for (*_, images, loss, _), (first, loss_0), (second, loss_1) in zip(
        recorder.steps, shares[0]["seen"], shares[1]["seen"], strict=True
    ):
        assert first + second == images
        assert (loss_0 + loss_1) / 2 == pytest.approx(loss, rel=1e-5)

    expected = evaluate(tmp_path)
    assert load_metrics(two) == pytest.approx(load_metrics(tmp_path), abs=1e-4)
    for share in shares:
        assert share["metrics"] == pytest.approx(expected, abs=1e-4)
    results = [json.loads((run / "eval" / "results.json").read_text()) for run in (two, tmp_path)]
    assert {entry["image_id"] for entry in results[0]} == {entry["image_id"] for entry in results[1]}
    assert len(results[0]) == len(results[1])


def test_one_process_goes_on_with_what_two_began(two, tmp_path):
    train(tiny(**SAME | {"train__epochs": 4}), tmp_path, [expected := Recorder()])
    resume(two, ["train.epochs=4"], [found := Recorder()])
    assert [step[:3] for step in found.steps] == [step[:3] for step in expected.steps[9:]]
    assert [step[3] for step in found.steps] == pytest.approx([step[3] for step in expected.steps[9:]], rel=1e-5)


@pytest.mark.slow
def test_two_processes_that_accumulate_train_like_one_that_does_not(tmp_path):
    """Cross-entropy, which is divided by the weights of all queries of the step."""
    two = train_with_two(tmp_path / "two", ACCUMULATED)
    train(tiny_scenes(**ACCUMULATED | {"train__accumulate": 1}), tmp_path / "one", [recorder := Recorder()])
    seen = [json.loads((two / f"process-{rank}.json").read_text())["seen"] for rank in (0, 1)]
    assert len(seen[0]) == 18
    for step, (*_, images, loss, _) in enumerate(recorder.steps):
        parts = [part for share in seen for part in share[2 * step : 2 * step + 2]]
        assert list(chain(*(of_part for of_part, _ in parts))) == images
        # Those of a process add up; gradients are averaged over the two processes.
        assert sum(of_part for _, of_part in parts) / 2 == pytest.approx(loss, rel=1e-5)
