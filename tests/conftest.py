import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from dqdet import cli
from dqdet.models import create_model
from dqdet.runs.folder import save_folder
from tiny import tiny_family

settings.register_profile("dqdet", deadline=None)  # tests assert no times
settings.load_profile("dqdet")

ROOT = Path(__file__).resolve().parent.parent


# Of two workers, none shall begin with these when the other one has nothing left to do.
LONG = (
    *("training/test_several_processes", "test_overfit", "test_triton", "test_sampling", "test_gpu_script"),
    *("commands/test_faults", "commands/test_benchmark", "exporting/test_files", "test_studies", "fuzz/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(f"tests/{name}" in str(item.path) for name in LONG))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data; tests that need it are skipped where it does not exist."""
    folder = Path(os.environ.get("DQDET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set DQDET_SHARED")
    return folder


@pytest.fixture(autouse=True, scope="session")
def without_figures():
    """Their drawing would take longer than many trainings here; test_monitoring.py and test_report.py put it back."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dqdet.training.monitoring.Curves.draw", lambda self, trainer: None)
        patch.setattr("dqdet.training.evaluation.write_report", lambda *given: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """By SIGINT, as in a terminal, also where a shell that ignores it for what is in the background started this."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def precision_of_products() -> Iterator[None]:
    """What a test sets, the next one does not find."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.fixture
def small_run(tmp_path) -> Path:
    """The folder of a small Deformable-DETR for images of 128 to 192 pixels, which has not been trained."""
    config = tiny_family("deformable_detr_r50", classes=["cat", "dog"], data__val_resize=128, data__max_size=192)
    torch.manual_seed(0)
    folder = tmp_path / "run"
    folder.mkdir()
    save_folder(folder, create_model(config), config, {})
    return folder


@pytest.fixture
def same_proposals(monkeypatch):
    """Rounding changes which cells of an encoder are the best, a choice: here that of the first model is repeated."""
    topk, first = torch.Tensor.topk, {}

    def chosen(x: torch.Tensor, *options: int) -> torch.return_types.topk:
        return torch.return_types.topk([part.to(x.device) for part in first.setdefault(options, topk(x, *options))])

    monkeypatch.setattr(torch.Tensor, "topk", chosen)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command line: (exit status, standard output, standard error)."""

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["dqdet", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return command
