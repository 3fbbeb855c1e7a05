import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import dqdet
from dqdet import cli
from dqdet.config import from_yaml, preset_names, resolve, to_yaml
from dqdet.errors import DqdetError
from dqdet.formats.categories import COCO_CATEGORIES
from dqdet.predict.predictor import Predictor
from dqdet.runs.folder import load_config
from dqdet.studies import QUESTIONS
from tiny import TINY, contents, tiny

SMALL = [f"{path}={value}" for path, value in TINY.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return dqdet.train("scenes_tiny", out=tmp_path_factory.mktemp("trained") / "run", **TINY | {"train.steps": 2})


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, size in ((17, (80, 60)), (4, (50, 70))):
        Image.effect_noise(size, 50).convert("RGB").save(folder / f"{number}.png")
    return folder


def test_presets_are_listed(run):
    status, out, err = run("presets")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == preset_names()
    assert all(len(line.split()) > 3 for line in out.splitlines())


def test_a_preset_is_printed_fully_resolved(run):
    expected = resolve("detr_r50", ["train.epochs=7"])
    printed = run("presets", "detr_r50", "train.epochs=7")[1]
    assert from_yaml(printed, "printed") == expected
    assert yaml.safe_load(printed) == yaml.safe_load(to_yaml(expected))
    assert list(options_of(yaml.safe_load(printed))) == list(options_of(expected.model_dump()))  # in their order


def options_of(section, prefix=""):
    for name, value in section.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from options_of(value, f"{prefix}{name}.")


@pytest.mark.parametrize("name", ["scenes_tiny_video", "mask2former_r50_coco_panoptic", "dab_detr_r50"])
def test_every_printed_option_is_explained(run, name):
    printed = run("presets", name)[1].splitlines()
    assert len(printed) == len(list(options_of(resolve(name).model_dump())))  # a line each
    for line in printed:
        option, comment = re.fullmatch(r" *(\w+):.*?  # (.+)", line).groups()
        assert len(comment.split()) > 1, option
        assert comment[0].isupper() or comment.split(":")[0] in ("m", "r", "K", "softmax"), line


def test_a_printed_preset_and_the_configuration_of_a_run_are_presets(run, trained, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(run("presets", "scenes_tiny", *SMALL, "train.epochs=7")[1])
    assert resolve(file) == resolve("scenes_tiny", [*SMALL, "train.epochs=7"])
    assert resolve(str(file), ["train.epochs=8"]).train.epochs == 8
    assert run("presets", file, "train.epochs=7")[1] == file.read_text()
    status, _, err = run("train", file, "train.epochs=1", "--out", tmp_path / "run")
    assert status == 0, err
    assert resolve(tmp_path / "run" / "config.yaml").train.epochs == 1
    assert resolve(trained / "config.yaml") == load_config(trained)

    file.write_text("extends: detr_r50\ntrain: {lr: 0.5}\n")
    assert resolve(file) == resolve("detr_r50", ["train.lr=0.5"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "absent.yaml: cannot be read (No such file or directory)"),
        ("a: [", "own.yaml: not YAML"),
        ("extends: detr_r5", "did you mean detr_r50?"),
        ("extends: detr_r50\ntrain: {epoch: 1}", "own.yaml: unknown option 'train.epoch'"),
        ("preset: ../x\nmodel: {family: detr}", "own.yaml: preset=../x: "),
    ],
)
def test_a_configuration_that_is_no_preset_is_refused(run, tmp_path, text, expected):
    file = tmp_path / ("absent.yaml" if text is None else "own.yaml")
    if text is not None:
        file.write_text(text)
    status, out, err = run("presets", file)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert expected in err


def test_studies_are_listed(run):
    status, out, err = run("study")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(QUESTIONS)
    assert all(len(line.split()) > 5 for line in out.splitlines())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["presets", "detr_r5"], "unknown preset 'detr_r5', did you mean detr_r50?"),
        (["train", "detr_r5"], "unknown preset 'detr_r5', did you mean detr_r50?"),
        (["train", "detr_r50", "train.epoch=1"], "unknown option 'train.epoch', did you mean train.epochs?"),
        (["train", "detr_r50", "train.epochs=many"], "train.epochs=many: should be a valid integer"),
        (["train", "detr_r50", "more"], "'more' is not of the form option=value"),
        (["train", "detr_r50", "out=x"], "unknown option 'out'"),
        (["eval", "/nothing", "source=x"], "unknown option 'source'"),
        (["train"], "which preset? `dqdet presets` lists them"),
        (["train", "train.epochs=1"], "which preset?"),
        (["train", "detr_r50"], "data.root is not set"),
        (["train", "detr_r50", "data.root=/nothing"], "/nothing: no such folder"),
        (["train", "detr_r50", "--resume", "x"], "leave out preset detr_r50"),
        (["train", "--out", "y", "--resume", "x"], "leave out out=y"),
        (["train", "--resume", "/nothing"], "/nothing: no such folder"),
        (["eval", "/nothing"], "/nothing: no such folder"),
        (["predict", "/nothing", "x.jpg", "--out", "y"], "/nothing: no such folder"),
        (["submit", "/nothing", "x.zip"], "/nothing: no such folder"),
        (["convert", "/nothing", "--out", "y"], "/nothing: no such folder or file"),
        (["upgrade", "/nothing", "--out", "y"], "/nothing: no such folder or file"),
        (["train", "scenes_tiny", "init=/nothing", "--out", "y"], "/nothing: no such folder or file"),
        (["study", "detector"], "unknown study 'detector', did you mean detectors?"),
        (["study", "detectors", "train.epoch=1"], "unknown option 'train.epoch', did you mean train.epochs?"),
        (["study", "detectors", "--only", "statc"], "only=statc: not in this study, did you mean static?"),
        (["study", "detectors", "--seeds", "0"], "seeds=0: should be 1 or more"),
        (["study", "detectors", "--preset", "detr_r5"], "unknown preset 'detr_r5', did you mean detr_r50?"),
        (["study", "detectors", "--report", "--out", "/nothing"], "/nothing: no finished training of detectors"),
        (["study", "combinations", "--model", "/nothing", "--out", "y"], "/nothing: no such folder or file"),
    ],
)
def test_errors_are_one_line(run, arguments, expected):
    status, out, err = run(*arguments)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert expected in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--debug", "presets", "x"], ["presets", "x", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", ["dqdet", *arguments])
    with pytest.raises(DqdetError):  # the interpreter prints it
        cli.main()


