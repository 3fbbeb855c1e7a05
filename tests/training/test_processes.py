"""Which process this is, and how a training goes on that was started again or has lost a process that reads."""

import multiprocessing
import os
import re
import signal

import pytest
import torch.distributed as dist
from hosts import free_port
from lightning.pytorch import Callback
from recorder import Recorder

from dqdet.cli import main
from dqdet.errors import DqdetError, Everywhere
from dqdet.runs.folder import load_metrics
from dqdet.runs.processes import Process, is_first_process, is_started_again, meeting_point, this_process
from dqdet.training.distributed import lost
from dqdet.training.engine import resume, train
from tiny import tiny

SRUN = {"SLURM_JOB_ID": "1234567", "SLURM_STEP_ID": "2", "SLURM_JOB_NAME": "detr"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the steps of a training that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny(), folder, [recorder := Recorder()])
    return folder, recorder.steps


def given(monkeypatch, **values) -> Process:
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    return this_process()


def test_a_process_that_nobody_started_together_is_alone():
    assert this_process() == Process(0, 1, 0, 1, 0, together=False)


def test_torchrun_says_which_process_this_is(monkeypatch):
    place = {"RANK": 5, "WORLD_SIZE": 8, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 4, "GROUP_RANK": 1}
    assert given(monkeypatch, **place) == Process(5, 8, 1, 4, 1, together=True)
    assert not is_first_process()
    # srun may have started it, one on each host.
    assert given(monkeypatch, **SRUN, SLURM_PROCID=1, SLURM_NTASKS=2, SLURM_LOCALID=0).rank == 5


@pytest.mark.parametrize(
    ("tasks", "host", "of_host"), [("4", 0, 4), ("2(x2)", 1, 2), ("2(x2),1", 2, 1), ("3,1(x2)", 0, 3)]
)
def test_srun_says_which_process_this_is(monkeypatch, tasks, host, of_host):
    place = {"SLURM_PROCID": 1, "SLURM_NTASKS": 4, "SLURM_LOCALID": 0, "SLURM_NODEID": host}
    found = given(monkeypatch, **SRUN, **place, SLURM_TASKS_PER_NODE=tasks)
    assert found == Process(1, 4, 0, of_host, host, together=True)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_a_shell_on_a_slurm_node_is_a_single_process(monkeypatch, name):
    place = SRUN | {"SLURM_PROCID": 0, "SLURM_NTASKS": 4, "SLURM_LOCALID": 0}
    assert given(monkeypatch, **place).together
    assert not given(monkeypatch, SLURM_JOB_NAME=name).together


def test_the_script_of_a_slurm_job_is_a_single_process(monkeypatch):
    place = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert not given(monkeypatch, **place, SLURM_PROCID=0, SLURM_NTASKS=4, SLURM_LOCALID=0).together


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        *(("node7", "node7"), ("a1,a2", "a1"), ("gpu[3-5]", "gpu3"), ("gpu[03,09]", "gpu03")),
        *(("gpu[03-05,9],cpu1", "gpu03"), ("cpu1,gpu[3-5]", "cpu1"), ("r[1-2]-x", "r1-x")),
    ],
)
def test_processes_of_slurm_meet_on_the_first_host(monkeypatch, hosts, first):
    given(monkeypatch, **SRUN, SLURM_JOB_NODELIST=hosts)
    assert meeting_point() == (first, 15000 + 4569)
    given(monkeypatch, MASTER_ADDR="10.0.0.1", MASTER_PORT=1234)
    assert meeting_point() == ("10.0.0.1", 1234)


@pytest.mark.parametrize("name", ["TORCHELASTIC_MAX_RESTARTS", "SLURM_RESTART_COUNT"])
def test_whoever_starts_processes_again_is_known(monkeypatch, name):
    assert not is_started_again()
    monkeypatch.setenv(name, "0")
    assert not is_started_again()
    monkeypatch.setenv(name, "1")
    assert is_started_again()


