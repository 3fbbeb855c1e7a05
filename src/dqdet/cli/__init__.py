"""The command line. It says what Python says, in the same words."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from dqdet.cli import data, models, training, using
from dqdet.cli.output import complain
from dqdet.errors import DISK_FULL, DqdetError, Everywhere, Interrupted, lack_of_memory
from dqdet.runs.processes import is_first_process, this_process

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
for commands in (training, using, models):
    app.add_typer(commands.app)
app.add_typer(data.app, name="data")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"dqdet {version('dqdet')}")
        raise typer.Exit


@app.callback()
def dqdet_command(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Detection transformers with dynamic query combinations."""


def _run(arguments: list[str]) -> None:
    try:
        try:
            app(arguments, prog_name="dqdet")
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        if error.filename is None:  # the standard output, which Python would try once more at its end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        place = error.filename or "the output"
        raise DqdetError(f"{place}: cannot be written ({error.strerror}); make space") from error
    except (MemoryError, RuntimeError) as error:
        if (lack := lack_of_memory(error)) is None:
            raise
        raise DqdetError(f"{lack}; take smaller images or batches, or a machine with more of it") from error


def main() -> None:
    """Run a command. A `DqdetError` is one line and exit status 1; an interruption is status 130."""
    arguments = sys.argv[1:]
    if not is_first_process():
        logging.disable(logging.WARNING)  # the first one says it
    # As Ctrl-C: what is under way is put in order. The loops of a training have their own way.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries; the error at their end is reported
    try:
        _run([argument for argument in arguments if argument != "--debug"])  # wherever it stands
    except SystemExit as end:
        if end.code or not this_process().together:
            raise
        # Threads of a group may abort an interpreter that ends, and a run that is complete would be called failed, or
        # be started again. So it ends here, after what waits for its end: groups are left, loggers send what they have.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    except Interrupted as interruption:
        if is_first_process():
            print(interruption, file=sys.stderr)
        sys.exit(130)
    except DqdetError as error:
        if "--debug" in arguments:
            raise
        if not isinstance(error, Everywhere) or error.here:
            complain(error)
        sys.exit(1)