def test_train_evaluate_and_predict(run, tmp_path, pictures):
    out = tmp_path / "run"
    status, text, err = run("train", "scenes_tiny", *SMALL, "train.steps=2", "queries.kind=static", "--out", out)
    assert status == 0
    assert re.fullmatch(rf"{out}: AP 0\.\d+, AP50 0\.\d+ \(best validation, step 2\)\n", text)
    assert "Traceback" not in err
    assert {"config.yaml", "model.safetensors", "metrics.json", "last.ckpt"} <= set(contents(out))

    status, text, err = run("eval", out)
    assert status == 0
    assert re.search(r"AP50 .*0\.\d\d\d", text)
    assert re.search(r"balloon( .*0\.\d\d\d){4}", text)

    status, text, err = run("predict", out, pictures, "--out", tmp_path / "found", "--threshold", "0.01")
    assert (status, err) == (0, "")
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == {4, 17}
    assert {entry["category_id"] for entry in results} <= set(range(1, 9))
    assert sorted(contents(tmp_path / "found")) == ["17.png", "4.png", "images.json", "results.json"]


SMALL_MASKS = [
    *(line for line in SMALL if not line.startswith(("model.refine", "train.drop", "train.warmup"))),
    "model.encoder_feedforward=32",
    "loss.points=64",
    "data.scenes.frames=3",
    "train.steps=1",
]


def test_panoptic_models_write_maps(run, tmp_path, pictures):
    out = tmp_path / "run"
    assert run("train", "scenes_tiny_panoptic", *SMALL_MASKS, "inference.object_threshold=0", "--out", out)[0] == 0
    status, _, err = run("predict", out, pictures, "--out", tmp_path / "found")
    assert (status, err) == (0, "")
    panoptic = json.loads((tmp_path / "found" / "panoptic.json").read_text())
    assert [entry["image_id"] for entry in panoptic["annotations"]] == [17, 4]
    assert contents(tmp_path / "found" / "panoptic").keys() == {"17.png", "4.png"}
    things = {category["id"] for category in panoptic["categories"] if category["isthing"]}
    assert len(things) == 8 < len(panoptic["categories"])
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert all("segmentation" in entry and entry["category_id"] in things for entry in results)

    status, _, err = run("submit", out, tmp_path / "results.zip")
    assert status == 1
    assert "data.task=panoptic" in err


