"""The one exception for mistakes that a person can mend: bad data, options, files or checkpoints."""

import errno
from collections.abc import Sequence

SHOWN = 5  # entries that a message spells out
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of an OSError: no space, none for this user, or for this file


class DqdetError(Exception):
    """Says in one line what is wrong, where (file and entry), and what to do.

    The command line prints the message without a traceback (unless ``--debug``) and exits with status 1.
    """


class Interrupted(DqdetError):
    """A training that was asked to stop has stopped; says how to go on."""


def listed(entries: Sequence[object], separator: str = ", ") -> str:
    """The first entries, and how many there are beyond them."""
    shown = separator.join(str(entry) for entry in entries[:SHOWN])
    return shown if len(entries) <= SHOWN else f"{shown}{separator}and {len(entries) - SHOWN} more"
