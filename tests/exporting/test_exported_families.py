"""Every family in ONNX Runtime must give what it gives in PyTorch, at sizes and batches that it was not traced with."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from small_models import FAMILIES, small_config, small_model, some_images

from dqdet.exporting.meaning import outputs
from dqdet.exporting.network import Network
from dqdet.exporting.tracing import examples, trace

pytest.importorskip("onnxscript")
onnx_files = pytest.importorskip("dqdet.exporting.onnx_files")

CASES = [(name, kind) for name in FAMILIES for kind in ("static", "modulated")]
SHAPES = [(1, 96, 72), (3, 80, 112), (1, 128, 97)]  # batch, height, width


@pytest.mark.slow  # a minute each, most of it for sizes that are symbols
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_onnx_equals_pytorch(name, kind, tmp_path):
    config = small_config(name, kind)
    model = small_model(config)
    network = Network(model, config)
    traced = examples(model, config, None)[0].shape
    file = tmp_path / "model.onnx"
    onnx_files.write(trace(network, model, config, None), list(outputs(config)), {}, file)
    session = onnx_files.Session(file)
    frames = 2 if config.data.task == "video" else None  # traced with three
    for batch, height, width in SHAPES:
        assert (height, width) != tuple(traced[-2:])
        images, sizes = some_images(batch, height, width, frames)
        with torch.inference_mode():
            expected = network(images, sizes)
        given = [torch.from_numpy(output) for output in session.run(images.numpy(), sizes.numpy())]
        if "scores" in outputs(config):
            by_name = dict(zip(outputs(config), given, strict=True))
            assert (by_name.get("class_scores", by_name["scores"]).diff() <= 0).all()
            given = in_order_of(expected, given)
        for output, got, wanted in zip(outputs(config), given, expected, strict=True):
            if "scores" in output:
                got, wanted = got.logit(), wanted.logit()
            scale = max(images.shape[-2:]) if output == "boxes" else 1  # boxes are in pixels
            if output == "masks":
                scale = wanted.abs().max()
            torch.testing.assert_close(got / scale, wanted / scale, rtol=0, atol=1e-4, msg=output)


def in_order_of(expected, given):
    """The given objects in the order of the expected ones, by all that is said of them.

    Scores are equal but for rounding here and there, which then decides the order.

    Args:
        expected: tensors ``[B, K, ...]``.
        given: tensors of the same shapes.
    """
    described = [torch.cat([x.double().reshape(*x.shape[:2], -1) for x in one], -1) for one in (expected, given)]
    orders = [linear_sum_assignment(cost)[1] for cost in torch.cdist(*described)]  # B of [K]
    return [torch.stack([of_image[order] for of_image, order in zip(x, orders, strict=True)]) for x in given]
