"""`dqdet serve` without a network: requests, limits, and what waits."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import dqdet
from dqdet.errors import DqdetError, UnfitImage
from dqdet.formats.results import coco_results
from dqdet.models import create_model
from dqdet.predict.predictor import Predictor, objects
from dqdet.runs.folder import save_folder
from tiny import tiny_family

serving = pytest.importorskip("dqdet.serving.app", reason="FastAPI is not installed")
Line = pytest.importorskip("dqdet.serving.waiting").Line
TestClient = pytest.importorskip("starlette.testclient", reason="Starlette has no test client").TestClient


pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")


def make_predictor(preset="deformable_detr_r50", **options) -> Predictor:
    torch.manual_seed(0)
    size = {"data__val_resize": 128, "data__max_size": 192}
    config = tiny_family(preset, classes=["cat", "dog"], **size, **options)
    return Predictor(create_model(config), config, device="cpu", batch=4)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return make_predictor(queries__kind="modulated")


@pytest.fixture(scope="module")
def client(predictor):
    with TestClient(serving.make_app(predictor, serving.Limits(mebibytes=0.2, megapixels=0.1))) as client:
        yield client


def picture(width=90, height=60, kind="PNG", seed=0, **options) -> bytes:
    pixels = np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def test_an_answer_is_what_the_predictor_finds(client, predictor):
    content = picture()
    answer = client.post("/predict", content=content).json()
    (outcome,) = predictor.outcomes([content])
    expected = coco_results(0, objects(outcome), predictor.category_ids)
    assert (answer["width"], answer["height"]) == (90, 60)
    found = [{key: one[key] for key in ("image_id", "category_id", "bbox", "score")} for one in answer["annotations"]]
    assert len(found) == len(expected) >= 10
    for one, other in zip(found, expected, strict=True):
        assert one["category_id"] == other["category_id"]
        np.testing.assert_allclose([*one["bbox"], one["score"]], [*other["bbox"], other["score"]], rtol=1e-4, atol=1e-3)
    middle = found[len(found) // 2]["score"]
    above = client.post(f"/predict?threshold={middle}", content=content).json()["annotations"]
    assert [one["score"] for one in above] == [one["score"] for one in found if one["score"] >= middle]


def test_coefficients_are_given_with_modulated_queries(client, predictor):
    content = picture()
    weights = client.post("/predict?coefficients=true", content=content).json()["coefficients"]
    expected = predictor.coefficients([content])[0]
    torch.testing.assert_close(torch.tensor(weights), expected, rtol=1e-4, atol=1e-5)


def test_masks_and_segments_are_given():
    predictor = make_predictor("mask2former_r50_coco_panoptic", stuff=["dog"])
    with TestClient(serving.make_app(predictor, serving.Limits())) as client:
        answer = client.post("/predict", content=picture()).json()
    assert all(one["segmentation"]["size"] == [60, 90] for one in answer["annotations"])
    assert isinstance(answer["segments"], list)


def bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")

    header = (60000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def film() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (b"", 400, "no image"),
        (b"hello, this is text", 415, "cannot be read as an image"),
        (picture()[:200], 415, "cannot be read as an image"),
        (film(), 415, "a GIF of 2 frames or pages; send one image"),
        (b"x" * 300_000, 413, "more than 0.2 MiB"),
        (picture(400, 300, "JPEG", quality=10), 413, "0.12 megapixels, more than 0.1"),
        (bomb(), 413, "megapixels"),
    ],
    ids=["nothing", "text", "cut", "film", "large", "many pixels", "bomb"],
)
def test_what_is_no_image_is_answered(client, content, status, message):
    answer = client.post("/predict", content=content)
    assert answer.status_code == status
    assert message in answer.json()["detail"]
    assert client.post("/predict", content=picture()).status_code == 200  # the next one is served


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_limit_of_pixels_is_that_of_the_application(predictor, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with TestClient(serving.make_app(predictor, serving.Limits(megapixels=0.006))) as client:
        assert client.post("/predict?coefficients=true", content=picture(90, 60)).status_code == 200
        assert client.post("/predict", content=picture(90, 70)).status_code == 413
        answer = client.post("/predict", content=picture(200, 100))
        assert answer.status_code == 413
        assert answer.json()["detail"].startswith("the image has more than 0.006 megapixels")
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_an_upload_that_breaks_off_is_no_failure(predictor):
    messages = [{"type": "http.request", "body": b"beginning", "more_body": True}, {"type": "http.disconnect"}]
    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    asyncio.run(serving.make_app(predictor, serving.Limits())(scope, receive, send))
    assert sent[0]["status"] == 400


def test_wrong_parameters_are_answered(client):
    assert client.post("/predict?threshold=2", content=picture()).status_code == 422
    with TestClient(serving.make_app(make_predictor(queries__kind="static"), serving.Limits())) as static:
        answer = static.post("/predict?coefficients=true", content=picture())
    assert answer.status_code == 422
    assert "queries.kind=static has no coefficients" in answer.json()["detail"]


def test_health_page_and_interface_are_there(client):
    health = client.get("/health").json()
    assert health["status"] == "ok"
    assert [category["name"] for category in health["categories"]] == ["cat", "dog"]
    assert "Drop an image" in client.get("/").text
    assert "/predict" in client.get("/openapi.json").json()["paths"]
    assert Image.open(io.BytesIO(client.get("/examples/0.png").content)).size == (256, 256)
    assert client.get("/examples/4.png").status_code == 404


class Slow(Predictor):
    """Waits with the first batch until it may go on, and notes the sizes of batches."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sizes: list[int] = []
        self.working, self.going_on = threading.Event(), threading.Event()

    def outcomes_of(self, batch, threshold=None):
        self.sizes.append(len(batch))
        self.working.set()
        assert self.going_on.wait(30)
        return super().outcomes_of(batch, threshold)


