"""What `predict` takes: folders with subfolders, patterns, addresses, several of all; and what it says and writes."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import signal
import threading
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

import dqdet
from dqdet import cli
from dqdet.config import parse_overrides
from dqdet.errors import DqdetError, UnfitImage
from dqdet.formats.panoptic import read_ids
from dqdet.predict import addresses
from dqdet.predict.predictor import Predictor
from dqdet.predict.sources import predict
from test_cli import SMALL_MASKS
from test_predictor import ColourFinder, config, painted
from test_video_prediction import encode
from tiny import TINY

IMAGES = [
    painted(300, 200, red=(30, 40, 90, 160), blue=(200, 10, 280, 60)),
    painted(90, 400, blue=(10, 300, 80, 390)),
    painted(64, 48, red=(8, 8, 32, 40)),
]


@pytest.fixture
def predictor():
    return Predictor(ColourFinder(), config(), device="cpu", batch=2)


@pytest.fixture
def tree(tmp_path):
    """Pictures of the same names in different folders."""
    root = tmp_path / "in"
    for name, image in zip(("a/1.png", "b/1.png", "b/deep/2.jpg"), IMAGES, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    (root / ".hidden").mkdir()
    IMAGES[0].save(root / ".hidden" / "3.png")
    (root / "b" / "readme.txt").write_text("no image")
    return root


def files_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def described(out):
    return {image["file_name"]: image for image in json.loads((out / "images.json").read_text())["images"]}


RESULTS = {"images.json", "results.json"}


def test_a_folder_is_searched_with_its_subfolders_and_names_do_not_collide(predictor, tree, tmp_path):
    said = []
    assert predict(predictor, [tree], tmp_path / "out", say=said.append) == []
    names = {"a/1.png", "b/1.png", "b/deep/2.jpg"}
    assert files_in(tmp_path / "out") == names | RESULTS
    found = described(tmp_path / "out")
    assert {name: (image["width"], image["height"]) for name, image in found.items()} == {
        "a/1.png": IMAGES[0].size,
        "b/1.png": IMAGES[1].size,
        "b/deep/2.jpg": IMAGES[2].size,
    }
    assert len({image["id"] for image in found.values()}) == 3
    (line,) = said
    assert re.fullmatch(
        rf"{tmp_path}/out: 3 images with 4 objects above 0\.5, [\d.e+]+ images/s, .* \d+% of the time", line
    )


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["a", "b"], {"a/1.png", "b/1.png", "b/deep/2.jpg"}),
        (["b"], {"1.png", "deep/2.jpg"}),
        (["a/1.png", "b/1.png"], {"a/1.png", "b/1.png"}),
        (["b/1.png", "b/1.png", "b"], {"1.png", "deep/2.jpg"}),
        (["*/1.png"], {"a/1.png", "b/1.png"}),
        (["**/*.jpg"], {"2.jpg"}),
        (["b/deep/.."], {"1.png", "deep/2.jpg"}),
        (["a/../../in/b", "b/../a"], {"a/1.png", "b/1.png", "b/deep/2.jpg"}),
        (["a/1.png", "b/deep/2.jpg"], {"a/1.png", "b/deep/2.jpg"}),
    ],
)
def test_names_are_relative_to_the_folder_that_all_sources_are_in(predictor, tree, tmp_path, sources, names):
    predict(predictor, [str(tree / source) for source in sources], tmp_path / "out")
    assert files_in(tmp_path / "out") == names | RESULTS


def test_names_are_relative_to_a_folder_even_if_all_images_are_in_one_below(predictor, tree, tmp_path):
    (tree / "b" / "1.png").unlink()
    predict(predictor, [tree / "b"], tmp_path / "out")
    assert files_in(tmp_path / "out") == {"deep/2.jpg"} | RESULTS


@pytest.mark.parametrize("pattern", ["", "**", "**/*.*g", "*"])
def test_earlier_results_inside_the_folder_are_no_images(predictor, tree, pattern):
    (tree / "b" / "readme.txt").unlink()
    for _ in range(2):
        predict(predictor, [str(tree / pattern)], tree / "b" / "found")
        assert len(described(tree / "b" / "found")) == 3


def test_results_may_be_written_above_the_images_of_a_pattern(predictor, tree):
    assert predict(predictor, [str(tree / "b" / "deep" / "*.jpg")], tree / "b") == []
    assert set(described(tree / "b")) == {"2.jpg"}


def test_an_image_that_the_model_cannot_take_costs_no_other(tree, tmp_path):
    class Picky(ColourFinder):
        def forward(self, images, padding):
            if images.shape[3] > 2 * images.shape[2]:
                raise UnfitImage("queries.count=300: images of this size have 200 cells to propose")
            return super().forward(images, padding)

    painted(400, 100).save(tree / "b" / "strip.png")
    (failure,) = predict(Predictor(Picky(), config(), device="cpu", batch=4), [tree], tmp_path / "out")
    assert str(failure) == "b/strip.png: queries.count=300: images of this size have 200 cells to propose"
    assert set(described(tmp_path / "out")) == {"a/1.png", "b/1.png", "b/deep/2.jpg"}


def test_linked_folders_are_searched_and_cycles_end(predictor, tree, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    IMAGES[0].save(tmp_path / "elsewhere" / "9.png")
    (tree / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tree)
    predict(predictor, [tree], tmp_path / "out")
    assert set(described(tmp_path / "out")) == {"a/1.png", "b/1.png", "b/deep/2.jpg", "linked/9.png"}


def test_images_are_not_overwritten(predictor, tree):
    before = (tree / "a" / "1.png").read_bytes()
    for sources, out in (([tree], tree), ([tree / "a" / "1.png"], tree / "a")):
        with pytest.raises(DqdetError, match="would be overwritten"):
            predict(predictor, sources, out)
    assert (tree / "a" / "1.png").read_bytes() == before


def test_nothing_found_is_said(predictor, tree, tmp_path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    with pytest.raises(DqdetError, match="no images in this folder"):
        predict(predictor, [tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DqdetError, match=r"\*\.gif: no file or folder has such a name"):
        predict(predictor, [str(tree / "*.gif")], tmp_path / "out")
    with pytest.raises(DqdetError, match="none: no such file or folder"):
        predict(predictor, [tree / "none"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Ids of a data set.


def annotations(tmp_path, *names):
    file = tmp_path / "annotations.json"
    records = [{"id": number, "file_name": name, "width": 9, "height": 9} for number, name in enumerate(names, 700)]
    file.write_text(json.dumps({"images": records, "categories": [], "annotations": []}))
    return file


@pytest.mark.parametrize("prefix", ["", "in/", "elsewhere/"])
def test_results_have_the_ids_of_the_data_set(predictor, tree, tmp_path, prefix):
    (tree / "b" / "1.png").rename(tree / "b" / "4.png")
    names = [f"{prefix}{name}" for name in ("b/deep/2.jpg", "a/1.png", "other.jpg", "b/4.png")]
    predict(predictor, [tree], tmp_path / "out", annotations=annotations(tmp_path, *names))
    found = described(tmp_path / "out")
    assert {name: image["id"] for name, image in found.items()} == {"b/deep/2.jpg": 700, "a/1.png": 701, "b/4.png": 703}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    best = max((entry for entry in results if entry["image_id"] == 701), key=lambda entry: entry["score"])
    assert best["bbox"] == pytest.approx([30, 40, 60, 120], abs=2)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a/1.png", "b/1.png"), "no id, or more than one, for 1 of 3 images: b/deep/2.jpg"),
        (("x/1.png", "y/1.png", "2.jpg"), "no id, or more than one, for 2 of 3 images: a/1.png, b/1.png"),
        (("a/1.png", "b/1.png", "b/deep/2.jpg", "a/1.png"), "no id, or more than one, for 1 of 3 images: a/1.png"),
        (("1.png", "2.jpg"), "a/1.png and b/1.png are the same image 700"),
    ],
)
def test_images_without_an_id_are_named_before_anything_is_done(predictor, tree, tmp_path, names, expected):
    with pytest.raises(DqdetError, match=expected):
        predict(predictor, [tree], tmp_path / "out", annotations=annotations(tmp_path, *names))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"images": [1]}', '{"images": [{"id": true, "file_name": "a"}]}', "[" * 99999]
)
def test_files_without_ids_are_refused(predictor, tree, tmp_path, text):
    (tmp_path / "ids.json").write_text(text)
    with pytest.raises(DqdetError, match=r"ids\.json: ") as caught:
        predict(predictor, [tree], tmp_path / "out", annotations=tmp_path / "ids.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("source", "expected"), [("a.mp4", "are videos alone"), ("webcam:0", "webcam:0 is a stream")])
def test_ids_of_images_are_not_for_videos(predictor, tmp_path, source, expected):
    encode(tmp_path / "a.mp4", IMAGES[2:] * 3)
    sources = [source if source.startswith("webcam") else tmp_path / source]
    with pytest.raises(DqdetError, match=rf"annotations\.json: has ids of images, but .*{expected}; leave it out"):
        predict(predictor, sources, tmp_path / "out", annotations=annotations(tmp_path, "a.png"))
    assert not (tmp_path / "out").exists()


# Addresses.


@pytest.fixture
def server(monkeypatch, tree):
    """The address of a server with the pictures, one that moved, and one without end."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tree)

        def do_GET(self):
            if self.path == "/moved.png":
                self.send_response(302)
                self.send_header("Location", "/a/1.png")
                self.end_headers()
            elif self.path == "/endless.png":
                self.send_response(200)
                self.end_headers()
                try:
                    while True:
                        self.wfile.write(bytes(2**20))
                except OSError:  # nobody listens any more
                    pass
            else:
                super().do_GET()

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_addresses_are_fetched(predictor, server, tree, tmp_path):
    sources = [
        f"{server}/a/1.png?size=large",
        f"{server}/b/1.png",
        f"{server}/moved.png",
        tree / "b" / "deep" / "2.jpg",
    ]
    assert predict(predictor, sources, tmp_path / "out") == []
    assert files_in(tmp_path / "out") == {"1.png", "1-2.png", "moved.png", "2.jpg"} | RESULTS
    expected = predictor(tree / "a" / "1.png")
    for source in (f"{server}/a/1.png", f"{server}/moved.png"):
        np.testing.assert_array_equal(predictor(source).xyxy, expected.xyxy)


