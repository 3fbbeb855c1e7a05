"""Ten thousand requests of many clients at a time: each is answered, by what belongs to it, and memory stays flat."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from dqdet.config import resolve
from dqdet.models import create_model
from dqdet.runs.folder import save_folder

pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the server's memory in"),
]

CLIENTS, WARM_UP, REQUESTS = 32, 1_000, 10_000
GROWTH = 32  # MiB after the warm-up; 4 KiB a request would be 36
SIDES = range(48, 112)  # each picture has a size of its own


@pytest.fixture
def model(tmp_path) -> Path:
    """The small model on scenes, before its training."""
    config = resolve("scenes_tiny", {"classes": ["cat", "dog"]})
    torch.manual_seed(0)
    save_folder(tmp_path, create_model(config), config, {})
    return tmp_path


@pytest.fixture
def clients(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    yield pytest.importorskip("clients")
    sys.modules.pop("clients")


@pytest.mark.parametrize("waiting", [CLIENTS, 4])
def test_no_request_is_lost_and_memory_is_flat(clients, model, waiting):
    """With room for all clients all are answered by 200, with less some by 503."""
    pictures = [clients.scenes(1, side)[0] for side in SIDES]
    with clients.served(model, "--waiting", str(waiting)) as server:
        answers = clients.ask(server, pictures, CLIENTS, WARM_UP)
        warm = server.resident_mib()
        if waiting >= CLIENTS:
            answers += clients.ask(server, pictures, CLIENTS, REQUESTS - WARM_UP)
            assert server.resident_mib() - warm < GROWTH
    statuses = Counter(answer.status for answer in answers)
    assert statuses.total() == (REQUESTS if waiting >= CLIENTS else WARM_UP)
    assert set(statuses) == ({200} if waiting >= CLIENTS else {200, 503})
    for answer in answers:
        if answer.status == 200:
            found = json.loads(answer.body)
            assert found["width"] == found["height"] == SIDES[answer.picture]
