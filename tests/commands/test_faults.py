"""All commands that write something, and what is left when the disk is full or they are stopped.

After every fault the same command (of a training, its ``--resume``) does what it would have done without.
"""

import json
import multiprocessing
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import pytest
import torch
from faults import SIGNALS, Moment, run
from PIL import Image

from dqdet.data import open_dataset
from dqdet.models import create_model
from dqdet.runs.folder import load_folder, save_folder
from tiny import TINY, tiny, tiny_family

FAULTS = ["full disk", *SIGNALS]
SMALL = [f"{path}={value}" for path, value in TINY.items()]
STEP = ("dqdet.training.module", "DetectionModule.training_step")
SAVING = Moment("dqdet.runs.folder", "save", 1)  # of the weights

# Commands run in processes that are forked from one that has imported everything.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["faults", "dqdet.training.engine", "dqdet.predict.videos", "dqdet.predict.submission"])


@dataclass
class Place:
    """Where commands run: inputs, and a disk to write to."""

    inputs: Path
    disk: Path
    text: str = ""  # what the last one printed

    @property
    def out(self) -> Path:
        return self.disk / "out"

    def run(self, arguments: list[str], moment: Moment | None = None, fault: str = "") -> int | None:
        arguments = [argument.format(out=self.out) if "{out}" in argument else argument for argument in arguments]
        reading, writing = context.Pipe(duplex=False)  # no file: its size might be limited
        process = context.Process(target=run, args=(arguments, writing, self.inputs, moment, fault, self.disk))
        process.start()
        writing.close()
        process.join(timeout=300)
        assert process.exitcode is not None, "hangs"
        os.set_blocking(reading.fileno(), False)
        try:
            self.text = os.read(reading.fileno(), 65536).decode()
        except BlockingIOError:
            self.text = ""
        return process.exitcode


@dataclass(frozen=True)
class Command:
    """A command line, where a fault meets it, and what of its output is the same each time.

    Attributes:
        again: the command line after the fault; None: the same.
        before: a command line that is run first, without a fault.
    """

    arguments: list[str]
    moment: Moment
    result: Callable[[Path], object]
    again: list[str] | None = None
    before: list[str] | None = None


def weights(out: Path) -> object:
    model, config = load_folder(out)
    state = {name: tensor.tolist() for name, tensor in model.state_dict().items()}
    return config, state, json.loads((out / "metrics.json").read_text())


def training(out: Path) -> object:
    checkpoint = torch.load(out / "last.ckpt", weights_only=True)
    steps = checkpoint["global_step"], {name: tensor.tolist() for name, tensor in checkpoint["state_dict"].items()}
    return weights(out), steps, (out / "logs/csv/version_0/metrics.csv").read_text()


def images(out: Path) -> object:
    return json.loads((out / "results.json").read_text()), json.loads((out / "images.json").read_text())


def video(out: Path) -> object:
    with av.open(out / "video.mp4") as container:
        frames = sum(1 for _ in container.decode(video=0))
    return json.loads((out / "results.json").read_text()), json.loads((out / "videos.json").read_text()), frames


TRAIN = ["train", "scenes_tiny", *SMALL, "data.workers=1", "--out", "{out}"]
COMMANDS = {
    "train": Command(TRAIN, Moment(*STEP, 5), training, again=["train", "--resume", "{out}"]),
    "resume": Command(
        ["train", "--resume", "{out}", "train.epochs=3"],
        Moment(*STEP, 5),
        training,
        again=["train", "--resume", "{out}"],
        before=[*TRAIN, "train.epochs=1"],
    ),
    "eval": Command(
        ["eval", "{out}"],
        Moment("dqdet.training.module", "DetectionModule.validation_step", 1),
        weights,
        before=["convert", "static", "--out", "{out}"],
    ),
    "predict images": Command(
        ["predict", "static", "pictures", "--out", "{out}"], Moment("dqdet.predict.predictor", "annotated", 3), images
    ),
    "predict video": Command(
        ["predict", "tracker", "video", "--out", "{out}"], Moment("dqdet.predict.videos", "annotated", 3), video
    ),
    "submit": Command(
        ["submit", "tracker", "{out}/results.zip"],
        Moment("dqdet.predict.submission", "video_results", 2),
        lambda out: [file.name for file in out.iterdir()],
    ),
    "convert": Command(["convert", "static", "--out", "{out}"], SAVING, weights),
    "upgrade": Command(["upgrade", "static", "--out", "{out}"], SAVING, weights),
    "fold": Command(["fold", "constant", "--out", "{out}"], SAVING, weights),
    "study": Command(
        ["study", "generated", *SMALL, "--only", "static", "--seeds", "1", "--jobs", "1", "--out", "{out}"],
        Moment(*STEP, 5),
        lambda out: json.loads((out / "results.json").read_text())["results"],
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """Models and pictures."""
    folder = tmp_path_factory.mktemp("inputs")
    scenes = open_dataset(tiny().data, "val")
    known = {"classes": scenes.classes, "category_ids": scenes.category_ids}
    masks = {
        "data__kind": "scenes",
        "data__scenes__frames": 2,
        "data__scenes__val_images": 3,
        "model__encoder_feedforward": 32,
    }
    for name, config in {
        "static": tiny(queries__kind="static", **known),
        "constant": tiny(queries__context="none", **known),
        "tracker": tiny_family("video_mask2former_r50", **known, **masks),
    }.items():
        torch.manual_seed(0)
        save_folder(folder / name, create_model(config).eval(), config, {"step": 1, "AP": 0.5})
    for name in ("pictures", "video"):
        (folder / name).mkdir()
        for number in range(4):
            Image.effect_noise((64, 48), 50).convert("RGB").save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def place(inputs, tmp_path):
    return Place(inputs, tmp_path / "disk")


@pytest.fixture(scope="module")
def undisturbed(inputs, tmp_path_factory):
    """What each command leaves without a fault."""
    done = {}

    def left(name: str) -> object:
        if name not in done:
            place = Place(inputs, tmp_path_factory.mktemp("undisturbed"))
            command = COMMANDS[name]
            for arguments in (command.before, command.arguments):
                if arguments is not None:
                    assert place.run(arguments) == 0, place.text
            done[name] = command.result(place.out)
        return done[name]

    return left


@pytest.fixture
def disk(place, request):
    """The fault; for a full disk a small one, where it can be mounted."""
    place.disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place.disk)]
    mounted = request.param == "full disk" and not subprocess.run(mount, capture_output=True).returncode
    yield request.param
    if mounted:
        subprocess.run(["umount", "-l", str(place.disk)], check=True)