def test_what_waits_is_answered_together_and_too_many_are_refused():
    config = tiny_family("deformable_detr_r50", classes=["cat", "dog"], data__val_resize=128, data__max_size=192)
    predictor = Slow(create_model(config), config, device="cpu", batch=4)
    with (
        TestClient(serving.make_app(predictor, serving.Limits(waiting=6), at_once=1)) as client,
        ThreadPoolExecutor(16) as pool,
    ):
        first = pool.submit(client.post, "/predict", content=picture())
        assert predictor.working.wait(30)
        others = [pool.submit(client.post, "/predict", content=picture(seed=seed)) for seed in range(1, 13)]
        refused = [one for one in others if one_is_refused(one)]
        predictor.going_on.set()
        answers = [one.result(30) for one in (first, *others)]
    statuses = [answer.status_code for answer in answers]
    assert statuses.count(503) == 6
    assert statuses.count(200) == 7
    assert len(refused) <= 6
    assert predictor.sizes == [1, 4, 2]
    assert next(answer for answer in answers if answer.status_code == 503).headers["retry-after"] == "1"


def one_is_refused(future) -> bool:
    """Whether a request is answered while the model works, which it only is when the line is full."""
    try:
        return future.result(0.5).status_code == 503
    except TimeoutError:
        return False


def test_two_batches_are_in_the_model_at_the_same_time(predictor, monkeypatch):
    both = threading.Barrier(2)

    def outcomes_of(batch, threshold=None):
        both.wait(30)
        return Predictor.outcomes_of(predictor, batch, threshold)

    monkeypatch.setattr(predictor, "outcomes_of", outcomes_of)
    monkeypatch.setattr(predictor, "batch", 1)
    with TestClient(serving.make_app(predictor, serving.Limits())) as client, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(client.post, "/predict", content=picture(seed=seed)) for seed in range(2)]
        assert [one.result(60).status_code for one in answers] == [200, 200]


def test_a_batch_alone_has_all_processors_and_others_have_their_share(predictor, monkeypatch):
    line = Line(predictor, 8, at_once=2)
    monkeypatch.setattr(line, "processors", 6)
    threads = []

    def outcomes_of(batch, threshold=None):
        threads.append((len(batch), torch.get_num_threads()))
        return Predictor.outcomes_of(predictor, batch, threshold)

    monkeypatch.setattr(predictor, "outcomes_of", outcomes_of)
    prepared = predictor.prepared(Image.new("RGB", (60, 60)))
    first = line.join(lambda: prepared, lambda image, outcome: b"first")
    line.start()
    assert first.result(60) == b"first"
    with line.counting:
        line.batches += 1  # another one is worked on
    assert line.join(lambda: prepared, lambda image, outcome: b"second").result(60) == b"second"
    line.stop()
    assert threads == [(1, 6), (1, 3)]


