"""The files of an evaluation say what its metrics say, to those who read them by the official formats."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dqdet
from dqdet.data import open_dataset
from dqdet.errors import DqdetError
from dqdet.formats.panoptic import read_ids, write_ids
from dqdet.formats.rle import encode
from dqdet.metrics.video import VideoMetric
from dqdet.runs.folder import NO_CATEGORY
from dqdet.training.recording import CLASSES, official_files, results_folder, write_metrics
from dqdet.training.task_metrics import make_metric
from dqdet.types import ImageDetections, PanopticMap, Segmentation, Track
from panoptic_files import evaluate_files
from test_tasks import objects, opened, panoptic_truth, track_truth
from tiny import TINY, contents


def imperfect(found: ImageDetections, seed: int) -> ImageDetections:
    """Some objects are of another class, and scores differ."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(found.scores), generator=generator).sort(descending=True).values
    labels = found.labels.clone()
    labels[::3] = found.labels.roll(1)[::3]
    return replace(found, scores=scores, labels=labels)


def recorded(config, dataset, folder, outcome, length=1):
    """The metrics of outcomes, whose files are written."""
    metric, files = make_metric(config, dataset), official_files(config, dataset, folder)
    for index, image_id in enumerate(dataset.image_ids):
        found = outcome(index, image_id)
        metric.update([image_id], [found])
        for file in files:
            file.add(image_id, found, length)
    for file in files:
        file.write(first=True)
    return metric.compute()


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_results_of_objects_measure_the_same_with_pycocotools(task, tmp_path):
    dataset, config = opened(task, shift=3, scenes={"size": 64, "val_images": 8})
    metrics = recorded(config, dataset, tmp_path, lambda index, _: imperfect(objects(dataset, config, index), index))
    assert set(contents(tmp_path)) == {"results.json"}
    truth = COCO()
    truth.dataset = {"info": {}} | dataset.ground_truth()
    truth.createIndex()
    evaluation = COCOeval(
        truth, truth.loadRes(str(tmp_path / "results.json")), {"detection": "bbox", "instance": "segm"}[task]
    )
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert 0.05 < metrics["AP"] < 0.95
    assert evaluation.stats[:3].tolist() == pytest.approx([metrics["AP"], metrics["AP50"], metrics["AP75"]], abs=1e-9)


def test_panoptic_files_measure_the_same(tmp_path):
    dataset, config = opened("panoptic", shift=2)

    def outcome(index: int, _: int) -> Segmentation:
        truth = panoptic_truth(dataset, config, index)
        segments = [dict(segment) for segment in truth.panoptic.segments]
        segments[0]["category_id"] = segments[-1]["category_id"]  # a mistake
        return replace(truth, panoptic=PanopticMap(truth.panoptic.ids, segments))

    metrics = recorded(config, dataset, tmp_path, outcome)
    assert 0.3 < metrics["PQ"] < 1
    assert {"results.json", "panoptic.json"} == set(contents(tmp_path))
    annotations = []
    for index, image_id in enumerate(dataset.image_ids):
        truth = dataset.panoptic(index)
        (tmp_path / "truth").mkdir(exist_ok=True)
        write_ids(tmp_path / "truth" / f"{image_id}.png", truth.ids)
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": truth.segments})
    document = {"annotations": annotations, "categories": dataset.panoptic_categories}
    (tmp_path / "truth.json").write_text(json.dumps(document))
    expected = evaluate_files(tmp_path / "truth.json", tmp_path / "panoptic.json")
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    entries = json.loads((tmp_path / "results.json").read_text())
    things = {category["id"] for category in dataset.panoptic_categories if category["isthing"]}
    assert entries
    assert {entry["category_id"] for entry in entries} <= things