def test_what_cannot_be_fetched_is_said_and_the_others_are_done(predictor, server, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses.fetch, "__defaults__", (2**22,))
    sources = [f"{server}/none.png", f"{server}/endless.png", f"{server}/b/readme.txt", f"{server}/a/1.png"]
    sources += ["http://127.0.0.1:1/x.png", "http://[/x.png"]
    failures = predict(predictor, sources, tmp_path / "out")
    assert files_in(tmp_path / "out") >= {"1.png"} | RESULTS
    messages = [str(failure) for failure in failures]
    assert messages[0] == f"{server}/none.png: cannot be fetched (404 File not found); correct the address"
    assert messages[1].startswith(f"{server}/endless.png: more than 4 MiB")
    assert all("cannot be fetched" in message for message in messages[2:4])
    assert messages[4].startswith(f"{server}/b/readme.txt: cannot be read as")
    assert all("\n" not in message for message in messages)


def test_a_video_at_an_address_is_named_by_it_in_its_results(predictor, server, tree, tmp_path):
    encode(tree / "a.mp4", IMAGES[2:] * 3)
    source = f"{server}/a.mp4".replace("//", "//ada:secret@")
    for _ in range(2):  # the second time over results of the same source
        assert predict(predictor, [source], tmp_path / "out") == []
    assert json.loads((tmp_path / "out" / "images.json").read_text())["info"]["source"] == f"{server}/a.mp4"


