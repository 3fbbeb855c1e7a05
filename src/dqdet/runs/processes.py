"""Which of the processes of a training this one is, as whoever started them says: torchrun, or SLURM's srun."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

OF_TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # what torchrun sets
OF_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_ID")
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs that are a person's shell


@dataclass(frozen=True)
class Process:
    """One process of those that train together."""

    rank: int = 0
    world: int = 1  # processes in all
    local_rank: int = 0  # among those of its host
    local_world: int = 1
    host: int = 0  # number of its host
    together: bool = False  # started to train with others, even if there are none


def this_process() -> Process:
    """This one. What torchrun says comes before what SLURM says, which may have started torchrun."""
    values = os.environ
    if all(name in values for name in OF_TORCH):
        rank, world, local_rank = (int(values[name]) for name in OF_TORCH)
        local_world = int(values.get("LOCAL_WORLD_SIZE", world))
        return Process(rank, world, local_rank, local_world, int(values.get("GROUP_RANK", 0)), together=True)
    # The script of a job has all of them but the number of a step, and is a single process.
    if all(name in values for name in OF_SRUN) and values.get("SLURM_JOB_NAME") not in INTERACTIVE:
        rank, world, local_rank = (int(values[name]) for name in OF_SRUN[:3])
        host = int(values.get("SLURM_NODEID", 0))
        tasks = values.get("SLURM_STEP_TASKS_PER_NODE") or values.get("SLURM_TASKS_PER_NODE") or str(world)
        return Process(rank, world, local_rank, list(_expanded(tasks))[host], host, together=True)
    return Process()


def is_first_process() -> bool:
    """Whether this is the process that writes, of those that train together."""
    return this_process().rank == 0


def is_started_again() -> bool:
    """Whether whoever started this process does, or did, so again when one of them dies.

    torchrun, with ``--max-restarts``, does not count it as a restart when a host is added.
    """
    return any(int(os.environ.get(name, 0)) > 0 for name in ("TORCHELASTIC_MAX_RESTARTS", "SLURM_RESTART_COUNT"))


def meeting_point() -> tuple[str, int]:
    """Address and port of the first process, as all of them know it.

    Of SLURM the first host of the step, and a port that other steps are unlikely to have; ``MASTER_ADDR`` and
    ``MASTER_PORT`` come first.
    """
    values = os.environ
    hosts = values.get("SLURM_STEP_NODELIST") or values.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    step = int(values.get("SLURM_JOB_ID", 0)) + int(values.get("SLURM_STEP_ID", 0))
    return values.get("MASTER_ADDR", _first(hosts)), int(values.get("MASTER_PORT", 15000 + step % 10000))


def _expanded(counts: str) -> Iterator[int]:
    """SLURM's counts of hosts: ``2(x3),1`` are 2, 2, 2 and 1."""
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts):
        yield from [int(count)] * int(times or 1)


def _first(hosts: str) -> str:
    """The first one of SLURM's list of hosts: of ``gpu[03-05,9],cpu1`` it is ``gpu03``."""
    before, bracket, ranges = hosts.partition("[")
    if "," in before or not bracket:
        return before.split(",")[0]
    inside, _, after = ranges.partition("]")
    return before + re.split("[-,]", inside)[0] + after.split(",")[0]