def test_tracks_measure_the_same(tmp_path):
    dataset, config = opened("video", shift=1)

    def outcome(_: int, video_id: int) -> list[Track]:
        tracks = track_truth(dataset, config, video_id)
        return [replace(one, score=1 / number, label=tracks[0].label) for number, one in enumerate(tracks, 1)]

    metrics = recorded(config, dataset, tmp_path, outcome, length=3)
    entries = json.loads((tmp_path / "results.json").read_text())
    assert {len(entry["segmentations"]) for entry in entries} == {3}
    again = VideoMetric(dataset.ground_truth(), config.category_ids)
    for video_id in dataset.image_ids:
        own = [entry for entry in entries if entry["video_id"] == video_id]
        tracks = [
            Track(
                config.category_ids.index(entry["category_id"]),
                entry["score"],
                {frame: mask for frame, mask in enumerate(entry["segmentations"]) if mask is not None},
            )
            for entry in own
        ]
        again.update([video_id], [tracks])
    assert 0 < metrics["AP"] < 1
    assert again.compute() == pytest.approx(metrics)


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_results_of_cityscapes_measure_the_same(tmp_path, task):
    ids = np.full((64, 128), 7, dtype=np.uint16)  # road
    ids[10:40, 10:60], ids[20:60, 70:110], ids[2:30, 62:68] = 24000, 26000, 24001  # a person, a car, a person
    for folder, ending, image in (
        ("leftImg8bit", "leftImg8bit", np.zeros((64, 128, 3), dtype=np.uint8)),
        ("gtFine", "gtFine_instanceIds", ids),
    ):
        (tmp_path / folder / "val" / "ulm").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / folder / "val" / "ulm" / f"ulm_000000_000019_{ending}.png")
    dataset, config = opened(task, 3, kind="cityscapes", root=str(tmp_path))

    def outcome(index: int, _: int) -> ImageDetections | Segmentation:
        found = objects(dataset, config, index)
        moved = replace(found.masks, rles=encode(torch.from_numpy(found.masks.decoded()).roll(3, dims=2)))
        found = replace(found, scores=torch.tensor([0.9, 0.8, 0.7]), masks=moved)
        return found if task == "instance" else replace(panoptic_truth(dataset, config, index), instances=found)

    out = tmp_path / "out"
    out.mkdir()
    metrics = recorded(config, dataset, out, outcome)
    (file,) = (out / "instances").glob("ulm_000000_000019*.txt")  # as the official evaluation looks for it
    scores, labels, masks = [], [], []
    for line in file.read_text().splitlines():
        name, label, score = line.split(" ")
        scores.append(float(score))
        labels.append(config.category_ids.index(int(label)))
        with Image.open(file.parent / name) as mask:
            masks.append(np.asarray(mask) != 0)
    masks = torch.from_numpy(np.stack(masks))
    read = ImageDetections(torch.tensor(scores), torch.tensor(labels), torch.zeros(3, 4), masks)
    again = make_metric(config, dataset)
    again.update([1], [read if task == "instance" else replace(panoptic_truth(dataset, config, 0), instances=read)])
    assert again.compute() == pytest.approx(metrics)
    assert 0 < metrics["AP" if task == "instance" else "AP_things"] < 1
    assert (out / "panoptic.json").exists() == (task == "panoptic")
    if task == "panoptic":
        (entry,) = json.loads((out / "panoptic.json").read_text())["annotations"]
        assert entry["image_id"] == "ulm_000000_000019"
        assert (read_ids(out / "panoptic" / entry["file_name"]) == dataset.panoptic(0).ids).all()


def test_classes_that_the_data_has_not_are_left_out(tmp_path):
    dataset, config = opened("panoptic")
    found = panoptic_truth(dataset, config, 0)
    things = [label for label, name in enumerate(config.classes) if name not in config.stuff]
    lost = int(found.instances.labels[0])
    config.category_ids[lost] = NO_CATEGORY
    segments = [dict(segment) for segment in found.panoptic.segments]
    (first, *_), rest = [s for s in segments if s["category_id"] == dataset.category_ids[lost]], segments
    first["category_id"] = NO_CATEGORY
    image_id = dataset.image_ids[0]
    for file in official_files(config, dataset, tmp_path):
        file.add(image_id, replace(found, panoptic=PanopticMap(found.panoptic.ids, rest)), 1)
        file.write(first=True)
    (entry,) = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    ids = read_ids(tmp_path / "panoptic" / entry["file_name"])
    assert first["id"] not in {segment["id"] for segment in entry["segments_info"]}
    assert (ids[found.panoptic.ids == first["id"]] == 0).all()
    assert lost in things
    entries = json.loads((tmp_path / "results.json").read_text())
    assert len(entries) == int((found.instances.labels != lost).sum())
    assert all(entry["category_id"] != NO_CATEGORY for entry in entries)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return dqdet.train("scenes_tiny", out=tmp_path_factory.mktemp("trained") / "run", **TINY | {"train.steps": 2})


def test_an_evaluation_leaves_metrics_classes_and_predictions(trained, tmp_path):
    metrics = dqdet.evaluate(trained)
    out = trained / "eval"
    assert set(contents(out)) == {"metrics.json", "classes.csv", "results.json"}
    assert json.loads((out / "metrics.json").read_text()) == metrics
    with (out / "classes.csv").open(newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    classes = dqdet.load(trained).config.classes
    assert sorted(rows) == sorted(classes)
    for name in classes:
        assert list(rows[name]) == ["class", "AP", "AP50", "AP75", "AR100"]
        for metric in ("AP", "AP50"):
            value = metrics[f"{metric}/{name}"]
            assert rows[name][metric] == ("" if value == -1 else str(value))
    dataset = open_dataset(dqdet.load(trained).config.data, "val")
    results = json.loads((out / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == set(dataset.image_ids)

    dqdet.evaluate(trained, inference={"limit": 2})  # takes its place
    assert len(json.loads((out / "results.json").read_text())) == 2 * len(dataset)
    dqdet.evaluate(trained, tmp_path / "new" / "place", data={"scenes": {"val_images": 2}})
    results = json.loads((tmp_path / "new" / "place" / "results.json").read_text())
    assert len({entry["image_id"] for entry in results}) == 2
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["place"]


def test_other_files_are_kept(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DqdetError, match="has files that are of no evaluation"):
        dqdet.evaluate(trained, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    with pytest.raises(DqdetError, match=r"notes\.txt.*cannot be written"):
        dqdet.evaluate(trained, tmp_path / "notes.txt" / "below")


def test_an_interrupted_evaluation_leaves_the_one_before(tmp_path):
    out = tmp_path / "eval"
    with results_folder(out, first=True) as folder:
        write_metrics(folder, {"AP": 0.5, "AP/dog": -1.0})
    before = contents(out)
    assert before[CLASSES] == b"class,AP\r\ndog,\r\n"

    def interrupted() -> None:
        with results_folder(out, first=True) as folder:
            (folder / "results.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["eval"]
