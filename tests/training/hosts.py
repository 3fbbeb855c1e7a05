"""Several hosts on one machine, and the processes that train on them."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tiny import TINY

HERE = Path(__file__).parent

# No randomness but the data's, and no norm over the batch.
SAME = {
    "model.dropout": 0.0,
    "model.backbone.name": "test_convnext",
    "data.scenes.val_images": 5,
}


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def options(**overrides) -> list[str]:
    """Those of the command line for a tiny training; names are written with ``__`` for the dot."""
    given = TINY | SAME | {name.replace("__", "."): value for name, value in overrides.items()}
    return [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()]


def environment(**more: str) -> dict[str, str]:
    """That of a process, without what is said of the one that tests."""
    path = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"} | more


def watched(notes: Path, arguments: Sequence[str], death: dict | None = None) -> list[str]:
    notes.mkdir(parents=True, exist_ok=True)
    return [str(HERE / "watched.py"), str(notes), *([json.dumps(death)] if death else []), "--", *arguments]


def torchrun(launch: Sequence[str], script: Sequence[str], host: str = "") -> subprocess.Popen:
    """An agent on a host, which is the name of a network namespace; without one here."""
    inside = ["ip", "netns", "exec", host] if host else []
    interface = {"GLOO_SOCKET_IFNAME": "cable" if host else "lo"}
    return subprocess.Popen(
        [*inside, sys.executable, "-m", "torch.distributed.run", *launch, *script],
        env=environment(**interface),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def on_both(hosts: Sequence[str], each: int, scripts: Sequence[Sequence[str]]) -> list[subprocess.Popen]:
    """Agents that know each other, the first one's address by heart; ``each`` starts so many processes."""
    address = "10.77.0.1" if hosts[0] else "127.0.0.1"
    port = free_port()
    return [
        torchrun(
            [
                *("--nnodes", "2", "--node-rank", str(number), "--nproc-per-node", str(each)),
                *("--master-addr", address, "--master-port", str(port)),
            ],
            script,
            host,
        )
        for number, (host, script) in enumerate(zip(hosts, scripts, strict=True))
    ]


def outputs(processes: Sequence[subprocess.Popen], timeout: float = 540) -> list[tuple[int, str]]:
    """Exit status and output of each, when all have ended."""
    try:
        texts = [process.communicate(timeout=timeout)[0] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]
    finally:
        for process in processes:
            process.kill()


def losses(notes: Path) -> dict[tuple[int, int], tuple[list[int], float]]:
    """Images and loss of each step (epoch, batch), over all processes; where it was done again, the last time."""
    shares: dict[tuple[int, int], dict[int, list]] = {}
    for file in sorted(notes.glob("*.jsonl")):
        for line in file.read_text().splitlines():
            epoch, batch, world, images, loss = json.loads(line)
            shares.setdefault((epoch, batch), {}).setdefault(world, []).append((int(file.stem), images, loss))
    found = {}
    for place, of_worlds in shares.items():
        world = min(of_worlds)  # trainings here go on with fewer, never with more
        last = sorted({rank: (rank, images, loss) for rank, images, loss in of_worlds[world]}.values())
        assert [rank for rank, *_ in last] == list(range(world))
        images = [image for _, images, _ in last for image in images]
        found[place] = images, sum(loss for *_, loss in last) / world
    return found


@contextmanager
def network() -> Iterator[list[str] | None]:
    """Two hosts, as network namespaces with a cable between them; None where that is not permitted."""
    names = [f"dqdet-{os.getpid()}-{number}" for number in (0, 1)]
    ends = [f"dq{os.getpid() % 10**6}{letter}" for letter in "ab"]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    try:
        if shutil.which("ip") is None:
            yield None
            return
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            for number, (name, end) in enumerate(zip(names, ends, strict=True)):
                ip("link", "set", end, "netns", name, "name", "cable")
                ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "cable")
                for device in ("cable", "lo"):
                    ip("-n", name, "link", "set", "dev", device, "up")
        except subprocess.CalledProcessError:
            yield None
            return
        yield names
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)
            subprocess.run(["ip", "link", "delete", ends[0]], capture_output=True)
