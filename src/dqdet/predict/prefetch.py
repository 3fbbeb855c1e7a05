"""Work that other threads do meanwhile: what comes next is read, and what is done is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int, threads: int = 1) -> Iterator[Result]:
    """``function`` of all items, in their order, computed in threads before it is asked for.

    Args:
        function: of an item; what it raises is raised here, in the item's turn.
        items: are taken as they are needed.
        depth: results and running calls at a time, which bounds the memory.
        threads: calls that run at a time; with one of them, calls end in order, too.
    """
    coming = iter(items)
    with ThreadPoolExecutor(threads) as pool:
        started: deque[Future[Result]] = deque()
        try:
            for item in islice(coming, depth):
                started.append(pool.submit(function, item))
            while started:
                result = started.popleft().result()
                for item in islice(coming, 1):
                    started.append(pool.submit(function, item))
                yield result
        finally:
            for future in started:
                future.cancel()
