"""Folders that one process at a time writes to."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from dqdet.errors import DqdetError
from dqdet.formats.writing import remove_unfinished
from dqdet.runs.processes import is_first_process

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_locks: set[IO[str]] = set()  # of this process


class InUse(DqdetError):
    """Another process writes to the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder, which exists, against all other processes; however this process ends, the hold ends with it.

    What processes that died were writing there is removed. Of several processes that train together the first one
    holds the folder.

    Raises:
        InUse: another process holds it, or this one does already; says which, since when.
        DqdetError: it does not exist, or cannot be written to.
    """
    if not is_first_process():
        yield
        return
    try:
        lock = _lock(folder)
        remove_unfinished(folder)
    except OSError as error:
        if not os.path.isdir(folder):
            raise DqdetError(f"{folder}: no such folder; give the folder of a run") from error
        raise DqdetError(f"{folder}: cannot be written ({error.strerror})") from error
    _locks.add(lock)
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()  # while it is held: others see that theirs is no longer the folder's
        _locks.discard(lock)
        lock.close()


def _lock(folder: Path) -> IO[str]:
    path = folder / LOCK
    while True:
        if path.is_symlink():
            path.unlink(missing_ok=True)
        lock = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")  # noqa: SIM115, it stays open
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = lock.read().strip() or "another process"
            lock.close()
            raise InUse(f"{folder}: in use by {holder}; wait until it ends, or choose another folder") from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                lock.close()
                raise
            print(f"{folder}: its file system has no locks; let no other process write there", file=sys.stderr)
        if _is_at(path, lock):
            break
        lock.close()  # whoever held it has removed it
    holder = f"process {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n"
    try:
        os.truncate(lock.fileno(), 0)
        os.write(lock.fileno(), holder.encode())
    except OSError:
        path.unlink()
        lock.close()
        raise
    return lock


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _let_go() -> None:
    """Forked processes, such as the loader's workers, must not hold the folder when this process has died."""
    for lock in _locks:
        lock.close()
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)
