"""The page of `dqdet serve` in a real browser."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from dqdet.models import create_model
from dqdet.predict.predictor import Predictor
from tiny import tiny_family

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
serving = pytest.importorskip("dqdet.serving.app", reason="FastAPI is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = [Path(f"/usr/bin/{name}") for name in ("chromium", "chromium-browser", "google-chrome")]


@pytest.fixture(scope="module")
def address():
    """Of a server with a small modulated model."""
    torch.manual_seed(0)
    size = {"data__val_resize": 128, "data__max_size": 192}
    config = tiny_family("deformable_detr_r50", classes=["cat", "dog"], queries__kind="modulated", **size)
    app = serving.make_app(Predictor(create_model(config), config, device="cpu"), serving.Limits())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def browser():
    binary = next((file for file in CHROMIUM if file.exists()), None)
    with playwright.sync_playwright() as started:
        if binary is None and not Path(started.chromium.executable_path).exists():
            pytest.skip("no Chromium; `playwright install chromium`, or that of the system")
        opened = started.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_an_image_is_looked_at_and_the_threshold_moves_the_count(address, browser, tmp_path):
    page = browser.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(address)
    page.wait_for_function("document.getElementById('about').textContent.includes('2 classes')")
    picture = tmp_path / "picture.png"
    Image.effect_mandelbrot((120, 80), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(picture)
    page.set_input_files("#file", picture)
    page.wait_for_selector("#result:not([hidden])")
    counts = {}
    for threshold in ("1", "0"):
        page.locator("#threshold").fill(threshold)
        counts[threshold] = int(page.inner_text("#count"))
    assert counts["1"] == 0
    assert counts["0"] >= 10
    assert page.locator("#list li").count() == counts["0"]
    assert "120 x 80 pixels" in page.inner_text("#status")
    assert page.evaluate("[picture.width, picture.height]") == [720, 480]  # small images are enlarged
    drawn = page.evaluate("""() => new Set(picture.getContext("2d").getImageData(0, 0, 720, 480).data).size""")
    assert drawn > 30  # it is not empty
    assert page.is_visible("#weights")
    assert page.evaluate("weights.width") > 1

    text = tmp_path / "text.txt"
    text.write_text("no image")
    page.set_input_files("#file", text)
    page.wait_for_selector("#status.error")
    assert "cannot be read as an image" in page.inner_text("#status")
    assert page.is_hidden("#result")

    page.click("#examples button >> nth=1")
    page.wait_for_function("document.getElementById('status').textContent.includes('256 x 256')")
    assert all(url.startswith((address, "blob:", "data:")) for url in asked)
    assert [line for line in complaints if "415" not in line] == []
