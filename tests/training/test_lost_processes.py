"""Hosts and processes that are killed in the middle of a training; with the command line."""

import subprocess
import sys
import time

import pytest
from hosts import SAME, environment, free_port, losses, network, on_both, options, outputs, torchrun, watched
from recorder import Recorder

from dqdet.config import resolve
from dqdet.training.engine import resume, train
from tiny import TINY

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Images and losses of a training of one process that nothing disturbs."""
    train(resolve("scenes_tiny", TINY | SAME), tmp_path_factory.mktemp("whole"), [recorder := Recorder()])
    return by_place(recorder)


def by_place(recorder: Recorder) -> dict[tuple[int, int], tuple[list[int], float]]:
    return {(epoch, batch): (images, loss) for epoch, batch, images, loss, _ in recorder.steps}


def assert_same(found: dict, whole: dict) -> None:
    assert found.keys() == whole.keys()
    for place, (images, loss) in whole.items():
        assert found[place][0] == images
        assert found[place][1] == pytest.approx(loss, rel=1e-5), place


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize("killed", [0, 1])
def test_a_training_outlives_its_hosts_four_processes_two_one(tmp_path, whole, killed):
    run, notes = tmp_path / "run", tmp_path / "notes"
    script = watched(notes, ["train", "scenes_tiny", *options(), "--out", str(run)], {"step": 4, "host": killed})
    with network() as hosts:
        ended = outputs(on_both(hosts or ["", ""], 2, [script, script]))
    assert ended[killed][0] == -9
    status, text = ended[1 - killed]
    assert status == 1
    # The store is gone with the first host, and with it the way to agree on who says it.
    assert len(errors(text)) == (1 if killed else 2), text
    assert "another process is gone" in errors(text)[0]
    assert f"`dqdet train --resume {run}` goes on from the last checkpoint" in errors(text)[0]

    script = watched(notes, ["train", "--resume", str(run)], {"step": 7, "rank": 1})
    status, text = outputs([torchrun(["--standalone", "--nproc-per-node", "2"], script)])[0]
    assert status == 1
    assert len(errors(text)) == 1, text

    resume(run, [], [recorder := Recorder()])
    assert len(recorder.steps) == 3
    assert_same(losses(notes) | by_place(recorder), whole)


def test_hosts_whose_cable_is_cut_end_long_before_the_timeout(tmp_path):
    run, notes = tmp_path / "run", tmp_path / "notes"
    script = watched(notes, ["train", "scenes_tiny", *options(train__epochs=500), "--out", str(run)])
    steps = notes / "3.jsonl"  # of the last process
    with network() as hosts:
        if hosts is None:
            pytest.skip("needs the right to make network namespaces")
        processes = on_both(hosts, 2, [script, script])
        while not (steps.exists() and len(steps.read_text().splitlines()) >= 4) and processes[1].poll() is None:
            time.sleep(0.2)
        subprocess.run(["ip", "-n", hosts[1], "link", "set", "dev", "cable", "down"], check=True)
        ended = outputs(processes, timeout=120)  # of 600 seconds that `train.timeout` has
    for status, text in ended:
        assert status == 1
        assert "another process is gone" in errors(text)[0]
        assert f"`dqdet train --resume {run}` goes on from the last checkpoint" in errors(text)[0]
    # The first host has the store, through which its processes agree on who says it.
    assert len(errors(ended[0][1])) == 1


def test_a_process_that_is_killed_is_started_again_by_torchrun(tmp_path, whole):
    run, notes = tmp_path / "run", tmp_path / "notes"
    script = watched(notes, ["train", "scenes_tiny", *options(), "--out", str(run)], {"step": 5, "rank": 1})
    launch = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    status, text = outputs([torchrun(launch, script)])[0]
    assert status == 0, text
    assert (notes / "died-1-5").exists()
    assert_same(losses(notes), whole)


def test_processes_of_srun_train_together(tmp_path, whole):
    run, notes = tmp_path / "run", tmp_path / "notes"
    script = watched(notes, ["train", "scenes_tiny", *options(), "--out", str(run)])
    job = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "detr", "SLURM_JOB_NODELIST": "localhost"}
    job |= {"SLURM_NTASKS": "2", "SLURM_TASKS_PER_NODE": "2", "SLURM_NODEID": "0", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, *script],
            env=environment(**job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    (status, text), other = outputs(processes)
    assert status == 0, text
    assert f"{run}: AP" in text
    assert other == (0, "")
    assert_same(losses(notes), whole)
