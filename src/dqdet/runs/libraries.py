"""The libraries that results depend on, which have to be the same wherever one job runs."""

from __future__ import annotations

import platform
from importlib.metadata import version

LIBRARIES = ("dqdet", "torch", "torchvision", "timm", "lightning", "numpy")


def versions() -> dict[str, str]:
    """Of Python and the libraries, in this process."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
