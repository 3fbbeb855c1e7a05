"""Open files are asked by several threads, as the server does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

openvino = pytest.importorskip("openvino")
from dqdet.exporting.openvino_files import Session  # noqa: E402


def test_threads_get_their_own_results_from_openvino(tmp_path):
    opset = openvino.opset13
    images = opset.parameter([-1, 3, -1, -1], np.uint8, name="images")
    sizes = opset.parameter([-1, 2], np.int64, name="sizes")
    for given, name in ((images, "images"), (sizes, "sizes")):
        given.output(0).get_tensor().set_names({name})
    sums = opset.reduce_sum(opset.convert(images, "f32"), np.array([1, 2, 3]))  # [B]
    openvino.save_model(openvino.Model([sums, opset.convert(sizes, "f32")], [images, sizes]), tmp_path / "model.xml")
    session = Session(tmp_path / "model.xml")

    def run(number: int) -> float:
        found, _ = session.run(np.full((1, 3, 128, 128), number, np.uint8), np.array([[128, 128]]))
        return float(found[0])

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(run, range(200))] == [number * 3 * 128 * 128 for number in range(200)]
