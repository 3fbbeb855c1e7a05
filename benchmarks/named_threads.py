"""`dqdet` with threads that have their names in the operating system, too, as with Python 3.14; Linux.

    python benchmarks/named_threads.py COMMAND...

What a thread starts by itself, as PyTorch does, inherits its name.
"""

from __future__ import annotations

import ctypes
import threading

from dqdet.cli import main

SET_NAME = 15  # of prctl
LONGEST = 15  # bytes

run = threading.Thread.run


def named(thread: threading.Thread) -> None:
    ctypes.CDLL(None).prctl(SET_NAME, thread.name.encode()[:LONGEST], 0, 0, 0)
    run(thread)


if __name__ == "__main__":
    threading.Thread.run = named  # type: ignore[method-assign]
    main()
