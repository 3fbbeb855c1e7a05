"""Work that other threads do meanwhile: what comes next is read, and what is done is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = 2


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Iterator[Result]:
    """``function`` of all items, in their order, computed in threads before it is asked for.

    Args:
        function: of an item; what it raises is raised here, in the item's turn.
        items: are taken as they are needed.
        depth: results and running calls at a time, which bounds the memory.
    """
    coming = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
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