def unfinished(place: Place) -> list[str]:
    return [str(path) for path in place.disk.rglob(".*")]


def cases() -> list:
    """All commands with all faults; those that take long, or go the same way as another one, are slow."""
    quick = {
        "eval": ["SIGTERM"],
        "predict images": ["full disk", "SIGINT", "kill -9"],
        "predict video": ["kill -9"],
        "submit": ["SIGINT"],
        "convert": ["full disk"],
    }
    return [
        pytest.param(name, fault, marks=[] if fault in quick.get(name, ()) else pytest.mark.slow, id=f"{name}-{fault}")
        for name in COMMANDS
        for fault in FAULTS
    ]


@pytest.mark.parametrize(("name", "disk"), cases(), indirect=["disk"])
def test_nothing_is_lost_and_the_next_start_completes_it(name, disk, place, undisturbed):
    command, fault = COMMANDS[name], disk
    if command.before is not None:
        assert place.run(command.before) == 0, place.text
    status = place.run(command.arguments, command.moment, fault)
    text = place.text
    assert "Traceback" not in text
    if fault == "full disk":
        assert status == 1, text
        assert text.splitlines()[-1].startswith("error: ")
        assert text.count("error: ") == 1
        assert "cannot be written" in text
    else:
        assert status == (-SIGNALS[fault] if fault == "kill -9" else 130), text
    if fault != "kill -9":
        assert unfinished(place) == []
    if name in ("train", "resume") and fault in ("SIGINT", "SIGTERM"):
        assert f"nothing is lost; go on with `dqdet train --resume {place.out}`" in text
    survives(name, fault, place)

    (place.disk / "filler").unlink(missing_ok=True)
    assert place.run(command.again or command.arguments) == 0, place.text
    assert unfinished(place) == []
    assert command.result(place.out) == undisturbed(name)


def survives(name: str, fault: str, place: Place) -> None:
    """Right after the fault."""
    names = {file.name for file in place.out.iterdir()} if place.out.exists() else set()
    results = place.out / "results.json"
    if name in ("train", "resume"):
        done = torch.load(place.out / "last.ckpt", weights_only=True)["global_step"]
        first = 3 if name == "train" else 6  # steps of the epochs before the fault, which are saved
        assert done == (first if fault not in ("SIGINT", "SIGTERM") else first + 2)
        load_folder(place.out)
    elif name == "study":
        (checkpoint,) = place.out.glob("*/last.ckpt")
        done = torch.load(checkpoint, weights_only=True)["global_step"]
        assert done == (3 if fault not in ("SIGINT", "SIGTERM") else 5)
    elif name == "eval":
        assert json.loads((place.out / "metrics.json").read_text()) == {"step": 1, "AP": 0.5}
    elif name == "predict images":
        pictures = sorted(name for name in names if name.endswith(".png") and not name.startswith("."))
        # The third one is drawn in another thread, which is not interrupted.
        most = 3 if fault in ("SIGINT", "SIGTERM") else 2
        assert pictures == [f"{number}.png" for number in range(len(pictures))]
        assert 2 <= len(pictures) <= most
        for picture in pictures:
            with Image.open(place.out / picture) as image:
                image.load()
        if fault != "kill -9":
            done = {image["id"] for image in json.loads((place.out / "images.json").read_text())["images"]}
            assert done == set(range(len(pictures)))
            assert {entry["image_id"] for entry in json.loads(results.read_text())} == done
            assert f"{len(pictures)} of 4 images are done" in place.text
    elif name == "predict video":
        assert "video.mp4" not in names
        if fault != "kill -9":
            assert {entry["video_id"] for entry in json.loads(results.read_text())} == {1}
    elif name == "submit":
        assert "results.zip" not in names
    else:
        assert "model.safetensors" not in names
