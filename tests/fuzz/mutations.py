"""Documents that were right once: values replaced by odd ones, entries dropped, doubled and moved, bytes cut."""

from __future__ import annotations

import copy
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dqdet.errors import DqdetError

LONGER = int(os.environ.get("DQDET_FUZZ", 1))  # times as many examples, and others every time
MEMORY = 3 * 2**30  # bytes that an example may take beyond what the process has
SECONDS = 60  # of an example; a bound against hanging, on any machine

ODD = [
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        0.5,
        -0.0,
        1e-300,
        1e300,
        1e8,
        3e7,
        -1e6,
        float("nan"),
        float("inf"),
        -float("inf"),
    ),
    *(2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64, 10**400),
    *("", "0", "1", "nan", "a" * 300, "a" * 5000, "\ud800", "\0", "a\nb", "ΑΩ\u202e"),
    *("[/wing]", "../1.png", "/", ".", "/dev/zero"),
    *([], [[]], {}, {"": None}, [None], [1, 2], [True] * 4, [0] * 4, [1e8] * 8, [10**400] * 4),
    *([[0, 0, 1e6, 1e6, 0, 1e6, 1e6, 0]], [[0, 0, 0, 0, 0, 0]], [[-1, -1, 1, 1]]),
    {"size": [10**6, 10**6], "counts": [10**12]},
    *({"size": [40, 60], "counts": counts} for counts in ("o" * 3000, "0\0", [0, 2400], [-1, 2401])),
]

values = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def _places(node: Any, path: tuple = ()) -> Iterator[tuple]:
    """Of every value in a document, the way to it."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in entries:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _nested(depth: int) -> list:
    nest: list = []
    for _ in range(depth):
        nest = [nest]
    return nest


@st.composite
def mutated(draw: st.DrawFn, document: Any, odd: st.SearchStrategy = values) -> Any:
    """A copy of a document of dictionaries and lists with one to three changes."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            return draw(odd)
        *way, key = draw(st.sampled_from(places))
        parent = document
        for step in way:
            parent = parent[step]
        if isinstance(parent, tuple):
            continue
        match draw(st.sampled_from(["replace", "replace", "replace", "drop", "double", "move", "nest"])):
            case "replace":
                parent[key] = copy.deepcopy(draw(odd))  # which a later change may change
            case "drop":
                del parent[key]
            case "double" if isinstance(parent, list):
                parent.insert(key, copy.deepcopy(parent[key]))
            case "move":
                *origin, last = draw(st.sampled_from(places))
                source: Any = document
                try:
                    for step in origin:
                        source = source[step]
                    parent[key] = copy.deepcopy(source[last])
                except (LookupError, TypeError):  # gone by an earlier change
                    continue
            case "nest":
                parent[key] = (
                    [parent[key]] if draw(st.booleans()) else _nested(50)
                )  # deeper ones would be too deep for hypothesis
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut short, with other bytes somewhere, or with a part twice or left out."""
    start, stop = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    match draw(st.sampled_from(["cut", "bytes", "twice", "without"])):
        case "cut":
            return content[:stop]
        case "bytes":
            some = draw(st.binary(min_size=1, max_size=8))
            return content[:start] + some + content[start + len(some) :]
        case "twice":
            return content[:stop] + content[start:]
        case _:
            return content[:start] + content[stop:]


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


@st.composite
def documents(draw: st.DrawFn, document: Any) -> bytes:
    """JSON files: mostly of a mutated document, else a damaged file."""
    if draw(st.integers(0, 4)):
        return as_json(draw(mutated(document)))
    nested = b"[" * 100_000
    return draw(damaged(as_json(document)) | st.just(nested) | st.just(as_json(document)[:-1] + b',"x":' + nested))


def examples(count: int) -> Callable:
    """Settings of a test of so many examples, the same ones every time unless more are asked for by DQDET_FUZZ."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(
        max_examples=count * LONGER, derandomize=LONGER == 1, deadline=None, suppress_health_check=checks, database=None
    )


@contextmanager
def bounded() -> Iterator[None]:
    """Bounds memory and time of what is inside; what that raises must be a `DqdetError` of one printable line."""

    def late(number: int, frame: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    signal.alarm(SECONDS)
    try:
        yield
    except DqdetError as error:
        message = str(error)
        assert message.isprintable()
        assert 0 < len(message) <= 4000
        message.encode()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, limits)