def test_what_is_started_again_goes_on_with_its_run(monkeypatch, tmp_path, whole):
    before, after = Recorder(), Recorder()

    class Dies(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 5:
                raise ZeroDivisionError

    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ZeroDivisionError):
        train(tiny(), tmp_path / "run", [before, Dies()])
    train(tiny(), tmp_path / "run", [after])
    assert before.steps[:3] + after.steps == whole[1]
    assert load_metrics(tmp_path / "run") == load_metrics(whole[0])
    # That of another configuration is none to go on with.
    with pytest.raises(DqdetError, match="has a run already"):
        train(tiny(train__lr=1e-3), tmp_path / "run")
    with pytest.raises(DqdetError, match="--out"):
        train(tiny())
    monkeypatch.delenv("TORCHELASTIC_MAX_RESTARTS")
    with pytest.raises(DqdetError, match="has a run already"):
        train(tiny(), tmp_path / "run")


@pytest.mark.slow
def test_a_reading_process_that_is_killed_costs_no_more_than_its_epoch(tmp_path, whole):
    class Kills(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 4:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)  # as the system does, short of memory

    line = r"lack of memory \(DataLoader worker .*; lower data\.workers.*`dqdet train --resume .*run` goes on"
    with pytest.raises(DqdetError, match=line):
        train(tiny(data__workers=1), tmp_path / "run", [Kills()])
    resume(tmp_path / "run", [], [found := Recorder()])
    assert found.steps == whole[1][3:]


@pytest.mark.parametrize(
    ("option", "value", "instead"),
    [("ema", 0.9, "train.ema=null"), ("precision", "16-mixed", "train.precision=bf16-mixed")],
)
def test_what_needs_whole_weights_is_refused(option, value, instead):
    with pytest.raises(DqdetError, match=f"train.{option}={value} .*train.strategy=fsdp divides; set {instead}"):
        tiny(train__strategy="fsdp", **{f"train__{option}": value})


def test_a_process_that_never_comes_is_not_waited_for_longer_than_configured(monkeypatch, tmp_path):
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1}
    given(monkeypatch, **place, MASTER_ADDR="localhost", MASTER_PORT=free_port())
    line = r"process 0 of 2 on .*: not all of them came to localhost \(port \d+\) within train\.timeout=1 s; start the"
    with pytest.raises(DqdetError, match=line):
        train(tiny(train__timeout=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "message",
    [
        "[/pytorch/gloo/transport/tcp/pair.cc:538] Read error [10.77.0.2]:54918: Connection reset by peer",
        "[/pytorch/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation to complete",
        "NCCL communicator was aborted on rank 0.",
    ],
)
def test_an_error_of_the_network_is_said_in_one_line(monkeypatch, message):
    assert lost(RuntimeError(message), "go on") is None  # alone, it has another reason
    given(monkeypatch, RANK=1, LOCAL_RANK=0, WORLD_SIZE=2)
    assert lost(RuntimeError("shapes do not fit"), "go on") is None
    assert lost(ValueError(message), "go on") is None
    found = lost(RuntimeError(f"{message}\nException raised from ..."), "go on")
    assert re.fullmatch(r"process 1 on .*: another process is gone, .* \(.*\); go on", str(found))
    assert message[-30:] in str(found)
    assert "pytorch" not in str(found)


@pytest.fixture
def group(monkeypatch):
    """A group of this process alone, as torchrun makes it on one GPU."""
    given(monkeypatch, RANK=0, LOCAL_RANK=0, WORLD_SIZE=1, MASTER_ADDR="localhost", MASTER_PORT=free_port())
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_frozen_backbone_is_not_waited_for(group, tmp_path, strategy):
    train(tiny(train__strategy=strategy, train__backbone_lr=0, train__steps=3), tmp_path, [found := Recorder()])
    assert len(found.steps) == 3


def test_what_all_processes_end_with_is_printed_where_it_is_said(monkeypatch, capsys):
    def end(here: bool):
        def app(*arguments, **options):
            raise Everywhere("a host is gone", here)

        return app

    monkeypatch.setattr("sys.argv", ["dqdet", "train"])
    for here, line in (True, "error: a host is gone\n"), (False, ""):
        monkeypatch.setattr("dqdet.cli.app", end(here))
        with pytest.raises(SystemExit) as ending:
            main()
        assert (ending.value.code, capsys.readouterr().err) == (1, line)