def test_messages_about_addresses_have_no_passwords(predictor, server, tmp_path):
    server = server.replace("//", "//ada:secret@")
    failures = predict(predictor, [f"{server}/none.png", f"{server}/b/readme.txt", f"{server}/b/1.png"], tmp_path / "o")
    assert len(failures) == 2
    with pytest.raises(DqdetError) as caught:
        predictor(f"{server}/b/readme.txt")
    for failure in (*failures, caught.value):
        assert str(failure).startswith("http://127.0.0.1:")
        assert "secret" not in str(failure)


def test_long_names_are_cut_where_file_systems_count_bytes(server, tree, tmp_path):
    shutil.copy(tree / "a" / "1.png", tree / f"{'x' * 70}{'街' * 60}.png")
    fetched = addresses.fetch(f"{server}/{'x' * 70}{quote('街' * 60)}.png", tmp_path / "new")
    assert fetched.name == f"{'街' * 32}.png"


# Forms of an image in Python.


def test_tensors_bytes_and_file_objects_give_what_the_image_gives(predictor, tmp_path):
    file = tmp_path / "image.png"
    IMAGES[0].save(file)
    expected = predictor(IMAGES[0])
    assert len(expected) == 2
    pixels = torch.from_numpy(np.array(IMAGES[0])).permute(2, 0, 1)  # [3, H, W]
    forms = [pixels, pixels.float() / 255, (pixels / 255).double(), pixels.flip(0).flip(0), file.read_bytes()]
    forms += [io.BytesIO(file.read_bytes()), file.open("rb")]
    for form in forms:
        np.testing.assert_array_equal(predictor(form).xyxy, expected.xyxy)
    assert [len(found) for found in predictor([pixels, file.read_bytes(), IMAGES[1]])] == [2, 2, 1]


