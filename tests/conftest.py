import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dqdet", deadline=None)  # tests assert no times
settings.load_profile("dqdet")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data; tests that need it are skipped where it does not exist."""
    folder = Path(os.environ.get("DQDET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set DQDET_SHARED")
    return folder