def test_video_models_track_and_submit(run, tmp_path, pictures):
    out = tmp_path / "run"
    assert run("train", "scenes_tiny_video", *SMALL_MASKS, "--out", out)[0] == 0
    with Image.open(pictures / "4.png") as image:
        image.resize((80, 60)).save(pictures / "4.png")  # as the other frame
    status, _, err = run("predict", out, pictures, "--out", tmp_path / "found", "--threshold", "0.01")
    assert (status, err) == (0, "")
    assert contents(tmp_path / "found").keys() == {"pictures.mp4", "results.json", "videos.json"}
    status, _, err = run("predict", out, pictures / "none.mp4", "--out", tmp_path / "none")
    assert (status, err.count("\n")) == (1, 1)
    assert "none.mp4: no such file" in err

    status, _, err = run("submit", out, tmp_path / "results.zip", "data.scenes.val_images=2")
    assert (status, err) == (0, "")
    with zipfile.ZipFile(tmp_path / "results.zip") as archive:
        results = json.loads(archive.read("results.json"))
    assert {entry["video_id"] for entry in results} == {1, 2}
    assert {len(entry["segmentations"]) for entry in results} == {3}

    (out / "model.safetensors").unlink()  # last.ckpt has weights of its own: the same ones after one epoch
    status, _, err = run("submit", out / "last.ckpt", tmp_path / "last.zip", "data.scenes.val_images=2")
    assert (status, err) == (0, "")
    with zipfile.ZipFile(tmp_path / "last.zip") as archive:
        assert json.loads(archive.read("results.json")) == results


def test_models_are_converted_and_upgraded(run, tmp_path):
    run("train", "scenes_tiny", *SMALL, "train.steps=1", "queries.kind=static", "--out", tmp_path / "static")
    status, text, err = run("convert", tmp_path / "static", "--out", tmp_path / "same")
    assert (status, err) == (0, "")
    assert text == f"{tmp_path}/same: deformable_detr with test_resnet, 5 static queries, 8 classes\n"
    same, static = (load_file(tmp_path / run / "model.safetensors") for run in ("same", "static"))
    assert same.keys() == static.keys()
    assert all(torch.equal(same[name], static[name]) for name in same)
    status, text, err = run("upgrade", tmp_path / "same", "--ratio", 3, "--out", tmp_path / "modulated")
    assert (status, err) == (0, "")
    assert text == f"{tmp_path}/modulated: deformable_detr with test_resnet, 5 modulated queries, 8 classes\n"
    status, _, err = run("upgrade", tmp_path / "modulated", "--out", tmp_path / "twice")
    assert (status, err.count("\n")) == (1, 1)
    assert "only static queries can be upgraded" in err
    options = [*SMALL, "train.steps=1", "queries.ratio=3", f"init={tmp_path}/modulated"]
    status, _, err = run("train", "scenes_tiny", *options, "--out", tmp_path / "tuned")
    assert status == 0
    assert err.startswith(f"init={tmp_path}/modulated: loaded ")
    assert "; re-made nothing; ignored nothing\n" in err


def test_an_unreadable_picture_is_reported_and_the_others_are_done(run, trained, tmp_path, pictures):
    (pictures / "bad.jpg").write_text("no picture")
    status, _, err = run("predict", trained, pictures, "--out", tmp_path / "found")
    assert status == 1
    assert err.startswith(f"error: {pictures}/bad.jpg: cannot be read as an image")
    assert err.count("\n") == 1
    assert (tmp_path / "found" / "4.png").exists()


def test_the_last_line_says_which_pictures_failed(run, trained, tmp_path, pictures):
    for name in ("bad.jpg", "worse.png"):
        (pictures / name).write_text("no picture")
    status, _, err = run("predict", trained, pictures, "--out", tmp_path / "found")
    assert status == 1
    assert err.count("\n") == 3
    last = f"2 files failed, the others are done: {pictures}/bad.jpg, {pictures}/worse.png"
    assert err.splitlines()[-1] == f"error: {last}"
    assert (tmp_path / "found" / "results.json").exists()


def test_results_of_another_source_are_overwritten_by_force_alone(run, trained, tmp_path, pictures):
    found, other = tmp_path / "found", tmp_path / "other"
    other.mkdir()
    Image.effect_noise((64, 64), 50).convert("RGB").save(other / "4.png")
    for _ in range(2):  # the same source again
        assert run("predict", trained, pictures, "--out", found)[0] == 0
    before = contents(found)
    status, _, err = run("predict", trained, other, "--out", found)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {found}: has the results of {pictures}; ")
    assert "--force" in err
    assert contents(found) == before
    assert run("predict", trained, other, "--out", found, "--force")[0] == 0
    assert {entry["image_id"] for entry in json.loads((found / "results.json").read_text())} == {4}