def test_several_frames_are_no_image_in_whatever_form(predictor, tmp_path):
    file = tmp_path / "moving.gif"
    IMAGES[2].save(file, save_all=True, append_images=IMAGES[:2], duration=100)
    for form in (file, file.read_bytes(), io.BytesIO(file.read_bytes())):
        with pytest.raises(DqdetError, match="has 3 frames or pages, of which only one would be used"):
            predictor(form)


def test_bytes_are_turned_upright(predictor):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned clockwise by 90 degrees
    content = io.BytesIO()
    IMAGES[0].transpose(Image.Transpose.ROTATE_90).save(content, "png", exif=exif)
    np.testing.assert_array_equal(predictor(content.getvalue()).xyxy, predictor(IMAGES[0]).xyxy)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (torch.zeros(4, 4, dtype=torch.uint8), r"shape \[4, 4\]"),
        (torch.zeros(1, 3, 4, 4), r"shape \[1, 3, 4, 4\]"),
        (torch.full((3, 4, 4), 255.0), "floating-point numbers in 0..1"),
        (torch.full((3, 4, 4), torch.nan), "floating-point numbers in 0..1"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "type torch.int64"),
        (b"no image", r"^8 bytes: cannot be read as an image \(in no format that is known\); give other ones$"),
        (io.StringIO("text"), "gives str, no bytes"),
    ],
)
def test_other_forms_are_refused(predictor, form, expected):
    with pytest.raises(DqdetError, match=expected) as caught:
        predictor(form)
    assert "\n" not in str(caught.value)


# The command line, with models of all tasks.


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector") / "run"
    return dqdet.train("scenes_tiny", out=folder, **TINY | {"train.steps": 2, "train.ema": 0.5})


