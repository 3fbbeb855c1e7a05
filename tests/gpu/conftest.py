import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The card, or what ``DQDET_DEVICE`` says: ``cpu`` tries these tests themselves where there is no card."""
    chosen = os.environ.get("DQDET_DEVICE", "cuda")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; DQDET_DEVICE=cpu runs these tests on the CPU")
    return torch.device(chosen)


@pytest.fixture(autouse=True)
def exact_float32(precision_of_products: None) -> None:
    """Without TF32, as on a CPU."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
