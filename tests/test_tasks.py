"""What a perfect model would find scores 1 in every task, and results on disk are what was put there."""

import errno
import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from typer.testing import CliRunner

import dqdet
from dqdet import cli
from dqdet.config import Config
from dqdet.data import open_dataset
from dqdet.errors import DqdetError
from dqdet.formats.results import StoredResults
from dqdet.formats.rle import compressed
from dqdet.inference.masks import Segmentation
from dqdet.metrics.panoptic import PanopticMap
from dqdet.training.task_metrics import make_metric
from dqdet.types import ClipTracks, ImageDetections, Track
from whole_tracks import as_tracks, decode_frames

FAMILIES = {"detection": "detr", "instance": "mask2former", "panoptic": "mask2former", "video": "video_mask2former"}


def opened(task: str, shift: int = 0, **data):
    """A validation split, and the configuration of a model with its classes in an order of its own."""
    config = Config.model_validate(
        {
            "preset": "",
            "model": {"family": FAMILIES[task]},
            "loss": {"kind": "boxes" if task == "detection" else "masks"},
            "data": {"kind": "scenes", "task": task, "scenes": {"size": 64, "val_images": 3, "frames": 3}} | data,
        }
    )
    dataset = open_dataset(config.data, "val")
    order = np.roll(np.arange(len(dataset.classes)), shift)
    config.classes = [dataset.classes[label] for label in order]
    config.category_ids = [dataset.category_ids[label] for label in order]
    config.stuff = list(dataset.stuff)
    return dataset, config


def objects(dataset, config, index: int) -> ImageDetections:
    """The things of an image, as if they had been found."""
    sample = dataset.read(index)
    labels = torch.tensor([config.classes.index(dataset.classes[label]) for label in sample["labels"].tolist()])
    things = torch.tensor([config.classes[label] not in config.stuff for label in labels.tolist()])
    masks = compressed(sample["masks"][things].bool()) if "masks" in sample else None
    return ImageDetections(torch.ones(int(things.sum())), labels[things], sample["boxes"][things].float(), masks)


def panoptic_truth(dataset, config, index: int) -> Segmentation:
    truth = dataset.panoptic(index)
    semantic = np.zeros_like(truth.ids, dtype=np.int64)
    for segment in truth.segments:
        semantic[truth.ids == segment["id"]] = config.category_ids.index(segment["category_id"])
    return Segmentation(objects(dataset, config, index), truth, lambda: semantic)


def track_truth(dataset, config, video_id: int) -> list[Track]:
    truth = dataset.ground_truth()
    video = next(video for video in truth["videos"] if video["id"] == video_id)
    tracks = [track for track in truth["annotations"] if track["video_id"] == video_id]
    masks = [decode_frames(track["segmentations"], video["height"], video["width"]) for track in tracks]
    labels = torch.tensor([config.category_ids.index(track["category_id"]) for track in tracks])
    return as_tracks(ClipTracks(torch.ones(len(tracks)), labels, torch.from_numpy(np.stack(masks))))


def measured(metric, dataset, outcome) -> dict[str, float]:
    for index, image_id in enumerate(dataset.image_ids):
        metric.update([image_id], [outcome(index, image_id)])
    return metric.compute()


@pytest.mark.parametrize("shift", [0, 5])
@pytest.mark.parametrize("task", ["detection", "instance"])
def test_all_objects_found(task, shift):
    dataset, config = opened(task, shift)
    metric = make_metric(config, dataset)
    metrics = measured(metric, dataset, lambda index, _: objects(dataset, config, index))
    assert metrics[metric.best] == metrics["AP75"] == 1
    assert {metrics[f"AP/{name}"] for name in dataset.classes} == {1, -1}


def test_instances_are_compared_by_their_masks():
    dataset, config = opened("instance")
    metric = make_metric(config, dataset)

    def in_boxes_of_nothing(index, _):
        found = objects(dataset, config, index)
        return replace(found, boxes=torch.zeros_like(found.boxes))

    assert measured(metric, dataset, in_boxes_of_nothing)["AP"] == 1
    metric.reset()
    assert measured(metric, dataset, lambda index, _: without_masks(objects(dataset, config, index)))["AP"] == 0


def without_masks(found: ImageDetections) -> ImageDetections:
    return replace(found, masks=compressed(torch.zeros(found.masks.decoded().shape, dtype=torch.bool)))


@pytest.mark.parametrize("shift", [0, 5])
def test_panoptic_maps_as_they_are(shift):
    dataset, config = opened("panoptic", shift)
    metric = make_metric(config, dataset)
    metrics = measured(metric, dataset, lambda index, _: panoptic_truth(dataset, config, index))
    assert metric.best == "PQ"
    for name in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "AP_things", "AP50_things", "mIoU"):
        assert metrics[name] == pytest.approx(1), name
    names = {name.partition("/")[2] for name in metrics if name.startswith("IoU/")}
    assert names == set(dataset.classes)
    assert {name.partition("/")[2] for name in metrics if name.startswith("AP/")} == names - set(dataset.stuff)


