"""`dqdet serve` in a process of its own, and clients that all ask it at the same time."""

from __future__ import annotations

import http.client
import io
import itertools
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dqdet.data.scenes.scene import draw_scene, render

STARTING = 300  # seconds, in which the model is loaded


class Server(NamedTuple):
    port: int
    pid: int

    def resident_mib(self) -> float:
        """Its memory; Linux."""
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return int(status["VmRSS"].split()[0]) / 1024

    def cpu_seconds(self) -> Counter[str]:
        """What its threads took of the processors so far, by their names without numbers; Linux."""
        taken: Counter[str] = Counter()
        for thread in Path(f"/proc/{self.pid}/task").iterdir():
            name, numbers = (thread / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
            in_user, in_system = numbers.split()[11:13]
            taken[name.rstrip("-_0123456789")] += (int(in_user) + int(in_system)) / os.sysconf("SC_CLK_TCK")
        return taken


class Answer(NamedTuple):
    picture: int  # that was sent
    status: int
    seconds: float
    body: bytes


@contextmanager
def served(model: Path, *options: str) -> Iterator[Server]:
    """A server of a model, which answers already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dqdet = Path(__file__).with_name("named_threads.py")
    command = [sys.executable, str(dqdet), "serve", str(model), "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(10 * STARTING):
            try:
                with socket.create_connection(("127.0.0.1", port)):
                    break
            except ConnectionRefusedError:
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with status {process.returncode}") from None
                time.sleep(0.1)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def ask(server: Server, pictures: Sequence[bytes], clients: int, requests: int) -> list[Answer]:
    """The answers to requests by clients, each of which waits for its answer before it asks again."""
    numbers = itertools.count()

    def client() -> list[Answer]:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        answers = []
        while (number := next(numbers)) < requests:
            start = time.perf_counter()
            connection.request("POST", "/predict?threshold=0.01", pictures[number % len(pictures)])
            response = connection.getresponse()
            body = response.read()
            answers.append(Answer(number % len(pictures), response.status, time.perf_counter() - start, body))
        connection.close()
        return answers

    with ThreadPoolExecutor(clients) as pool:
        found = [pool.submit(client) for _ in range(clients)]
        return [answer for one in found for answer in one.result()]


def scenes(count: int, side: int) -> list[bytes]:
    """Generated scenes as PNG files."""
    files = []
    for number in range(count):
        file = io.BytesIO()
        render(draw_scene(number), side)[0].save(file, "PNG")
        files.append(file.getvalue())
    return files