def test_options_of_inference_and_preparation_are_taken(run, detector, tree, tmp_path):
    options = ["inference.limit=3", "data.val_resize=32"]
    status, out, err = run("predict", detector, tree / "a", tree / "b", *options, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r".*/out: 3 images with \d+ objects? above 0\.5, [\d.e+]+ images/s, the model busy \d+% of the time\n", out
    )
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 3 * 3
    assert dqdet.load(detector, inference={"limit": 3}).config.inference.limit == 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["x.png", "train.epochs=3"],
            "train.epochs has no effect on a prediction; what can be set is inference, ",
        ),
        (["x.png", "inference.limits=3"], "unknown option 'inference.limits', did you mean inference.limit?"),
        (["x.png", "data.val_size=[9, 9]"], "data.val_size has no effect on data.val_fit=shorter; set"),
        (
            ["x.png", "inference.object_threshold=0.9"],
            "inference.object_threshold=0.9 has no effect with data.task=detection; leave it out",
        ),
        (["x.png", "--threshold", "0.4", "inference.object_threshold=0.4"], "leave out one of them"),
        (["inference.limit=3"], "nothing to look at"),
        (["x.png", "device=cpu"], "unknown option 'device'"),
        (["x.png", "source=y.png"], "unknown option 'source'"),
    ],
)
def test_other_options_are_refused(run, detector, tmp_path, arguments, expected):
    status, out, err = run("predict", detector, *arguments, "--out", tmp_path / "out")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert expected in err


def test_a_file_that_looks_like_an_option_is_a_file(run, detector, tree, tmp_path, monkeypatch):
    (tree / "a" / "1.png").rename(tree / "size=1.png")
    monkeypatch.chdir(tree)
    assert run("predict", detector, "size=1.png", "--out", tmp_path / "out")[0] == 0
    assert "size=1.png" in files_in(tmp_path / "out")


def test_weights_of_a_run_mean_the_run(detector, tree, tmp_path):
    image = tree / "a" / "1.png"
    expected = dqdet.load(detector)(image, threshold=0)
    best = dqdet.load(detector / "model.safetensors")
    np.testing.assert_array_equal(best(image, threshold=0).confidence, expected.confidence)
    assert best.metrics == dqdet.load(detector).metrics != {}
    state = torch.load(detector / "last.ckpt", weights_only=True)
    averaged, current = state["state_dict"], state["current_model_state"]
    assert not all(torch.equal(averaged[name], current[name]) for name in averaged)
    averaged["model.class_head.0.bias"] += 1  # as if the training had gone on
    shutil.copytree(detector, tmp_path / "run")
    torch.save(state, tmp_path / "run" / "last.ckpt")
    newest = dqdet.load(tmp_path / "run" / "last.ckpt")
    assert newest.metrics == {}
    for name, tensor in newest.model.state_dict().items():
        assert torch.equal(tensor.cpu(), averaged[f"model.{name}"]), name


def test_the_newest_weights_can_be_evaluated_without_changing_the_run(run, detector, tmp_path):
    before = (detector / "metrics.json").read_bytes()
    status, _, err = run("eval", detector / "last.ckpt", "--out", tmp_path / "newest")
    assert status == 0, err
    assert (detector / "metrics.json").read_bytes() == before
    assert (tmp_path / "newest" / "metrics.json").is_file()
    status, _, err = run("predict", tmp_path / "newest" / "last.ckpt", "x.png", "--out", tmp_path / "out")
    assert (status, err.count("\n")) == (1, 1)


def test_damaged_newest_weights_are_named(detector, tmp_path):
    for name in ("config.yaml", "last.ckpt"):
        (tmp_path / name).write_bytes((detector / name).read_bytes()[:3000])
    with pytest.raises(DqdetError, match=r"last\.ckpt: damaged or cut short"):
        dqdet.load(tmp_path / "last.ckpt")


