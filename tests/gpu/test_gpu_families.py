"""Every family on the device: forward as on the CPU in float32, and steps in all precisions."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter

import pytest
import torch

from small_families import CONFIGS, build, inputs, outputs
from test_transfers import STEP, module_and_batch, tasks

every_family = pytest.mark.parametrize("name", CONFIGS)
HALVES = [torch.bfloat16, torch.float16]
PRECISIONS = [torch.float32, *HALVES]


def predict(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All outputs of all layers, on the CPU."""
    model = build(name).eval().to(device)
    features, padding = inputs(model)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype in HALVES):
        found = outputs(model.forward_features([x.to(device) for x in features], padding.to(device)))
    return {key: tensor.float().cpu() for key, tensor in found.items()}


@every_family
def test_forward_equals_that_of_the_cpu(name, device):
    """To 1e-4, of masks to that share of their largest logit: SeqFormer's exceed 1000."""
    found, expected = predict(name, device), predict(name, torch.device("cpu"))
    assert found.keys() == expected.keys()
    for key, wanted in expected.items():
        allowed = 1e-4 * max(1.0, wanted.abs().max().item() if key == "masks" else 1.0)
        torch.testing.assert_close(found[key], wanted, rtol=1e-4, atol=allowed)


@every_family
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.usefixtures("same_proposals")
def test_forward_in_half_precision_is_near_float32(name, device, dtype):
    exact = predict(name, torch.device("cpu"))
    for key, found in predict(name, device, dtype).items():
        assert found.isfinite().all()
        if key == "boxes":
            assert (found - exact[key]).abs().mean() < 2e-3
        else:
            assert (found - exact[key]).norm() < 0.1 * exact[key].norm()


@every_family
@pytest.mark.parametrize("dtype", PRECISIONS, ids=["32", "bf16-mixed", "16-mixed"])
def test_a_step_has_finite_gradients(name, device, dtype):
    module, batch = module_and_batch(name, tasks(name)[0])
    module, batch = module.train().to(device), batch.to(device)
    torch.manual_seed(0)  # of the points in masks
    with torch.autocast(device.type, dtype, enabled=dtype in HALVES):
        losses = module.criterion(module.model(batch.images, batch.padding), batch.targets, batch.counts)
    losses.total.backward()
    gradients = {key: parameter.grad for key, parameter in module.named_parameters() if parameter.grad is not None}
    assert any(gradient.any() for gradient in gradients.values())
    assert not [key for key, gradient in gradients.items() if not gradient.isfinite().all()]


@every_family
def test_a_step_waits_for_the_device_where_the_pretended_one_does(name, device):
    if device.type != "cuda":
        pytest.skip("only CUDA counts how often the CPU waits")
    module, batch = module_and_batch(name, tasks(name)[0])
    module, batch = module.train().to(device), batch.to(device)

    def step() -> None:
        losses = module.criterion(module.model(batch.images, batch.padding), batch.targets, batch.counts)
        losses.total.backward()

    step()  # what is made once for these sizes
    places: Counter[str] = Counter()

    def count(message: Warning | str, *_: object, **__: object) -> None:
        if "synchronizing CUDA operation" in str(message):
            places[place_of_a_wait()] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = count
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert places <= Counter(STEP[CONFIGS[name].loss])


def place_of_a_wait() -> str:
    """The file of the library whose line made the CPU wait."""
    frames = [frame for frame in traceback.extract_stack() if "/dqdet/" in frame.filename]
    return frames[-1].filename.split("/dqdet/")[-1] if frames else "backward pass"