def test_who_left_is_passed_over_and_who_errs_is_told_alone(predictor):
    line = Line(predictor, 8, at_once=1)
    prepared = predictor.prepared(Image.new("RGB", (60, 60)))

    def broken():
        raise DqdetError("no image")

    left, wrong, right = (line.join(read, lambda *_: b"found") for read in (broken, broken, lambda: prepared))
    assert left.cancel()
    line.start()
    assert right.result(60) == b"found"
    with pytest.raises(DqdetError, match="no image"):
        wrong.result(60)
    line.stop()


def test_a_model_that_fails_fails_one_batch(predictor, monkeypatch):
    calls = []

    def outcomes_of(batch, threshold=None):
        calls.append(len(batch))
        if len(calls) == 1:
            raise DqdetError("the model predicts NaN")
        return Predictor.outcomes_of(predictor, batch, threshold)

    monkeypatch.setattr(predictor, "outcomes_of", outcomes_of)
    with TestClient(serving.make_app(predictor, serving.Limits())) as client:
        answer = client.post("/predict", content=picture())
        assert (answer.status_code, answer.json()["detail"]) == (500, "the model predicts NaN")
        assert client.post("/predict", content=picture()).status_code == 200


def answers_to_a_batch(predictor):
    """Of images of 60x60, 44x33 and 60x60 pixels that wait together."""
    line = Line(predictor, 8, at_once=1)
    images = [predictor.prepared(Image.new("RGB", size)) for size in ((60, 60), (44, 33), (60, 60))]
    answers = [line.join(lambda image=image: image, lambda *_: b"found") for image in images]
    line.start()
    line.stop()  # when all have their answers
    return answers


def test_images_without_enough_memory_together_go_alone(predictor, monkeypatch):
    def outcomes_of(batch, threshold=None):
        if len(batch) > 1 or batch[0].size == (33, 44):
            torch.empty(10**15)  # fails
        return Predictor.outcomes_of(predictor, batch, threshold)

    monkeypatch.setattr(predictor, "outcomes_of", outcomes_of)
    first, large, last = answers_to_a_batch(predictor)
    assert (first.result(60), last.result(60)) == (b"found", b"found")
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        large.result(60)
    with TestClient(serving.make_app(predictor, serving.Limits())) as client:
        answer = client.post("/predict", content=picture(44, 33))
    assert answer.status_code == 507
    assert answer.json()["detail"].startswith("not enough memory for another 4000000000000000 bytes for this image")


def test_an_image_that_the_model_cannot_take_is_answered_alone(predictor, monkeypatch):
    def outcomes_of(batch, threshold=None):
        if any(image.size == (33, 44) for image in batch):
            raise UnfitImage("images of this size have 200 cells to propose")
        return Predictor.outcomes_of(predictor, batch, threshold)

    monkeypatch.setattr(predictor, "outcomes_of", outcomes_of)
    first, unfit, last = answers_to_a_batch(predictor)
    assert (first.result(60), last.result(60)) == (b"found", b"found")
    with pytest.raises(UnfitImage):
        unfit.result(60)
    with TestClient(serving.make_app(predictor, serving.Limits())) as client:
        answer = client.post("/predict", content=picture(44, 33))
    assert (answer.status_code, answer.json()["detail"]) == (422, "images of this size have 200 cells to propose")


def test_models_of_videos_are_refused():
    predictor = make_predictor("video_mask2former_r50")
    with pytest.raises(DqdetError, match="takes no single images"):
        serving.make_app(predictor, serving.Limits())


def test_the_command_lets_threads_change_often(run, tmp_path, monkeypatch):
    config = tiny_family("detr_r50", classes=["cat", "dog"])
    save_folder(tmp_path, create_model(config), config, {})
    noted = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: noted.update(options, interval=sys.getswitchinterval()))
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)  # Python's own, which a command before may have changed
    try:
        assert run("serve", tmp_path, "--port", "8123")[0] == 0
    finally:
        sys.setswitchinterval(before)
    assert (noted["host"], noted["port"]) == ("127.0.0.1", 8123)
    assert noted["interval"] < 0.005


def test_the_command_says_what_is_missing(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, err = run("serve", "nowhere")
    assert code == 1
    assert err == "error: `dqdet serve` needs FastAPI and uvicorn: pip install 'dqdet[serve]'\n"
    assert dqdet  # the library itself needs neither
