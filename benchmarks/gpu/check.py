"""The tests in ``tests/gpu`` on the device, a process each file."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from dqdet.errors import DqdetError
from gpu.measurements import Measurement, Result, Setting

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 500  # for one file


def measure(setting: Setting, file: Path) -> Result:
    """How many tests passed, and the names of those that did not."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", str(file)]
        environment = os.environ | {"DQDET_DEVICE": setting.device.type}
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS)
        if not report.exists():
            raise DqdetError(f"pytest ended with {run.returncode} and no report: {run.stderr.strip()[-200:]!r}")
        cases = list(ElementTree.parse(report).iter("testcase"))
    failures, skipped = {}, {}
    for case in cases:
        for outcome in case:
            if outcome.tag in ("failure", "error"):
                failures[case.get("name")] = outcome.get("message", "").split("\n")[0][:300]
            elif outcome.tag == "skipped":
                skipped[case.get("name")] = outcome.get("message", "").split("\n")[0]
    found: Result = {"passed": len(cases) - len(failures) - len(skipped), "failures": failures, "skipped": skipped}
    if failures or not cases:
        found["error"] = f"{len(failures)} of {len(cases)} tests failed"
    return found


def measurements(setting: Setting) -> list[Measurement]:
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    return [Measurement(file.stem, partial(measure, setting, file)) for file in files]
