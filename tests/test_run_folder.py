import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from dqdet.config import to_yaml
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.runs.folder import (
    check_classes,
    load_folder,
    load_metrics,
    load_weights,
    match_metrics,
    new_run,
    prepare_folder,
    save_folder,
    without_pretraining,
    write_file,
)
from dqdet.runs.lock import InUse, held
from tiny import contents, tiny, tiny_family

CLASSES = ["cat", "dog", "größer"]


def make(seed=0, **overrides):
    config = tiny(classes=CLASSES, category_ids=[3, 5, 9], **overrides)
    torch.manual_seed(seed)
    return create_model(config).eval(), config


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "run"
    save_folder(folder, *make(), {"step": 7, "AP": 0.25})
    return folder


def message(function, *arguments) -> str:
    with pytest.raises(DqdetError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@contextmanager
def disk_full(size: int):
    """Writing beyond ``size`` bytes of a file fails, as the operating system reports it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_brings_back_the_model_and_its_configuration(run):
    model, config = make()
    loaded, loaded_config = load_folder(run)
    assert loaded_config == config
    assert not loaded.training
    images, padding = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        expected, found = model(images, padding), loaded(images, padding)
    assert torch.equal(expected.logits, found.logits)
    assert torch.equal(expected.boxes, found.boxes)
    assert load_metrics(run) == {"step": 7, "AP": 0.25}


def test_a_panoptic_model_comes_back_with_its_regions(tmp_path):
    config = tiny_family("mask2former_r50_coco_panoptic", classes=CLASSES, category_ids=[3, 5, 9], stuff=["größer"])
    torch.manual_seed(0)
    model = create_model(config).eval()
    save_folder(tmp_path, model, config, {"step": 7, "PQ": 0.25})
    loaded, loaded_config = load_folder(tmp_path)
    assert loaded_config == config
    images, padding = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(model(images, padding).masks.all(), loaded(images, padding).masks.all())


def test_the_files_are_plain_yaml_json_and_safetensors(run):
    assert yaml.safe_load((run / "config.yaml").read_text())["classes"] == CLASSES
    assert json.loads((run / "metrics.json").read_text())["AP"] == 0.25
    with safe_open(run / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(make()[0].state_dict())
    assert sorted(contents(run)) == ["config.yaml", "metrics.json", "model.safetensors"]


def test_loading_fetches_nothing(run):
    _, config = make()
    config.model.backbone.pretrained = True
    config.model.backbone.weights = "gone.pth"
    (run / "config.yaml").write_text(to_yaml(config))
    _, loaded = load_folder(run)
    assert loaded.model.backbone.pretrained  # what the run was made with stays on record
    assert without_pretraining(config).model.backbone.weights is None


def test_loading_executes_nothing(run, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (run / "model.safetensors").write_bytes(pickle.dumps(Payload()))
    assert "damaged" in message(load_folder, run)
    (run / "config.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/executed']")
    assert "not YAML" in message(load_folder, run)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.yaml", "not the folder of a run, it has no config.yaml"),
        ("model.safetensors", "model.safetensors: no such file; it is written by the first validation"),
    ],
)
def test_missing_files_are_named(run, name, expected):
    (run / name).unlink()
    assert expected in message(load_folder, run)


def test_a_missing_folder_is_named(tmp_path):
    assert message(load_folder, tmp_path / "nothing").startswith(f"{tmp_path}/nothing: no such folder")


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_a_truncated_weights_file_is_named(run, size):
    file = run / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert message(load_folder, run).startswith(f"{file}: damaged or cut short")


def test_damaged_configuration_and_metrics_are_named(run):
    (run / "metrics.json").write_text("{")
    assert message(load_metrics, run).startswith(f"{run}/metrics.json: cannot be read")
    (run / "config.yaml").write_bytes(b"\xff\xfe")
    assert message(load_folder, run).startswith(f"{run}/config.yaml: cannot be read")


def test_weights_of_another_model_are_refused_and_listed(run):
    file = run / "model.safetensors"
    other, _ = make(model__decoder_layers=3)
    text = message(load_weights, other, file)
    origin = "scenes_tiny, deformable_detr with modulated queries and 3 classes"
    assert text.startswith(f"{file}: weights of another model than configured ({origin}): ")
    assert "missing (decoder.2." in text
    assert ", ..." in text
    assert "unknown (decoder.1." in message(load_weights, make(model__decoder_layers=1)[0], file)
    assert "[3, 32] instead of [4, 32]" in message(load_weights, create_model(tiny(classes=["a", "b", "c", "d"])), file)


def test_a_refused_file_leaves_the_model_as_it_was(run):
    other, _ = make(seed=1, queries__count=6)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    message(load_weights, other, run / "model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_class_lists_are_compared():
    _, config = make()
    check_classes(config, CLASSES, "data")
    text = message(check_classes, config, ["cat", "horse"], "data")
    assert text.startswith("data: its 2 classes are not the 3 of the model")
    assert "only in the data: horse; only in the model: dog, größer" in text
    assert "in another order" in message(check_classes, config, CLASSES[::-1], "data")


def test_a_full_disk_keeps_the_previous_checkpoint(run):
    before = contents(run)
    model, config = make(seed=1)
    with disk_full(100_000):
        text = message(save_folder, run, model, config, {"AP": 0.5})
    assert text == f"{run}/model.safetensors: cannot be written (File too large); the previous file is kept"
    after = contents(run)
    assert after["model.safetensors"] == before["model.safetensors"]
    assert after["metrics.json"] == before["metrics.json"]
    assert sorted(after) == sorted(before)  # no debris
    load_folder(run)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_keeps_the_previous_file(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    file = tmp_path / "file"
    write_file(file, b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DqdetError if isinstance(error, OSError) else KeyboardInterrupt):
        write_file(file, b"new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    _, config = make()
    text = message(prepare_folder, tmp_path / "file" / "run", config)
    assert text == f"{tmp_path}/file/run/config.yaml: cannot be written (Not a directory)"


def test_a_used_folder_is_refused_with_the_ways_out(run):
    before = contents(run)
    text = message(prepare_folder, run, make()[1])
    assert text.startswith(f"{run}: has a run already (model.safetensors)")
    assert f"--resume {run}" in text
    assert "another --out" in text
    assert contents(run) == before


def test_a_folder_without_a_run_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    prepare_folder(tmp_path, make()[1])
    prepare_folder(tmp_path, make()[1])  # a training that failed before its first checkpoint
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_default_folders_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, config = make()

    def named() -> Path:
        with new_run(None, config) as folder:
            return folder

    assert named() == Path("runs/scenes_tiny")
    assert named() == Path("runs/scenes_tiny")  # it has no run
    save_folder(named(), model, config, {})
    assert named() == Path("runs/scenes_tiny-2")
    write_file(Path("runs/scenes_tiny-2/last.ckpt"), b"")
    assert named() == Path("runs/scenes_tiny-3")
    with new_run(None, config) as third, new_run(None, config) as fourth:
        assert [third, fourth] == [Path("runs/scenes_tiny-3"), Path("runs/scenes_tiny-4")]


def test_a_hold_ends_with_its_process_also_where_forked_ones_live_on(tmp_path):
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with held(tmp_path):
            worker = os.fork()
            if worker:
                os.write(writing, str(worker).encode())
            time.sleep(600)
        os._exit(0)
    worker = int(os.read(reading, 100))
    try:
        with pytest.raises(InUse, match=f"{tmp_path}: in use by process {holder} on .* since 20"), held(tmp_path):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with held(tmp_path):
            assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} ")
    finally:
        os.kill(worker, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_files_of_dead_processes_are_removed_and_those_of_others_stay(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    kept = {f".{os.getpid()}-0.unfinished.json", ".backup.2023", "notes.unfinished"}
    for name in {f".{dead.pid}-3.unfinished.safetensors", f".last.ckpt.{dead.pid}", *kept}:
        (tmp_path / name).write_text("")
    (tmp_path / f".{dead.pid}-4.unfinished").mkdir()
    (tmp_path / f".{dead.pid}-4.unfinished" / "results.json").write_text("[")
    with held(tmp_path):
        assert {path.name for path in tmp_path.iterdir()} == kept | {".lock"}


def test_links_in_the_folder_are_replaced(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    for path in (outside, folder):
        path.mkdir()
    (outside / "mine").write_text("mine")
    for name in ("config.yaml", "metrics.json", ".lock"):
        (folder / name).symlink_to(outside / "mine")
    (folder / "logs").symlink_to(outside)
    model, config = make()
    with new_run(folder, config):
        save_folder(folder, model, config, {"AP": 0.5})
    assert contents(outside) == {"mine": b"mine"}
    assert not any(path.is_symlink() for path in folder.iterdir())
    load_folder(folder)


def test_a_model_that_nobody_measured_is_not_replaced(run):
    weights, _ = make()
    save_folder(run, weights, make()[1], {})
    (run / "metrics.json").unlink()
    assert message(match_metrics, run).startswith(f"{run}/metrics.json: missing, so that nothing says how good")
