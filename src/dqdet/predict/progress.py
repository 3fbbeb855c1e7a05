"""Progress bars of what takes long, for people at a terminal, and a line on what was done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from dqdet.drawing.pictures import Threshold

Item = TypeVar("Item")


def in_progress(items: Iterable[Item], what: str, length: int) -> Iterable[Item]:
    """The items, with a progress bar in a terminal; length 0: unknown."""
    console = Console(stderr=True)
    return track(items, what, total=length or None, console=console, transient=True, disable=not console.is_terminal)


class Tally:
    """Counts what is done, from now on.

    Args:
        items: what is looked at, in the plural.
        found: what is found, in the plural.
    """

    def __init__(self, items: str, found: str) -> None:
        self.names = items, found
        self.counts = [0, 0]
        self.start = time.perf_counter()
        self.in_model = 0.0  # seconds

    def add(self, found: int, items: int = 1) -> None:
        self.counts[0] += items
        self.counts[1] += found

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While the model works."""
        start = time.perf_counter()
        yield
        self.in_model += time.perf_counter() - start

    def line(self, threshold: Threshold) -> str:
        """All of it, with the items a second: ``20 images with 31 objects above 0.5, 3.1 images/s``."""
        (items, found), (count, total) = self.names, self.counts
        seconds = max(time.perf_counter() - self.start, 1e-9)
        counted = (
            f"{number} {name if number != 1 else name[:-1]}" for number, name in ((count, items), (total, found))
        )
        limit = f"{threshold:g}" if isinstance(threshold, float | int) else "the threshold of their class"
        line = f"{' with '.join(counted)} above {limit}, {count / seconds:.3g} {items}/s"
        return f"{line}, the model busy {self.in_model / seconds:.0%} of the time" if self.in_model else line
