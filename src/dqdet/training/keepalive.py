"""Hosts that vanish without closing their connections, because they lost power or a cable was cut.

Whoever waits for one of them would do so for `train.timeout`. So each process keeps a connection to the first one,
through which nothing is sent: the operating systems ask each other whether they are still there, however busy the
processes are. Where no answer comes, the first process tells the others, and all shut their connections to other hosts:
what waits for these fails at once.
"""

from __future__ import annotations

import os
import socket
import stat
import sys
from contextlib import suppress
from multiprocessing.connection import wait
from threading import Thread

from torch import distributed as dist

from dqdet.runs.processes import Process

IDLE, BETWEEN, QUESTIONS = 20, 5, 4  # seconds before the first question and between them; after 40 a host is gone
GONE = b"!"


def watch_hosts(store: dist.Store, process: Process, address: str) -> None:
    """Watch the other hosts from now on, in a thread.

    Without Linux, or where the first process cannot be reached, nothing is watched.

    Args:
        store: that all processes have.
        process: this one.
        address: of the first process.
    """
    if sys.platform != "linux" or process.world == process.local_world:
        return
    if process.rank == 0:
        own = socket.create_server(("", 0), backlog=process.world)
        _ask(own)  # before others come: connections take it over
        store.set("watched port", str(own.getsockname()[1]))
    else:
        port = int(store.get("watched port"))
        try:
            own = socket.create_connection((address, port), timeout=IDLE)
        except OSError:
            return
        own.setblocking(True)
        _ask(own)
    Thread(target=_watch, args=(own,), daemon=True).start()


def _watch(own: socket.socket) -> None:
    """Wait until a host is gone; of the first process ``own`` accepts connections, of others it is the only one."""
    connections = [own]
    while connections:
        for connection in wait(connections):
            assert isinstance(connection, socket.socket)
            if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                connections.append(connection.accept()[0])
                continue
            connections.remove(connection)
            try:
                gone = connection.recv(1) == GONE  # it is empty where the process has ended, which is seen without this
            except ConnectionResetError:
                gone = False
            except OSError:
                gone = True
            if gone:
                for other in connections:
                    with suppress(OSError):
                        other.send(GONE)
                _shut_connections()


def _ask(connection: socket.socket) -> None:
    """Have the operating system ask the other one."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    patience = {socket.TCP_KEEPIDLE: IDLE, socket.TCP_KEEPINTVL: BETWEEN, socket.TCP_KEEPCNT: QUESTIONS}
    for option, value in patience.items():
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


def _shut_connections() -> None:
    """All of this process to other hosts, whoever made them."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                internet = connection.family in (socket.AF_INET, socket.AF_INET6)
                if internet and connection.getsockname()[0] != connection.getpeername()[0]:
                    connection.shutdown(socket.SHUT_RDWR)
