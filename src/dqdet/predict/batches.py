"""Images that go through a model together: those of one shape, whose batch has no padding.

That saves the work on padding, and what is found in an image does not depend on the others, which padding, as in
training, changes a little.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Iterable[Item],
    run: Callable[[list[Item]], Sequence[Result]],
    shape: Callable[[Item], Hashable],
    size: int,
    depth: int,
) -> Iterator[tuple[Item, Result]]:
    """All items with their results, in the order of the items, whichever were run together.

    Args:
        items: are taken as they are needed.
        run: gives the results of a batch.
        shape: of an item, the same for all of a batch.
        size: items of a batch at most.
        depth: items at a time that batches are chosen from or that wait for earlier ones, which bounds the memory.
    """
    numbered = enumerate(items)
    waiting: dict[int, Item] = {}
    done: dict[int, tuple[Item, Result]] = {}
    turn = 0
    while True:
        waiting.update(islice(numbered, depth - len(waiting) - len(done)))
        if not waiting:
            return
        wanted = shape(waiting[turn])
        numbers = [*islice((number for number, item in waiting.items() if shape(item) == wanted), size)]
        batch = [waiting.pop(number) for number in numbers]
        done.update(zip(numbers, zip(batch, run(batch), strict=True), strict=True))
        while turn in done:
            yield done.pop(turn)
            turn += 1
