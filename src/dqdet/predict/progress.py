"""Progress bars of what takes long, for people at a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def in_progress(items: Iterable[Item], what: str, length: int) -> Iterable[Item]:
    """The items, with a progress bar in a terminal; length 0: unknown."""
    console = Console(stderr=True)
    return track(items, what, total=length or None, console=console, transient=True, disable=not console.is_terminal)
