"""What commands print: results for reading, to the standard output, and errors, in one line."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table

from dqdet.errors import DqdetError
from dqdet.runs.processes import is_first_process

HEADLINE = ("AP", "AP50", "PQ", "AP_things", "mIoU")  # what a training ends with, where it is measured


def show(*results: Table | str) -> None:
    """Print results, in the first process alone."""
    if is_first_process():
        console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)  # names are no markup
        for result in results:
            console.print(result)


def complain(error: DqdetError) -> None:
    """Print an error."""
    print(f"error: {error}", file=sys.stderr)
