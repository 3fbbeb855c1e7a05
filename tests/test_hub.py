"""Models on the Hugging Face hub; everything but the network itself."""

import re
import shlex
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from PIL import Image

import dqdet
from dqdet.config import parse_overrides, resolve
from dqdet.errors import DqdetError
from dqdet.models import create_model
from dqdet.runs import hub
from dqdet.runs.folder import load_config, load_folder, save_folder
from tiny import contents, tiny, tiny_family

NAME = "someone/balloons"


class Hub:
    """The hub as a folder; in the place of ``huggingface_hub.HfApi``."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.private: dict[str, bool] = {}
        self.failure: Exception | None = None

    def __call__(self) -> "Hub":
        return self

    def create_repo(self, name, private, exist_ok):
        self.fail(name)
        self.private.setdefault(name, private)
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.fail(repo_id)
        assert commit_message
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, name, allow_patterns):
        self.fail(name)
        if not (self.folder / name).is_dir():
            raise RepositoryNotFoundError("404 Client Error.\n\nRepository Not Found", response=response(404))
        copy = self.folder / "cache" / name
        copy.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in (self.folder / name).glob(pattern):
                shutil.copy(file, copy)
        return str(copy)

    def fail(self, name):
        validate_repo_id(name)
        if self.failure is not None:
            raise self.failure


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co"))


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Hub:
    fake = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "HfApi", fake)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with options that are not the preset's, and with places of this machine."""
    config = tiny(classes=["balloon", "größer"], category_ids=[1, 2], train__seed=3, data__root=str(tmp_path))
    config.init = str(tmp_path / "first")
    save_folder(tmp_path / "run", create_model(config), config, {"step": 7, "AP": 0.25, "AP50": 0.5, "AP/balloon": 0.2})
    return tmp_path / "run"


def test_what_is_published_can_be_loaded_by_name(fake, run):
    assert dqdet.load(run).push_to_hub(NAME, private=True) == f"https://huggingface.co/{NAME}"
    assert fake.private == {NAME: True}
    assert set(contents(fake.folder / NAME)) == {"README.md", "config.yaml", "metrics.json", "model.safetensors"}
    predictor = dqdet.load(NAME)
    assert predictor.metrics == dqdet.load(run).metrics
    expected = load_folder(run)[0].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in predictor.model.state_dict().items())
    assert predictor.push_to_hub(NAME) == f"https://huggingface.co/{NAME}"  # again, with the same name


def test_places_of_this_machine_are_not_published(fake, run, tmp_path):
    dqdet.load(run).push_to_hub(NAME)
    for file, content in contents(fake.folder / NAME).items():
        assert str(tmp_path).encode() not in content, file
    published = load_config(fake.folder / NAME)
    assert (published.data.root, published.init) == (None, "first")
    assert load_config(run).data.root == str(tmp_path)


def test_the_card_says_what_it_is(fake, run):
    dqdet.load(run).push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    metadata = ModelCard(text).data
    assert metadata.library_name == "dqdet"
    assert metadata.pipeline_tag == "object-detection"
    assert "deformable_detr" in metadata.tags
    assert "deformable_detr with test_resnet and 5 modulated queries, each a combination of 2 basic ones" in text
    assert "| AP | 0.250 |\n| AP50 | 0.500 |" in text
    assert "balloon, größer" in text
    assert "7 steps of 4 images, starting from `first`" in text


def test_the_command_in_the_card_makes_the_same_configuration(fake, run):
    dqdet.load(run).push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    _, _, preset, *options = shlex.split(re.search(r"^    (dqdet train .*) data\.root=\.\.\.$", text, re.M)[1])
    published = load_config(fake.folder / NAME)
    assert resolve(preset, parse_overrides(options)) == published.model_copy(update={"classes": [], "category_ids": []})


def test_the_command_in_the_card_has_values_of_any_kind():
    options = {"train.ema": None, "train.lr": 1e-5, "data.train": "the größer part", "data.resize": [480, 512]}
    options |= {"data.colour": True}
    config = resolve("rf_detr_nano_finetune", options)
    text = hub.model_card(NAME, config, {"step": 7})
    _, _, preset, *given = shlex.split(re.search(r"^    (dqdet train .*) data\.root=\.\.\.$", text, re.M)[1])
    assert resolve(preset, parse_overrides(given)) == config


def test_the_example_in_the_card_runs(fake, run, tmp_path, capsys):
    dqdet.load(run).push_to_hub(NAME)
    Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "picture.jpg")
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    example = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert len(example.splitlines()) == 5
    exec(example, {})
    assert "[]" in capsys.readouterr().out  # an untrained model finds nothing


