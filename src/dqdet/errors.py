"""The one exception for mistakes that a person can mend: bad data, options, files or checkpoints."""

import errno
import re
from collections.abc import Sequence
from reprlib import Repr

import yaml

SHOWN = 5  # entries that a message spells out
LONGEST = 4000  # characters of a message
LONGEST_NAME = 100  # characters of a name in a message
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: no space, none for this user, or for this file

# What reading text that is none raises; the two others are of numbers and dates, and of deep nesting.
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)

# What PyTorch, CUDA and its libraries say in a RuntimeError where there is not enough memory.
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED")


class DqdetError(Exception):
    """Says in one line what is wrong, where (file and entry), and what to do.

    Whatever names and values of files the message quotes, it can be printed, and stays one line of bounded length.
    The command line prints it without a traceback (unless ``--debug``) and exits with status 1.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), LONGEST)


class MissingExtra(DqdetError, AttributeError):
    """A name of the package needs an extra that is not installed; ``hasattr`` finds that it has no such name."""


class UnfitImage(DqdetError):
    """A model cannot take images of this size."""


class Interrupted(DqdetError):
    """A training that was asked to stop has stopped; says how to go on."""


class Everywhere(DqdetError):
    """What all processes that train together end with; only where it is ``here`` the command line says it."""

    def __init__(self, message: str, here: bool) -> None:
        super().__init__(message)
        self.here = here


def listed(entries: Sequence[object], separator: str = ", ") -> str:
    """The first entries, and how many there are beyond them."""
    shown = separator.join(printable(str(entry), LONGEST // 4) for entry in entries[:SHOWN])
    return shown if len(entries) <= SHOWN else f"{shown}{separator}and {len(entries) - SHOWN} more"


def printable(text: str, longest: int = LONGEST_NAME) -> str:
    """Text of a file in one line that every terminal can show: line breaks, controls and lone surrogates are escaped.

    What is too long loses its middle.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 3]} ... {text[2 - half :]}"


def lack_of_memory(error: BaseException) -> str | None:
    """What an error says of memory that has run out, in short; None: it says something else."""
    text = str(error)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and NO_MEMORY.search(text)):
        return None
    wanted = re.search(r"allocate (\d[\d.]* \w+)", text)
    return "not enough memory" if wanted is None else f"not enough memory for another {wanted[1]}"


class _Values(Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxlist, self.maxdict, self.maxstring = 2, 8, 4, LONGEST_NAME

    def repr_int(self, x: int, level: int) -> str:
        # Python itself refuses to print integers of many digits.
        return repr(x) if x.bit_length() <= 128 else f"an integer of {x.bit_length()} bits"


_VALUES = _Values()


def value_text(value: object) -> str:
    """A value of a file as messages quote it: as in Python, of bounded length and depth."""
    return printable(_VALUES.repr(value), 3 * LONGEST_NAME)
