"""Streams as they are: they begin anywhere, break off, fall silent, and end when a person wants it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import socket
import struct
import threading
import time

import av
import pytest
from PIL import Image

import dqdet
from dqdet.errors import DqdetError
from dqdet.formats.remote import public
from dqdet.predict import streams
from dqdet.predict.addresses import is_download, is_stream
from dqdet.predict.frames import VideoFile
from dqdet.predict.predictor import Predictor
from dqdet.predict.sources import predict
from test_predictor import ColourFinder, config, painted
from test_video_prediction import encode

FRAMES = 12


def frame(t: int) -> Image.Image:
    return painted(96, 64, red=(4 + 5 * t, 8, 28 + 5 * t, 32))


@pytest.fixture
def recorded(tmp_path) -> bytes:
    """As a camera sends it: MPEG-TS."""
    return encode(tmp_path / "recorded.ts", [frame(t) for t in range(FRAMES)]).read_bytes()


@pytest.fixture(autouse=True)
def no_long_waits(monkeypatch):
    monkeypatch.setattr(streams, "WAIT", 1.0)


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(ColourFinder(), config(), device="cpu")


@pytest.fixture
def camera():
    """Starts a camera that sends bytes to who connects, and then does something; gives its address."""
    servers, over = [], threading.Event()

    def start(content: bytes, then=lambda connection: None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(content)
                then(connection)

        threading.Thread(target=serve, daemon=True).start()
        return f"tcp://127.0.0.1:{server.getsockname()[1]}"

    start.silence = lambda connection: over.wait(60)
    yield start
    over.set()
    for server in servers:
        server.close()


def broken(connection: socket.socket) -> None:
    """The connection is reset, after what was sent had its time to arrive."""
    time.sleep(0.5)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def assert_done(out, frames: int) -> None:
    """All files are whole, with so many frames."""
    images = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in images["images"]] == list(range(1, frames + 1))
    results = json.loads((out / "results.json").read_text())
    red = [entry for entry in results if entry["score"] > 0.9]
    assert [entry["image_id"] for entry in red] == list(range(1, frames + 1))
    assert [entry["bbox"][0] for entry in red] == pytest.approx([4 + 5 * t for t in range(frames)], abs=3)
    (video,) = out.glob("*.mp4")
    assert len(list(VideoFile(video))) == frames
    assert len(list(out.iterdir())) == 3


def test_a_stream_is_looked_at_until_it_ends(predictor, camera, recorded, tmp_path):
    said = []
    assert predict(predictor, [camera(recorded)], tmp_path / "out", say=said.append) == []
    assert_done(tmp_path / "out", FRAMES)
    assert f"{FRAMES} frames with {FRAMES} objects" in said[0]


def test_a_stream_may_be_joined_in_its_middle(predictor, camera, recorded, tmp_path):
    """The first packets are those of a picture whose beginning was missed."""
    late = recorded[len(recorded) // 3 // 188 * 188 :] + recorded
    predict(predictor, [camera(late)], tmp_path / "out")
    images = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert FRAMES <= len(images) < 2 * FRAMES


def test_damaged_packets_are_left_out(predictor, camera, tmp_path):
    """As a file, this one would end before its third frame."""
    with av.open(tmp_path / "a.nut", "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "rgb24"
        for t in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(t))))
        container.mux(stream.encode())
    parts = (tmp_path / "a.nut").read_bytes().split(b"\x89PNG")
    parts[3] = bytes(len(parts[3]) - 60) + parts[3][-60:]  # with the header of the next one
    assert predict(predictor, [camera(b"\x89PNG".join(parts))], tmp_path / "out") == []
    assert len(json.loads((tmp_path / "out" / "images.json").read_text())["images"]) == FRAMES - 1


def test_a_playlist_of_the_web_is_a_stream(predictor, tmp_path):
    (tmp_path / "served").mkdir()
    with av.open(tmp_path / "served" / "live.m3u8", "w", format="hls", options={"hls_time": "1"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1", "bf": "0", "g": "5"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for t in range(FRAMES):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(t))))
        container.mux(stream.encode())

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Handler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{served.server_port}/live.m3u8?token=1"
        assert predict(predictor, [address], tmp_path / "out") == []
        served.shutdown()
    assert_done(tmp_path / "out", FRAMES)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_a_stream_in_order(predictor, camera, recorded, tmp_path, number):
    model = predictor.model
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]

    def interrupt(*arguments) -> None:
        if len(model.batches) == 5:
            os.kill(os.getpid(), number)

    model.register_forward_hook(interrupt)
    assert predict(predictor, [camera(recorded, camera.silence)], tmp_path / "out") == []
    assert_done(tmp_path / "out", 5)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_second_interruption_does_not_wait(predictor, camera, recorded, tmp_path):
    def interrupt(*arguments) -> None:
        if len(predictor.model.batches) == 5:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    predictor.model.register_forward_hook(interrupt)
    with pytest.raises(dqdet.Interrupted, match=r"^stopped; 4 frames are done: "):
        predict(predictor, [camera(recorded, camera.silence)], tmp_path / "out")


def test_what_came_before_a_stream_broke_off_is_kept(predictor, camera, recorded, tmp_path):
    address = camera(recorded, broken)
    (failure,) = predict(predictor, [address], tmp_path / "out")
    done = len(json.loads((tmp_path / "out" / "images.json").read_text())["images"])
    assert str(failure) == f"{address}: broke off (Connection reset by peer); only the {done} frames before it are done"
    assert done > FRAMES // 2
    assert_done(tmp_path / "out", done)


def test_a_stream_that_falls_silent_is_left(predictor, camera, recorded, tmp_path):
    address = camera(recorded, camera.silence)
    (failure,) = predict(predictor, [address], tmp_path / "out")
    assert str(failure).startswith(f"{address}: broke off (nothing came for 1 s); only the ")
    assert (tmp_path / "out" / "results.json").exists()


def test_who_never_sends_is_left(predictor, camera, tmp_path):
    address = camera(b"", camera.silence)
    with pytest.raises(DqdetError, match=rf"^{address}: no stream \(nothing came for 1 s\); check"):
        predict(predictor, [address], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("rtsp://ada:secret@127.0.0.1:9/cam", "rtsp://127.0.0.1:9/cam"),
        ("rtmp://127.0.0.1:9/live", "rtmp://127.0.0.1:9/live"),
        ("http://127.0.0.1:9/live.m3u8", "http://127.0.0.1:9/live.m3u8"),
        ("rtsp://ada:my@secret@127.0.0.1:9/cam", "rtsp://127.0.0.1:9/cam"),
        ("webcam:987", "webcam:987"),
    ],
)
def test_streams_that_are_not_there_are_named_without_passwords(run, predictor, monkeypatch, tmp_path, source, named):
    monkeypatch.setattr(dqdet, "load", lambda *given, **options: predictor)
    status, _, err = run("predict", "RUN", source, "--out", tmp_path / "out")
    assert status == 1
    assert err.startswith(f"error: {named}: no stream (")
    assert err.count("\n") == 1
    assert "secret" not in err


def test_results_of_a_stream_do_not_have_its_password(predictor, camera, recorded, tmp_path):
    address = camera(recorded).replace("//", "//ada:secret@")
    predict(predictor, [address], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "images.json").read_text())["info"]["source"] == public(address)
    assert "secret" not in public(address)


def test_a_stream_is_given_alone(predictor, tmp_path):
    with pytest.raises(DqdetError, match=r"^webcam:0: all else would wait for the end of this stream; give it alone$"):
        predict(predictor, ["webcam:0", tmp_path], tmp_path / "out")


def test_models_of_videos_need_a_file(predictor, tmp_path):
    predictor.config = predictor.config.model_copy(update={"data": config().data.model_copy(update={"task": "video"})})
    with pytest.raises(DqdetError, match=r"^webcam:0: a model of data\.task=video reads a video twice"):
        predict(predictor, ["webcam:0"], tmp_path / "out")


def test_what_is_a_stream():
    for source in (
        "rtsp://a/b",
        "RTMP://a",
        "udp://@239.0.0.1:1234",
        "https://a/b.m3u8?c=d.jpg",
        "webcam:0",
        "/dev/video1",
    ):
        assert is_stream(source)
        assert not is_download(source)
    for source in ("https://a/b.mp4", "https://a/b.jpg?list=c.m3u8", "webcam", "photos", "/dev/video", "b.m3u8"):
        assert not is_stream(source)