@pytest.mark.parametrize(
    ("preset", "pipeline", "metrics", "rows"),
    [
        ("mask2former_r50_coco_instance", "image-segmentation", {"AP": 0.25}, "| AP | 0.250 |"),
        (
            "mask2former_r50_coco_panoptic",
            "image-segmentation",
            {"PQ": 0.5, "PQ/tree": 0.4, "mIoU": 0.625, "SQ": 0.75},
            "| PQ | 0.500 |\n| SQ | 0.750 |\n| mIoU | 0.625 |",
        ),
    ],
)
def test_cards_of_segmentation_models(fake, tmp_path, capsys, preset, pipeline, metrics, rows):
    config = tiny_family(preset, classes=["balloon", "tree"], category_ids=[1, 2], data__root="/data")
    if config.data.task == "panoptic":
        config.stuff = ["tree"]
    save_folder(tmp_path / "run", create_model(config), config, metrics | {"step": 7})
    dqdet.load(tmp_path / "run").push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.pipeline_tag == pipeline
    assert rows in text
    assert "PQ/tree" not in text
    Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "picture.jpg")
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], {})
    assert capsys.readouterr().out


def test_the_card_of_a_model_of_videos(fake, tmp_path):
    config = tiny_family("video_mask2former_r50", classes=["balloon"], data__clips__images="/data/coco")
    save_folder(tmp_path / "run", create_model(config), config, {"step": 7, "AP": 0.25, "AR1": 0.5})
    dqdet.load(tmp_path / "run").push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    assert ModelCard(text).data.pipeline_tag is None
    assert f"dqdet predict {NAME} video.mp4 --out" in text
    assert "| AP | 0.250 |\n| AR1 | 0.500 |" in text
    assert "/data/coco" not in text
    assert "predicted from the video" in text


def test_the_card_of_a_model_that_was_not_trained_here(fake, tmp_path):
    config = tiny(classes=["balloon"], queries__kind="static")
    config.init = "facebook/detr-resnet-50"
    save_folder(tmp_path / "run", create_model(config), config, {"step": 0})
    dqdet.load(tmp_path / "run").push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    assert "Converted from `facebook/detr-resnet-50`." in text
    assert "None measured." in text
    assert "5 static queries." in text


def test_the_card_of_an_upgraded_model_has_no_training(fake, tmp_path):
    config = tiny(classes=["balloon"], queries__kind="static")
    save_folder(tmp_path / "run", create_model(config), config, {"step": 500, "AP": 0.25})
    dqdet.upgrade(tmp_path / "run", tmp_path / "upgraded")
    dqdet.load(tmp_path / "upgraded").push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    assert "Converted from `run`." in text
    assert "500 steps" not in text
    assert "| AP | 0.250 |" in text


def test_the_card_of_the_newest_weights_claims_no_conversion(fake, run):
    state = {f"model.{name}": tensor for name, tensor in load_folder(run)[0].state_dict().items()}
    torch.save({"state_dict": state}, run / "last.ckpt")
    dqdet.load(run / "last.ckpt").push_to_hub(NAME)
    text = (fake.folder / NAME / "README.md").read_text(encoding="utf-8")
    assert "Starting from `first`; the steps of the training are not known." in text


def message(function, *arguments) -> str:
    with pytest.raises(DqdetError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "failure", [LocalEntryNotFoundError("no network\nat all"), OfflineModeIsEnabled("HF_HUB_OFFLINE is set")]
)
def test_without_network(fake, failure):
    fake.failure = failure
    assert message(dqdet.load, NAME) == (
        f"{NAME}: no such folder or file, and the Hugging Face hub cannot be reached to look there"
    )


def test_what_the_hub_refuses(fake, run):
    assert message(dqdet.load, "someone/nothing") == (
        "someone/nothing: no such folder or file, and no model of the Hugging Face hub (404 Client Error.)"
    )
    assert "cannot be published (Repo id must" in message(dqdet.load(run).push_to_hub, "a/b/c")
    for failure in (
        HfHubHTTPError("403 Forbidden\nmore", response=response(403)),
        httpx.ConnectError("no network"),
        OfflineModeIsEnabled("HF_HUB_OFFLINE is set"),
    ):
        fake.failure = failure
        reason = str(failure).splitlines()[0]
        assert f"cannot be published ({reason}); log in with" in message(dqdet.load(run).push_to_hub, NAME)


def test_the_hub_is_asked_for_names_only(fake, tmp_path):
    fake.failure = AssertionError("asked")
    for source in ("/nothing", "nothing", "runs/detr/best", "../detr", tmp_path / "x.pth"):
        assert f"{source}: no such folder or file; give a run, a checkpoint, or a name" in message(dqdet.load, source)


def test_a_model_of_the_hub_that_is_no_detector(fake):
    (fake.folder / "someone" / "text").mkdir(parents=True)
    (fake.folder / "someone" / "text" / "config.json").write_text('{"model_type": "bert"}')
    (fake.folder / "someone" / "text" / "model.safetensors").write_bytes(b"")
    assert message(dqdet.load, "someone/text").startswith("someone/text: model_type is 'bert'; supported are detr")
