"""Measurements that are made once: each is a JSON file, and what was interrupted goes on where it stopped."""

from __future__ import annotations

import datetime
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dqdet.errors import DqdetError, listed

Result = dict[str, Any]


class Setting(NamedTuple):
    """Where measurements are made, and how large."""

    device: torch.device
    tiny: bool  # small enough to try the script itself on a CPU

    @property
    def card(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"

    @property
    def origin(self) -> dict[str, Any]:
        """What results can be compared with others of."""
        return {"card": self.card, "torch": torch.__version__, "tiny": self.tiny}


class Measurement(NamedTuple):
    """Something to be measured.

    Its result has what was measured, and under ``error`` one line on what could not be.
    """

    name: str  # of its file
    measure: Callable[[], Result]


class Folder:
    """Results of one card, one version of PyTorch and one size, ``PIECE/NAME.json``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def origin(self) -> dict[str, Any]:
        """What the results that are there were measured with; empty where there are none."""
        for file in sorted(self.folder.glob("*/*.json")):
            found = json.loads(file.read_text())
            return {key: found[key] for key in ("card", "torch", "tiny")}
        return {}

    def check(self, setting: Setting) -> None:
        """Raise DqdetError if the results are not of this card, version and size."""
        now, earlier = setting.origin, self.origin
        if differing := [key for key in earlier if earlier[key] != now[key]]:
            found = ", ".join(f"{key} {earlier[key]}, now {now[key]}" for key in differing)
            raise DqdetError(f"{self.folder}: measured with {found}; choose another folder with --out")

    def file(self, piece: str, name: str) -> Path:
        return self.folder / piece / f"{name}.json"

    def read(self, piece: str, name: str) -> Result | None:
        """A result, or None where there is none."""
        file = self.file(piece, name)
        return json.loads(file.read_text()) if file.exists() else None

    def write(self, piece: str, name: str, result: Result, setting: Setting) -> None:
        file = self.file(piece, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps({"name": name, **setting.origin, "date": now, **result}, indent=1))
        unfinished.replace(file)


def one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def run_piece(
    piece: str, measurements: Sequence[Measurement], folder: Folder, setting: Setting, minutes: float
) -> None:
    """Measure what is not there yet; after so many minutes nothing new is begun.

    What has failed is tried again, but last.
    """
    start = time.monotonic()
    earlier = {m.name: folder.read(piece, m.name) for m in measurements}
    missing = [m for m in measurements if earlier[m.name] is None]
    failed = [m for m in measurements if "error" in (earlier[m.name] or {})]
    pending = missing + failed
    print(f"{piece}: {len(measurements) - len(pending)} of {len(measurements)} measured already", flush=True)
    while pending and time.monotonic() - start < 60 * minutes:
        name, measure = pending.pop(0)
        begun = time.monotonic()
        try:
            result = measure()
        except Exception as error:  # the others go on, whatever it is
            result = {"error": one_line(error)}
        folder.write(piece, name, result, setting)
        took = f"{time.monotonic() - begun:.1f} s"
        print(f"{piece}: {name}: {took}{', ' + result['error'] if 'error' in result else ''}", flush=True)
        clean_up()
    if pending:
        left = listed([m.name for m in pending])
        print(f"{piece}: the {minutes:g} minutes are over; {len(pending)} left for another run: {left}", flush=True)


def clean_up() -> None:
    """Free what a measurement, or the traceback of one that failed, has held.

    Raises:
        DqdetError: an error has left the card unusable to this process.
    """
    gc.collect()  # models hold references to themselves
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise DqdetError(f"the card does not answer any more ({one_line(error)}); run again to go on") from error