@pytest.fixture(scope="module")
def of_tasks(tmp_path_factory):
    """A model of panoptic maps and one of videos."""
    folder = tmp_path_factory.mktemp("tasks")
    return {
        task: dqdet.train(f"scenes_tiny_{task}", out=folder / task, **parse_overrides(SMALL_MASKS))
        for task in ("panoptic", "video")
    }


def test_the_threshold_is_that_of_panoptic_segments(run, of_tasks, tree, tmp_path):
    segments = {}
    for threshold in (None, 0, 1):
        out = tmp_path / str(threshold)
        option = [] if threshold is None else ["--threshold", threshold]
        status, said, err = run("predict", of_tasks["panoptic"], tree, *option, "--out", out)
        assert (status, err) == (0, "")
        document = json.loads((out / "panoptic.json").read_text())
        segments[threshold] = sum(len(entry["segments_info"]) for entry in document["annotations"])
        shown = 0.8 if threshold is None else threshold
        plural = "" if segments[threshold] == 1 else "s"
        assert f"3 images with {segments[threshold]} segment{plural} above {shown}, " in said
        assert files_in(out / "panoptic") == {"a/1.png", "b/1.png", "b/deep/2.png"}
        for entry in document["annotations"]:
            ids = set(np.unique(read_ids(out / "panoptic" / entry["file_name"])).tolist()) - {0}
            assert ids == {segment["id"] for segment in entry["segments_info"]}
    assert segments[0] > segments[1] == 0
    predictor = dqdet.load(of_tasks["panoptic"])
    found = predictor.panoptic([tree / "a" / "1.png", tree / "b" / "1.png", tree / "b" / "deep" / "2.jpg"], threshold=0)
    assert sum(len(one.segments) for one in found) == segments[0]


def test_several_videos_have_a_folder_each(run, of_tasks, tmp_path):
    for video in ("one", "two"):
        (tmp_path / "videos" / video).mkdir(parents=True)
        for frame in range(3):
            Image.effect_noise((64, 48), 50).convert("RGB").save(tmp_path / "videos" / video / f"{frame}.png")
    status, said, err = run("predict", of_tasks["video"], tmp_path / "videos", "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    assert re.search(
        r"/out/one/one\.mp4: 3 frames with \d+ tracks? above 0\.5, [\d.e+]+ frames/s\n.*/out/two/two", said
    )
    for video in ("one", "two"):
        assert files_in(tmp_path / "out" / video) == {f"{video}.mp4", "results.json", "videos.json"}
    predict(dqdet.load(of_tasks["video"]), [tmp_path / "videos" / "one"], tmp_path / "single")
    assert files_in(tmp_path / "single") == {"one.mp4", "results.json", "videos.json"}


def test_an_interruption_ends_all_videos(run, predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(dqdet, "load", lambda *given, **options: predictor)
    videos = [encode(tmp_path / f"{name}.mp4", IMAGES[2:] * 6) for name in "ab"]

    def interrupt(*arguments):
        if len(predictor.model.batches) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    predictor.model.register_forward_hook(interrupt)
    status, _, err = run("predict", "RUN", *videos, "--out", tmp_path / "out")
    assert (status, err.count("\n")) == (130, 1)
    assert re.match(r"stopped; \d frames are done: ", err)
    assert not (tmp_path / "out" / "b").exists()


def test_the_version_is_printed(run):
    status, out, err = run("--version")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"dqdet \d+\.\d+\.\d+\n", out)


def test_shells_complete_commands_and_presets(monkeypatch, capsys):
    """What bash asks of typer's completion."""
    monkeypatch.setattr("sys.argv", ["dqdet"])
    answers = []
    for words, position in (("dqdet pre", 1), ("dqdet train detr", 2), ("dqdet presets detr", 2)):
        monkeypatch.setenv("_DQDET_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(position))
        with pytest.raises(SystemExit):
            cli.main()
        answers.append(capsys.readouterr().out.split())
    assert [sorted(answer) for answer in answers] == [["predict", "presets"], ["detr_r50"], ["detr_r50"]]