def test_results_of_another_model_are_overwritten_by_force_alone(run, trained, tmp_path, pictures):
    found, other = tmp_path / "found", tmp_path / "other"
    shutil.copytree(trained, other)
    assert run("predict", trained, pictures, "--out", found)[0] == 0
    before = contents(found)
    status, _, err = run("predict", other, pictures, "--out", found)
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: {found}: has the results of another model, {trained}; ")
    assert contents(found) == before
    assert run("predict", other, pictures, "--out", found, "--force")[0] == 0


def test_links_among_the_results_are_replaced(run, trained, tmp_path, pictures):
    found, mine = tmp_path / "found", tmp_path / "mine"
    found.mkdir()
    mine.write_text("mine")
    for name in ("4.png", "17.png", "images.json"):
        (found / name).symlink_to(mine)
    (found / "results.json").symlink_to(tmp_path / "nowhere")
    assert run("predict", trained, pictures, "--out", found, "--force")[0] == 0
    assert mine.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [found, mine, pictures]
    assert not any(path.is_symlink() for path in found.iterdir())


def test_a_zip_that_exists_is_overwritten_by_force_alone(run, trained, tmp_path):
    file = tmp_path / "results.zip"
    file.write_bytes(b"mine")
    status, _, err = run("submit", trained, file)
    assert (status, err) == (1, f"error: {file}: exists already; choose another name, or overwrite it with --force\n")
    assert file.read_bytes() == b"mine"
    assert "data.task=detection" in run("submit", trained, file, "--force")[2]  # goes on to the next fault


def test_a_full_disk_behind_the_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dqdet", "presets"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output: cannot be written (No space left on device); make space\n"


def test_a_process_of_several_ends_after_what_waits_for_its_end():
    code = """
import atexit, sys
from dqdet.cli import main
atexit.register(print, "the groups are left")
sys.argv = ["dqdet", "presets"]
main()
"""
    several = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=os.environ | several, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "the groups are left"


def test_a_resumed_run_trains_on(run, tmp_path):
    run("train", "scenes_tiny", *SMALL, "train.steps=2", "--out", tmp_path)
    status, _, err = run("train", "train.steps=4", "--resume", tmp_path)
    assert status == 0
    assert "step 4" in err
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_run_is_resumed_by_its_checkpoint(run, tmp_path):
    run("train", "scenes_tiny", *SMALL, "train.steps=2", "--out", tmp_path)
    status, text, _ = run("train", "train.steps=3", "--resume", tmp_path / "last.ckpt")
    assert status == 0
    assert text.startswith(f"{tmp_path}: AP")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_without_out_runs_are_numbered(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("scenes_tiny", "scenes_tiny-2"):
        assert run("train", "scenes_tiny", *SMALL, "train.steps=1")[1].startswith(f"runs/{name}: ")


def test_a_used_folder_is_refused(run, trained):
    before = contents(trained)
    status, _, err = run("train", "scenes_tiny", *SMALL, "--out", trained)
    assert status == 1
    assert err.startswith(f"error: {trained}: has a run already")
    assert f"--resume {trained}" in err
    assert contents(trained) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("benchmark", "RUN", "--out"),
        ("data", "check", "DATA", "--page"),
        ("data", "show", "DATA", "--out"),
        ("export", "RUN", "--out"),
        ("study", "cost", "--page"),
        ("submit", "RUN", "--force"),
    ],
)
@pytest.mark.parametrize("name", ["file/in/the/way", "folder"])
def test_a_file_that_cannot_be_written_is_named_before_the_work(run, tmp_path, monkeypatch, arguments, name):
    """None of what they do first is there."""
    for work in (
        "dqdet.benchmark.benchmark",
        "dqdet.drawing.data_check.check",
        "dqdet.data.open_dataset",
        "dqdet.exporting.export.load_model",
        "dqdet.studies.import_module",
        "dqdet.predict.submission.load_folder",
    ):
        monkeypatch.setattr(work, None)
    monkeypatch.setattr("dqdet.predict.submission.load_config", lambda run: resolve("scenes_tiny_video"))
    (tmp_path / "file").write_text("")
    place = tmp_path / f"{name}.{'onnx' if 'export' in arguments else 'png'}"
    if name == "folder":
        place.mkdir()
    status, out, err = run(*arguments, place)
    reason = "Is a directory" if name == "folder" else "Not a directory"
    assert (status, out) == (1, "")
    assert err == f"error: {place}: cannot be written ({reason}); choose another place\n"