def test_each_part_of_a_panoptic_result_has_its_own_metric():
    dataset, config = opened("panoptic")
    metric = make_metric(config, dataset)
    first, *_ = dataset.image_ids
    truth = panoptic_truth(dataset, config, 0)
    void = PanopticMap(np.zeros_like(truth.panoptic.ids), [])
    for part, wrong, lost in (
        ("panoptic", void, "PQ"),
        ("label_map", lambda: np.full_like(truth.semantic, -1), "mIoU"),
        ("instances", without_masks(truth.instances), "AP_things"),
    ):
        metric.reset()
        metric.update([first], [replace(truth, **{part: wrong})])
        metrics = metric.compute()
        assert {name: metrics[name] for name in ("PQ", "mIoU", "AP_things")} == pytest.approx(
            {"PQ": 1, "mIoU": 1, "AP_things": 1} | {lost: 0}
        )


@pytest.mark.parametrize("shift", [0, 5])
def test_all_tracks_found(shift):
    dataset, config = opened("video", shift)
    metric = make_metric(config, dataset)
    metrics = measured(metric, dataset, lambda _, video_id: track_truth(dataset, config, video_id))
    assert metrics[metric.best] == 1


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_cityscapes_has_its_own_definition(tmp_path, task, shift):
    ids = np.full((64, 128), 7, dtype=np.uint16)  # road
    ids[:, 64:] = 23  # sky
    ids[10:40, 10:60], ids[20:60, 70:110] = 24000, 26000  # a person and a car
    ids[50:55, 10:15] = 24001  # too small to be a target
    for folder, ending, image in (
        ("leftImg8bit", "leftImg8bit", np.zeros((64, 128, 3), dtype=np.uint8)),
        ("gtFine", "gtFine_instanceIds", ids),
    ):
        (tmp_path / folder / "val" / "ulm").mkdir(parents=True)
        PIL.Image.fromarray(image).save(tmp_path / folder / "val" / "ulm" / f"ulm_000000_000019_{ending}.png")
    dataset, config = opened(task, shift, kind="cityscapes", root=str(tmp_path))
    metric = make_metric(config, dataset)

    def found(index, _):
        if task == "instance":
            return objects(dataset, config, index)
        return panoptic_truth(dataset, config, index)

    metrics = measured(metric, dataset, found)
    assert metrics[{"instance": "AP", "panoptic": "AP_things"}[task]] == 1
    assert metrics["AP/person"] == metrics["AP/car"] == 1
    assert metrics["AP/bus"] == -1
    assert "AP/road" not in metrics


def test_stored_results_are_those_that_were_put_there_last():
    stored = StoredResults()
    entries = {
        number: [{"image_id": number, "score": 1 / 3, "segmentation": {"size": [2, 3], "counts": "`0é" * number}}]
        for number in range(50)
    }
    for number in [*range(50), *range(0, 50, 3)]:
        stored[number] = [] if number == 7 else entries[number]
    stored[7] = entries[7]
    assert dict(stored) == entries
    assert len(stored) == 50


def test_a_full_disk_is_said_in_a_line(monkeypatch):
    class Full(io.BytesIO):
        def write(self, packed):
            raise OSError(errno.ENOSPC, "No space left on device")

    stored = StoredResults()
    monkeypatch.setattr(stored, "file", Full())
    with pytest.raises(DqdetError, match=r"No space left on device.*TMPDIR"):
        stored[1] = [{}]
    assert 1 not in stored


@pytest.mark.parametrize("task", ["instance", "panoptic", "video"])
def test_a_training_ends_with_the_metrics_of_its_task(task, tmp_path):
    """What the validation of a training measured, ``evaluate`` measures again."""
    preset = {"video": "scenes_tiny_video"}.get(task, "scenes_tiny_panoptic")
    run = dqdet.train(
        preset,
        out=tmp_path / "run",
        **{
            "data.task": task,
            "model.hidden": 32,
            "model.heads": 2,
            "model.decoder_layers": 1,
            "queries.count": 8,
            "queries.ratio": 2,
            "loss.points": 64,
            "data.scenes": {"size": 64, "train_images": 4, "val_images": 3, "frames": 3},
            "data.resize": [64],
            "data.val_resize": 64,
            "data.workers": 0,
            "train.batch": 2,
            "train.epochs": 1,
            "inference.object_threshold": 0.0,
            "inference.overlap_threshold": 0.0,
        },
    )
    model = dqdet.load(run)
    metrics = dict(model.metrics)
    assert metrics.pop("step") == 2
    assert dqdet.evaluate(run) == pytest.approx(metrics)
    assert bool(model.config.stuff) == (task == "panoptic")

    shown = CliRunner().invoke(cli.app, ["eval", str(run)]).stdout
    for name in metrics:
        metric, _, label = name.partition("/")
        assert metric in shown
        assert label in shown
