"""Processes that train together: they meet, make sure that they are about to do the same, and end together."""

from __future__ import annotations

import atexit
import os
import re
import socket
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TypeVar

import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment
from torch import distributed as dist

from dqdet.config import Config, TrainConfig
from dqdet.errors import DqdetError, Everywhere
from dqdet.runs.libraries import versions
from dqdet.runs.processes import meeting_point, this_process
from dqdet.training.keepalive import watch_hosts

Result = TypeVar("Result")

# What gloo, NCCL and the store say when another process is gone, or does not answer in time.
LOST = re.compile(r"connection|timed? ?out|timeout|socket|remote process|nccl|gloo|store", re.IGNORECASE)


_store: dist.Store | None = None  # through which the processes met


class Environment(ClusterEnvironment):
    """Lightning's view of the processes, which exist already."""

    creates_processes_externally = True
    main_address = property(lambda self: meeting_point()[0])
    main_port = property(lambda self: meeting_point()[1])

    @staticmethod
    def detect() -> bool:
        return this_process().together

    def world_size(self) -> int:
        return this_process().world

    def global_rank(self) -> int:
        return this_process().rank

    def local_rank(self) -> int:
        return this_process().local_rank

    def node_rank(self) -> int:
        return this_process().host

    def set_world_size(self, size: int) -> None:
        """It is what it is."""

    def set_global_rank(self, rank: int) -> None:
        """It is what it is."""


def meet(timeout: int) -> None:
    """Join the group of all processes, unless this one has, or is alone.

    Args:
        timeout: seconds for which they wait for one another, here and later on.

    Raises:
        DqdetError: one of them does not come, has no GPU of its own, or other versions of libraries.
    """
    global _store
    process = this_process()
    if not process.together or dist.is_initialized():
        return
    device = None
    if torch.cuda.is_available():
        if process.local_world > torch.cuda.device_count():
            raise DqdetError(
                f"{process.local_world} processes were started on {socket.gethostname()}, where each sees "
                f"{torch.cuda.device_count()} GPUs; start one for each GPU, which all of them see"
            )
        device = torch.device("cuda", process.local_rank)
        torch.cuda.set_device(device)
    address, port = meeting_point()
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    try:
        patience = timedelta(seconds=timeout)
        store, _, _ = next(dist.rendezvous("env://", process.rank, process.world, timeout=patience))
        # torchrun keeps its store when it starts processes again, with the addresses of those that are gone.
        _store = dist.PrefixStore(f"dqdet {process.world} {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(
            "gloo" if device is None else "nccl",
            store=_store,
            rank=process.rank,
            world_size=process.world,
            timeout=patience,
            device_id=device,
        )
        watch_hosts(_store, process, address)
    except RuntimeError as error:
        raise DqdetError(
            f"process {process.rank} of {process.world} on {socket.gethostname()}: not all of them came to {address} "
            f"(port {port}) within train.timeout={timeout} s; start the command on every host, and see that they reach "
            "that address"
        ) from error
    # A process that ends inside its group may abort, because threads of the group are still running.
    atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
    check_same(versions())


def timeout_of(configuration: Callable[[], Config]) -> int:
    """The ``train.timeout`` of a configuration; its default where this process cannot have it, as all will hear."""
    try:
        return configuration().train.timeout
    except DqdetError:
        return TrainConfig().timeout


def check_same(own: Mapping[str, str]) -> None:
    """That something is the same in all processes: names, and what this one has.

    Raises:
        Everywhere: it is not.
    """
    if not dist.is_initialized():
        return
    shares = _gathered((socket.gethostname(), own))
    for name in dict.fromkeys(name for _, values in shares for name in values):
        seen: dict[str, str] = {}  # what -> the first host that has it
        for host, values in shares:
            seen.setdefault(values.get(name, "another"), host)
        if len(seen) > 1:
            each = ", ".join(f"{value} on {host}" for value, host in seen.items())
            raise Everywhere(f"{name} is not the same on all hosts: {each}; make it the same", this_process().rank == 0)


def everywhere(do: Callable[[], Result]) -> Result:
    """What ``do`` gives this process, if it fails in none.

    Raises:
        Everywhere: a DqdetError that any of them met; all of them raise the same one.
    """
    if not dist.is_initialized():
        return do()
    own = None
    try:
        result = do()
    except DqdetError as error:
        own = error
    reports = _gathered((socket.gethostname(), None if own is None else str(own)))
    failed = [(rank, host, text) for rank, (host, text) in enumerate(reports) if text is not None]
    if failed:
        rank, host, text = failed[0]
        common = [other for *_, other in failed] == [text] * len(reports)
        raise Everywhere(text if common else f"process {rank} on {host}: {text}", this_process().rank == 0) from own
    return result


def lost(error: BaseException, go_on: str) -> Everywhere | None:
    """What a training ends with because another process is gone, or None: the error has another reason.

    Args:
        error: of gloo, NCCL or the store.
        go_on: what to do then.
    """
    if this_process().world == 1 or not isinstance(error, RuntimeError) or not LOST.search(str(error)):
        return None
    place = f"process {this_process().rank} on {socket.gethostname()}"
    reason = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0])  # without a line of gloo's source
    return Everywhere(
        f"{place}: another process is gone, or has not answered in time ({reason}); {go_on}", _is_first_to_say()
    )


def _is_first_to_say() -> bool:
    """Whether no other process has said it; where the store is gone, too, all say it."""
    try:
        return _store is None or _store.add("said", 1) == 1
    except RuntimeError:
        return True


def _gathered(own: Result) -> list[Result]:
    """Of all processes, in their order."""
    results = [own] * dist.get_world_size()
    dist.all_gather_object(results, own)
    return results
