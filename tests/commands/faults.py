"""Runs a command line in a process of its own, and lets something happen to it at a certain moment."""

import importlib
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from multiprocessing.connection import Connection
from pathlib import Path

from dqdet import cli

SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL}


@dataclass(frozen=True)
class Moment:
    """A call of a function, named by its module and its path there."""

    module: str
    function: str
    call: int


def happens(fault: str, disk: Path) -> None:
    """Signals go to the whole group of the process, the loader's workers included."""
    if fault in SIGNALS:
        os.killpg(0, SIGNALS[fault])
    elif disk.is_mount():
        with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
    else:  # only root can mount a small disk; to others no file may grow any more
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))


def at(moment: Moment, fault: str, disk: Path) -> None:
    """Arrange for a fault just before a call."""
    holder = importlib.import_module(moment.module)
    *path, name = moment.function.split(".")
    for part in path:
        holder = getattr(holder, part)
    function = getattr(holder, name)
    calls = 0

    @wraps(function)
    def watched(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == moment.call:
            happens(fault, disk)
        return function(*arguments, **options)

    setattr(holder, name, watched)


def run(
    arguments: Sequence[str], output: Connection, folder: Path, moment: Moment | None, fault: str, disk: Path
) -> None:
    """The main function of the process."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in the background of a shell ignore
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers, as in an ordinary process
    os.chdir(folder)
    for standard in (1, 2):
        os.dup2(output.fileno(), standard)
    if moment is not None:
        at(moment, fault, disk)
    sys.argv = ["dqdet", *arguments]
    cli.main()
