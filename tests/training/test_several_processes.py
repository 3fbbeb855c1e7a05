import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from recorder import Recorder

from dqdet.runs.folder import load_metrics
from dqdet.training.engine import evaluate, resume, train
from tiny import tiny

HERE = Path(__file__).parent

# No randomness but the data's, and no norm over the batch.
SAME = {
    "model__dropout": 0.0,
    "model__backbone__name": "test_convnext",
    "train__ema": 0.9,
    "data__scenes__val_images": 5,
}


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The run folder of a training of two processes."""
    out = tmp_path_factory.mktemp("two")
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(str(HERE / "several_processes.py"), str(out), json.dumps(SAME)),
        ],
        env=os.environ | {"PYTHONPATH": f"{HERE}:{HERE.parent}", "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return out


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


def test_one_process_goes_on_with_what_two_began(two, tmp_path):
    train(tiny(**SAME | {"train__epochs": 4}), tmp_path, [expected := Recorder()])
    resume(two, ["train.epochs=4"], [found := Recorder()])
    assert [step[:3] for step in found.steps] == [step[:3] for step in expected.steps[9:]]
    assert [step[3] for step in found.steps] == pytest.approx([step[3] for step in expected.steps[9:]], rel=1e-5)
