"""The Hugging Face hub: models are fetched from it by name, and published on it as run folders with a model card."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from torch import nn

from dqdet.config import Config, as_words, changes
from dqdet.config.section import Task
from dqdet.errors import DqdetError
from dqdet.metrics.scores import shown
from dqdet.runs.folder import save_folder

FILES = ["*.json", "*.yaml", "*.safetensors"]  # of a model; none of them executes anything

# What the card of a model reports first, of each task; and its task by the names of the hub, which has none for tracks.
AVERAGE_PRECISION = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
REPORTED: dict[Task, tuple[str, ...]] = {
    "detection": AVERAGE_PRECISION,
    "instance": AVERAGE_PRECISION,
    "panoptic": ("PQ", "PQ_things", "PQ_stuff", "SQ", "RQ", "AP_things", "mIoU"),
    "video": ("AP", "AP50", "AP75", "AR1", "AR10"),
}
PIPELINES: dict[Task, str] = {
    "detection": "object-detection",
    "instance": "image-segmentation",
    "panoptic": "image-segmentation",
}


def download(name: str) -> Path:
    """The folder of the model that has this name (``user/name``) on the hub, fetched or from the local cache.

    Raises:
        DqdetError: there is no such model, or the hub cannot be reached.
    """
    try:
        return Path(HfApi().snapshot_download(name, allow_patterns=FILES))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise DqdetError(
            f"{name}: no such folder or file, and the Hugging Face hub cannot be reached to look there"
        ) from error
    except (HfHubHTTPError, HFValidationError, HTTPError) as error:
        reason = str(error).splitlines()[0]
        raise DqdetError(f"{name}: no such folder or file, and no model of the Hugging Face hub ({reason})") from error


def publish(name: str, model: nn.Module, config: Config, metrics: Mapping[str, float], private: bool) -> str:
    """Write a model with its card to the repository ``user/name`` of the hub, which is made if there is none.

    Returns:
        its address.

    Raises:
        DqdetError: the hub cannot be reached or refuses it.
    """
    config = without_places(config)
    with tempfile.TemporaryDirectory() as folder:
        save_folder(Path(folder), model, config, metrics)
        (Path(folder) / "README.md").write_text(model_card(name, config, metrics), encoding="utf-8")
        try:
            api = HfApi()
            address = api.create_repo(name, private=private, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"{config.preset} by dqdet")
        except (HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled) as error:
            reason = str(error).splitlines()[0]
            raise DqdetError(
                f"{name}: cannot be published ({reason}); log in with `hf auth login` and a token that may write"
            ) from error
    return str(address)


def without_places(config: Config) -> Config:
    """A configuration that does not tell where files lie on this machine."""
    config = config.model_copy(deep=True)
    config.data.root = None
    config.data.clips.images = None
    config.model.backbone.weights = None
    if config.init is not None and Path(config.init).is_absolute():
        config.init = Path(config.init).name
    return config


USE_ON_IMAGES = """```python
import dqdet

predictor = dqdet.load("{name}")
found = predictor("picture.jpg", threshold=0.5)
print(found.xyxy, found.confidence, found["class_name"])
```"""
USES: dict[Task, str] = {
    "detection": USE_ON_IMAGES,
    "instance": USE_ON_IMAGES.replace("found.xyxy", "found.mask"),
    "panoptic": """```python
import dqdet

predictor = dqdet.load("{name}")
panoptic = predictor.panoptic("picture.jpg")
print(panoptic.ids.shape, panoptic.segments)
```""",
    "video": """```
dqdet predict {name} video.mp4 --out tracks
```""",
}

CARD = """---
{metadata}
---

# {name}

{description}

{use}

## Metrics

{metrics}

## Training

{training}

## Classes

{classes}
"""


def model_card(name: str, config: Config, metrics: Mapping[str, float]) -> str:
    """What the model is, how to use it, what was measured and how it was trained: Markdown, with the hub's metadata."""
    task = config.data.task
    tags = ["dqdet", config.model.family, "pytorch"]
    return CARD.format(
        metadata=ModelCardData(library_name="dqdet", pipeline_tag=PIPELINES.get(task), tags=tags).to_yaml(),
        name=name,
        description=_description(config),
        use=USES[task].format(name=name),
        metrics=_table(metrics, REPORTED[task]),
        training=_training(config, metrics),
        classes=", ".join(config.classes),
    )


def _description(config: Config) -> str:
    kind, count, ratio = config.queries.kind, config.queries.count, config.queries.ratio
    seen = "video" if config.data.task == "video" else "image"
    origin = "learned coefficients" if config.queries.context == "none" else f"coefficients predicted from the {seen}"
    hulls = {"modulated": f"{ratio} basic ones", "shared": f"{config.queries.patterns} patterns"}
    combined = f", each a combination of {hulls[kind]} with {origin}" if kind in hulls else ""
    return f"{config.model.family} with {config.model.backbone.name} and {count} {kind} queries{combined}."


def _table(metrics: Mapping[str, float], reported: Sequence[str]) -> str:
    measured = [metric for metric in reported if metric in metrics]
    if not measured:
        return "None measured."
    rows = [
        "| validation split | |",
        "| --- | --- |",
        *(f"| {metric} | {shown(metrics[metric])} |" for metric in measured),
    ]
    return "\n".join(rows)


def _training(config: Config, metrics: Mapping[str, float]) -> str:
    start = f"`{config.init}`" if config.init else "ImageNet" if config.model.backbone.pretrained else "random weights"
    steps = metrics.get("step")
    if steps == 0:
        return f"Converted from {start}."
    if steps is None:
        return f"Starting from {start}; the steps of the training are not known."
    command = shlex.join(["dqdet", "train", config.preset, *as_words(changes(config))])
    return f"{steps} steps of {config.train.batch} images, starting from {start}:\n\n    {command} data.root=..."