def test_an_unwritable_folder_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = run("train", "scenes_tiny", *SMALL, "--out", tmp_path / "file" / "run")
    assert (status, err.count("\n")) == (1, 1)
    assert "cannot be written (Not a directory)" in err


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    out = tmp_path / "run"
    options = [*SMALL, "train.epochs=10000", "data.workers=1", "train.validate_every=10000"]
    command = [sys.executable, "-m", "dqdet", "train", "scenes_tiny", *options, "--out", str(out)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        for _ in range(1200):
            if (out / "last.ckpt").exists():
                break
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the loader's workers get it too
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "stopping after this step" in err
    assert re.search(rf"^stopped after step \d+, nothing is lost; go on with `dqdet train --resume {out}`$", err, re.M)
    assert "Traceback" not in err
    assert "KeyboardInterrupt" not in err


def test_simple_commands_do_not_wait_for_pytorch():
    code = (
        "import sys; from dqdet import cli\n"
        "sys.argv = ['dqdet', *{}]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    for arguments in (
        ["presets"],
        ["presets", "detr_r50"],
        ["--help"],
        ["--version"],
        ["presets", "detr_r50", "train.lr=1"],
        ["train", "--help"],
        ["presets", "x"],
        ["study"],
        ["study", "x"],
    ):
        subprocess.run([sys.executable, "-c", code.format(arguments)], check=True, capture_output=True)


def test_python_creates_models():
    model = dqdet.create("deformable_detr_r50", **{"model.backbone.pretrained": False}, model={"encoder_layers": 1})
    assert not model.training
    assert model.class_head[0].out_features == 80
    assert len(model.encoder.layers) == 1
    images, padding = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        assert model(images, padding).groups == {"modulated": 300}
    own = dqdet.create("scenes_tiny", **TINY, classes=["cat", "dog"])
    assert own.class_head[0].out_features == 2


def test_python_trains_evaluates_and_loads(trained, pictures):
    assert trained.name == "run"
    assert dqdet.evaluate(trained)["AP50"] >= 0
    predictor = dqdet.load(trained)
    assert isinstance(predictor, Predictor)
    found = predictor(pictures / "4.png", threshold=0.0)
    assert len(found) > 0
    assert set(found["class_name"]) <= set(predictor.config.classes)
    assert predictor.config.model_copy(update={"classes": [], "category_ids": []}) == tiny(train__steps=2)


def test_python_takes_the_words_of_the_command_line(tmp_path):
    with pytest.raises(DqdetError, match="did you mean train"):
        dqdet.train("scenes_tiny", out=tmp_path, train={"epoch": 3})
    with pytest.raises(DqdetError, match=r"train\.epochs=abc"):
        dqdet.create("scenes_tiny", train={"epochs": "abc"})


def test_coco_has_80_categories_with_the_official_ids():
    assert len(COCO_CATEGORIES) == 80
    assert [COCO_CATEGORIES[number] for number in (1, 13, 90)] == ["person", "stop sign", "toothbrush"]
    assert 12 not in COCO_CATEGORIES


@pytest.fixture
def coco(tmp_path):
    """A data set in COCO format; its third training image is cut short."""
    root = tmp_path / "data"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        document = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "noise"}]}
        for number in range(1, 5):
            file = root / split / f"{number}.png"
            Image.effect_noise((60, 50), 50).convert("RGB").save(file)
            document["images"].append({"id": number, "file_name": file.name, "width": 60, "height": 50})
            box = {
                "id": number,
                "image_id": number,
                "category_id": 7,
                "bbox": [5, 5, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            document["annotations"].append(box)
        (root / split / "_annotations.coco.json").write_text(json.dumps(document))
    damaged = root / "train" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    return root


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_training_image_is_named_in_one_line(run, tmp_path, coco, workers):
    options = [*SMALL, "data.kind=coco", f"data.root={coco}", f"data.workers={workers}"]
    status, _, err = run("train", "scenes_tiny", *options, "--out", tmp_path / "run")
    assert status == 1
    first, last = err.splitlines()  # what is trained, and what went wrong
    assert "4 training and 4 validation images, 1 classes" in first
    assert last.startswith(f"error: {coco}/train/3.png: cannot be read as an image")


def test_a_set_with_one_class_and_own_ids_is_learned_and_predicted(run, tmp_path, coco):
    (coco / "train" / "3.png").write_bytes((coco / "train" / "1.png").read_bytes())
    out = tmp_path / "run"
    options = [*SMALL, "data.kind=coco", f"data.root={coco}", "train.steps=1"]
    assert run("train", "scenes_tiny", *options, "--out", out)[0] == 0
    assert run("predict", out, coco / "val" / "1.png", "--out", tmp_path / "found")[0] == 0
    results = json.loads((tmp_path / "found" / "results.json").read_text())
    assert {entry["category_id"] for entry in results} == {7}
