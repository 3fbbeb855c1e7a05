import json
import os
import re
import socket
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch
from hosts import network, on_both, outputs
from recorder import Recorder
from safetensors.torch import load_file
from uneven import UNEVEN, found_by

from dqdet.runs.folder import load_metrics
from dqdet.training.engine import resume, train
from dqdet.training.evaluation import evaluate
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


EVERYONE_SAYS = {
    "one fails": "process 1 on {host}: no space",
    "both fail": "no space",
    "each fails": "process 0 on {host}: no space for 0",
    "other versions": "dqdet is not the same on all hosts: 0.1 on {host}, 0.2 on {host}; make it the same",
    "other data": "data.scenes.train_images is not the same on all hosts: 12 on {host}, 13 on {host}; make it the same",
    "used folder": "process 0 on {host}: {more}/used: has a run already (model.safetensors); continue it with --resume "
    "{more}/used, or choose another --out",
    "no run": "process 1 on {host}: {more}/nowhere: no such folder or file; give a run, a checkpoint, or a name on the "
    "hub",
    "other results": "process 1 on {host}: {more}/used: has files that are of no evaluation; choose another folder for "
    "the results",
}


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
    """The run folder of a training on two hosts, one process each; what else they did is in the folder beside it."""
    out, more = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("more")
    (more / "used").mkdir()
    (more / "used" / "model.safetensors").touch()
    script = [str(HERE / "several_processes.py"), str(out), json.dumps(SAME), str(more)]
    with network() as hosts:
        # Where no network can be made: two agents here, each with its own processes.
        for status, text in outputs(on_both(hosts or ["", ""], 1, [script, script])):
            assert status == 0, text
    more.rename(out.with_name("two more"))
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
    results = [json.loads((run / "eval" / "results.json").read_text()) for run in (two, tmp_path)]
    assert {entry["image_id"] for entry in results[0]} == {entry["image_id"] for entry in results[1]}
    assert len(results[0]) == len(results[1])


def of_processes(two: Path, name: str) -> list:
    return [json.loads((two / f"process-{rank}.json").read_text())[name] for rank in (0, 1)]


def test_what_fails_in_one_process_ends_all_and_is_said_once(two):
    first, second = of_processes(two, "said")
    names = {"host": socket.gethostname(), "more": first["used folder"][0].split(": ")[1].removesuffix("/used")}
    lines = {name: line.format(**names) for name, line in EVERYONE_SAYS.items()}
    assert first == {name: [line, True] for name, line in lines.items()}
    assert second == {name: [line, False] for name, line in lines.items()}
    assert not (two.with_name("two more") / "new").exists()


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder and the steps of one process that trains with whole weights."""
    folder = tmp_path_factory.mktemp("one")
    train(tiny(**SAME | {"train__ema": None, "train__epochs": 1}), folder, [recorder := Recorder()])
    return folder, recorder.steps


def test_divided_weights_learn_the_same_as_whole_ones(two, one):
    first, second = of_processes(two, "divided")
    assert len(first) == 3
    for (*_, images, loss, _), (images_0, loss_0), (images_1, loss_1) in zip(one[1], first, second, strict=True):
        assert images_0 + images_1 == images
        assert (loss_0 + loss_1) / 2 == pytest.approx(loss, rel=1e-5)
    assert load_metrics(two.with_name("two more") / "divided") == pytest.approx(load_metrics(one[0]), abs=1e-4)


@pytest.mark.parametrize("name", UNEVEN)
def test_processes_of_divided_weights_validate_unlike_shares(two, tmp_path, name):
    first, second = (share[name] for share in of_processes(two, "uneven"))
    expected = found_by(name, tmp_path)
    assert len(expected["scores"]) == 2
    for scores, scores_0, scores_1 in zip(expected["scores"], first["scores"], second["scores"], strict=True):
        assert (len(scores_0) > len(scores_1)) == (len(scores) > 1)
        assert {image: pytest.approx(of_image, rel=1e-4) for image, of_image in scores.items()} == scores_0 | scores_1
        assert all(map(len, scores.values()))
    assert first["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)


def test_a_run_of_divided_weights_has_whole_files(two, one):
    runs = two.with_name("two more") / "divided", one[0]
    divided, whole = (torch.load(run / "last.ckpt", weights_only=True) for run in runs)
    assert divided.keys() == whole.keys()
    torch.testing.assert_close(clear(divided["state_dict"]), clear(whole["state_dict"]), rtol=1e-5, atol=1e-5)
    (divided,), (whole,) = divided["optimizer_states"], whole["optimizer_states"]
    assert divided["param_groups"] == whole["param_groups"]
    # The moments are sums of gradients, which are clipped to 0.1.
    torch.testing.assert_close(divided["state"], whole["state"], rtol=1e-3, atol=1e-6)
    divided, whole = (load_file(run / "model.safetensors") for run in runs)
    torch.testing.assert_close(clear(divided), clear(whole), rtol=1e-5, atol=1e-5)


def clear(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without biases that a norm takes away again: their gradient is rounding, which Adam brings to any size."""
    return {name: tensor for name, tensor in state.items() if not re.search(r"input_proj\.\d\.0\.bias", name)}


def test_one_process_goes_on_with_what_divided_weights_began(two, one):
    found = []
    for run in (two.with_name("two more") / "divided", one[0]):
        resume(run, {"train.epochs": 2, "train.strategy": "ddp"}, [recorder := Recorder()])
        found.append(recorder.steps)
    assert [step[:3] for step in found[0]] == [step[:3] for step in found[1]]
    assert [step[3] for step in found[0]] == pytest.approx([step[3] for step in found[1]], rel=1e-5)


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
