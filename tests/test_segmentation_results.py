"""What a segmentation model gives a user: masks, panoptic and semantic maps, and files for the official evaluations."""

import json
import logging
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torch.nn import functional as F

from dqdet.config import Config, DataConfig, DetrConfig, InferenceConfig, Mask2FormerConfig, MaskLossConfig
from dqdet.data import open_dataset
from dqdet.data.dataset import DetectionDataset
from dqdet.errors import DqdetError
from dqdet.formats import rle
from dqdet.formats.panoptic import read_ids, write_ids
from dqdet.formats.results import panoptic_result
from dqdet.inference import infer, masks
from dqdet.inference.windows import best_tracks, track
from dqdet.metrics.detection import DetectionMetric
from dqdet.metrics.panoptic import PanopticMetric
from dqdet.models.detector import Detector
from dqdet.nn.product_masks import ProductMasks
from dqdet.predict.predictor import Predictor, objects
from dqdet.predict.sources import predict
from dqdet.training.data_module import validation_loader
from dqdet.training.task_metrics import make_metric
from dqdet.types import PanopticMap, Predictions, VideoStream
from panoptic_files import evaluate_files
from test_image_files import save_turned

CATEGORIES = [
    {"id": 3, "name": "red", "isthing": 1},
    {"id": 5, "name": "blue", "isthing": 1},
    {"id": 300, "name": "dark", "isthing": 0},
]
NAMES = [category["name"] for category in CATEGORIES]
CATEGORY_IDS = [category["id"] for category in CATEGORIES]


class Colours(nn.Module):
    def forward(self, images: Tensor) -> list[Tensor]:
        return [F.avg_pool2d(images, 4, ceil_mode=True)]  # [B, 3, h, w]


class ColourSegmenter(Detector):
    """A query for red, one for blue and one for dark pixels: each is a linear function of the colour."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Colours()

    def forward_features(self, features: list[Tensor], padding: Tensor, targets=()) -> Predictions:
        (colours,) = features
        features = torch.cat([colours, torch.ones_like(colours[:, :1])], 1)  # [B, 4, h, w]
        embeddings = torch.tensor([[5, 0, -5, -10], [-5, 0, 5, -10], [-5, 0, -5, -10]]).float()
        logits = torch.eye(3, 4) * torch.tensor([[6.0], [4.0], [5.0]])
        return Predictions(
            logits.expand(1, len(colours), -1, -1),
            None,
            groups={"modulated": 3},
            masks=ProductMasks(embeddings.expand(1, len(colours), -1, -1), features),
        )


def predictor(task: str, batch: int = 2) -> Predictor:
    config = Config(
        preset="test",
        model=Mask2FormerConfig(),
        loss=MaskLossConfig(),
        data=DataConfig(task=task, val_resize=120, max_size=200),
        inference=InferenceConfig(overlap_threshold=0.5),
        classes=NAMES,
        category_ids=CATEGORY_IDS,
        stuff=["dark"] if task == "panoptic" else [],
    )
    return Predictor(ColourSegmenter(), config, device="cpu", batch=batch)


RECTANGLES = [  # of each image, in things of one colour each
    {"red": (30, 40, 90, 160), "blue": (200, 10, 280, 60)},
    {"blue": (12, 300, 80, 392)},
    {"red": (8, 8, 32, 40)},
]
SIZES = [(300, 200), (92, 400), (64, 48)]


@pytest.fixture
def images() -> list[Image.Image]:
    pictures = [Image.new("RGB", size, "black") for size in SIZES]
    for picture, rectangles in zip(pictures, RECTANGLES, strict=True):
        for colour, box in rectangles.items():
            picture.paste(colour, box)
    return pictures


@pytest.fixture
def truths() -> list[PanopticMap]:
    """Larger than what is in the pictures, so that the metrics are not 1; the numbers need all three channels."""
    maps = []
    for (width, height), rectangles in zip(SIZES, RECTANGLES, strict=True):
        ids = np.full((height, width), 70000)
        segments = [{"id": 70000, "category_id": 300, "iscrowd": 0}]
        for number, (name, (left, top, right, bottom)) in enumerate(rectangles.items(), 1):
            ids[max(0, top - 4) : bottom + 6, max(0, left - 6) : right] = number
            segments.append({"id": number, "category_id": CATEGORY_IDS[NAMES.index(name)], "iscrowd": 0})
        maps.append(PanopticMap(ids, segments))
    return maps


def instance_truth(truths: list[PanopticMap]) -> dict:
    annotations = []
    for image_id, truth in enumerate(truths, 1):
        for segment in truth.segments[1:]:
            mask = truth.ids == segment["id"]
            (box,) = sv.mask_to_xyxy(mask[None]).tolist()
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": segment["category_id"],
                    "segmentation": rle.encode(torch.from_numpy(mask)[None])[0],
                    "bbox": [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1],
                    "area": int(mask.sum()),
                    "iscrowd": 0,
                }
            )
    images = [{"id": i, "width": width, "height": height} for i, (width, height) in enumerate(SIZES, 1)]
    return {"images": images, "annotations": annotations, "categories": CATEGORIES[:2]}


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_detections_have_masks_inside_their_boxes(images, task):
    for found, rectangles in zip(predictor(task)(images, 0.6), RECTANGLES, strict=True):
        things = found[found.class_id < 2]
        assert things.data["class_name"].tolist() == list(rectangles)
        for box, mask, rectangle in zip(things.xyxy, things.mask, rectangles.values(), strict=True):
            np.testing.assert_allclose(box, rectangle, atol=4)
            np.testing.assert_array_equal(sv.mask_to_xyxy(mask[None])[0] + [0, 0, 1, 1], box)
        assert ("dark" in found.data["class_name"]) == (task == "instance")


def test_panoptic_maps_describe_their_segments(images):
    for panoptic, rectangles, (width, height) in zip(
        predictor("panoptic").panoptic(images), RECTANGLES, SIZES, strict=True
    ):
        assert panoptic.ids.shape == (height, width)
        segments = {segment["name"]: segment for segment in panoptic.segments}
        assert set(segments) == {*rectangles, "dark"}
        for name, segment in segments.items():
            assert segment["category_id"] == CATEGORY_IDS[NAMES.index(name)]
            assert segment["isthing"] == (name != "dark")
            assert segment["area"] == (panoptic.ids == segment["id"]).sum() > 0
            assert 0.8 < segment["score"] < 1
        for name, (left, top, right, bottom) in rectangles.items():
            assert (panoptic.ids[top + 4 : bottom - 4, left + 4 : right - 4] == segments[name]["id"]).all()


def test_semantic_maps_have_the_class_of_each_pixel(images):
    labels = predictor("panoptic").semantic(images[0])
    assert labels.shape == (200, 300)
    assert [NAMES[labels[y, x]] for x, y in ((60, 100), (240, 30), (150, 100))] == ["red", "blue", "dark"]


def test_semantic_maps_are_made_of_a_few_classes_at_a_time(images, monkeypatch):
    at_once = predictor("panoptic").semantic(images)
    # Two classes of the second image, one of the first.
    monkeypatch.setattr(masks, "SCORES_AT_ONCE", 300 * 200)
    for expected, found in zip(at_once, predictor("panoptic").semantic(images), strict=True):
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(found)) > 1


def test_one_image_and_batches_give_the_same(images):
    alone, together = predictor("panoptic", batch=1), predictor("panoptic", batch=3)
    for image, panoptic in zip(images, together.panoptic(images), strict=True):
        np.testing.assert_array_equal(alone.panoptic(image).ids, panoptic.ids)


def test_nothing_found(images):
    model = predictor("panoptic")
    model.config.inference.object_threshold = 1.0
    panoptic = model.panoptic(images[0])
    assert panoptic.segments == []
    assert panoptic.ids.shape == (200, 300)
    assert not panoptic.ids.any()
    found = predictor("instance")(images[0], 1.0)
    assert found.mask.shape == (0, 200, 300)


def test_other_models_have_no_maps(images):
    boxes = Predictor(nn.Identity(), Config(preset="test", model=DetrConfig(), classes=NAMES), device="cpu")
    with pytest.raises(DqdetError, match=r"data\.task=detection has no panoptic maps"):
        boxes.panoptic(images[0])
    with pytest.raises(DqdetError, match=r"data\.task=instance has no semantic maps"):
        predictor("instance").semantic(images)


def saved(images, folder):
    folder.mkdir()
    for number, image in enumerate(images, 1):
        image.save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("kind", [float, np.float32, torch.tensor, np.array])
def test_a_threshold_of_segments_is_a_number_of_any_kind(images, kind):
    model = predictor("panoptic")
    assert model.panoptic(images[0]).segments
    assert model.panoptic(images[0], threshold=kind(1.0)).segments == []


@pytest.mark.parametrize("threshold", [-0.1, 2, float("nan"), "much", [0.5], [0.5] * len(NAMES)])
def test_thresholds_of_segments_that_are_none_are_refused(images, threshold):
    with pytest.raises(DqdetError, match=r"^threshold=.*: no score in 0\.\.1$"):
        predictor("panoptic").panoptic(images[0], threshold=threshold)


def test_instance_results_evaluate_like_the_images_themselves(images, truths, tmp_path):
    model, truth = predictor("instance"), instance_truth(truths)
    predict(model, [saved(images, tmp_path / "in")], tmp_path / "out")
    read = COCO(str(tmp_path / "out" / "images.json")).loadRes(str(tmp_path / "out" / "results.json"))
    assert {entry["category_id"] for entry in read.dataset["annotations"]} == set(CATEGORY_IDS)
    entries = defaultdict(list)
    for entry in json.loads((tmp_path / "out" / "results.json").read_text()):
        assert set(entry) == {"image_id", "category_id", "segmentation", "score"}
        entries[entry["image_id"]].append(entry)
    from_file, direct = (DetectionMetric(truth, CATEGORY_IDS, "segm") for _ in range(2))
    for image_id in (1, 2, 3):
        from_file.add(image_id, entries[image_id])
    direct.update([1, 2, 3], [objects(found) for found in model.outcomes(images)])
    assert 0.3 < direct.compute()["AP"] < 1
    assert from_file.compute() == direct.compute()


def test_panoptic_results_evaluate_like_the_images_themselves(images, truths, tmp_path):
    model, out = predictor("panoptic"), tmp_path / "out"
    predict(model, [saved(images, tmp_path / "in")], out)
    assert sorted(file.name for file in out.iterdir()) == [
        *("1.png", "2.png", "3.png", "images.json", "panoptic", "panoptic.json", "results.json")
    ]
    (tmp_path / "truth").mkdir()
    annotations = []
    for image_id, truth in enumerate(truths, 1):
        write_ids(tmp_path / "truth" / f"{image_id}.png", truth.ids)
        annotations.append(panoptic_result(image_id, f"{image_id}.png", truth))
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": annotations, "categories": CATEGORIES}))
    direct = PanopticMetric(CATEGORIES)
    direct.update([1, 2, 3], truths, model.panoptic(images))
    assert 0.3 < direct.compute()["PQ"] < 1
    assert evaluate_files(tmp_path / "truth.json", out / "panoptic.json") == direct.compute()

    things = DetectionMetric(instance_truth(truths), CATEGORY_IDS, "segm")
    entries = defaultdict(list)
    for entry in json.loads((out / "results.json").read_text()):
        entries[entry["image_id"]].append(entry)
    for image_id in (1, 2, 3):
        things.add(image_id, entries[image_id])
    assert 0.3 < things.compute()["AP"] < 1
    assert set(COCO(str(out / "images.json")).cats[300].items()) == set(CATEGORIES[2].items())


def evaluated(model: Predictor, dataset: DetectionDataset) -> dict[str, float]:
    """What `dqdet eval` does, with one process."""
    metric = make_metric(model.config, dataset)
    for batch in validation_loader(model.config, dataset, rank=0, world=1):
        if isinstance(batch, VideoStream):
            (target,) = batch.targets
            parts = track(model.model, batch.frames, target.original_size, model.config)
            metric.update([target.image_id], [best_tracks(parts, model.config.inference.limit)])
            continue
        sizes = [target.size for target in batch.targets]
        original_sizes = [target.original_size for target in batch.targets]
        found = infer(model.model(batch.images, batch.padding), sizes, original_sizes, model.config)
        metric.update([target.image_id for target in batch.targets], found)
    return metric.compute()


def test_files_of_a_folder_have_the_numbers_of_eval(images, truths, tmp_path):
    """Both read the same pictures of a data set in COCO's panoptic format."""
    root, out, records = tmp_path / "coco", tmp_path / "out", []
    (root / "annotations" / "panoptic_val").mkdir(parents=True)
    saved(images, root / "val")
    for image_id, truth in enumerate(truths, 1):
        write_ids(root / "annotations" / "panoptic_val" / f"{image_id}.png", truth.ids)
        records.append(panoptic_result(image_id, f"{image_id}.png", truth))
    listed = [{"id": i, "file_name": f"{i}.png", "width": w, "height": h} for i, (w, h) in enumerate(SIZES, 1)]
    truth_file = root / "annotations" / "panoptic_val.json"
    truth_file.write_text(json.dumps({"images": listed, "annotations": records, "categories": CATEGORIES}))

    model = predictor("panoptic", batch=1)
    model.config.data.root, model.config.data.workers = str(root), 0
    dataset = open_dataset(model.config.data, "val")
    expected = evaluated(model, dataset)
    predict(model, [root / "val"], out)
    panoptic = evaluate_files(truth_file, out / "panoptic.json")
    assert 0.3 < panoptic["PQ"] < 1
    assert panoptic == {name: expected[name] for name in panoptic}
    things = DetectionMetric(dataset.ground_truth(), CATEGORY_IDS, "segm")
    entries = json.loads((out / "results.json").read_text())
    for image_id in (1, 2, 3):
        things.add(image_id, [entry for entry in entries if entry["image_id"] == image_id])
    assert 0.3 < expected["AP_things"] < 1
    assert things.compute()["AP"] == expected["AP_things"]


def squares(folder, orientations: bool) -> dict:
    """16 square pictures in COCO's format, each with a red and a blue rectangle; annotated as they are seen."""
    random = np.random.default_rng(0)
    (folder / "annotations").mkdir(parents=True)
    (folder / "val").mkdir()
    images, annotations = [], []
    for number in range(1, 17):
        picture = Image.new("RGB", (96, 96))
        for category_id, colour in ((3, "red"), (5, "blue")):
            left, top = random.integers(2, 40, 2).tolist()
            width, height = random.integers(12, 40, 2).tolist()
            picture.paste(colour, (left, top, left + width, top + height))
            corners = [left, top, left + width, top, left + width - 3, top + height, left, top + height]
            shape = {"bbox": [left, top, width, height], "area": width * height, "segmentation": [corners]}
            ids = {"id": len(annotations) + 1, "image_id": number, "category_id": category_id, "iscrowd": 0}
            annotations.append(ids | shape)
        save_turned(picture, folder / "val" / f"{number}.png", 1 + number % 8 if orientations else 1)
        images.append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 96})
    document = {"images": images, "annotations": annotations, "categories": CATEGORIES[:2]}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return document


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_are_stored_turned_have_the_numbers_of_others(tmp_path, request, workers):
    log = logging.FileHandler(tmp_path / "log")  # of the loader's processes, too
    logging.getLogger("dqdet").addHandler(log)
    request.addfinalizer(lambda: logging.getLogger("dqdet").removeHandler(log))
    model = predictor("instance", batch=1)
    model.config = model.config.model_copy(update={"classes": NAMES[:2], "category_ids": CATEGORY_IDS[:2]})
    model.config.inference.limit = 2
    numbers = []
    for turned in (False, True):
        root = tmp_path / str(turned)
        document = squares(root, turned)
        model.config.data.root, model.config.data.workers = str(root), workers
        numbers.append(evaluated(model, open_dataset(model.config.data, "val")))
        predict(model, [root / "val"], root / "out")
        official = DetectionMetric(document, CATEGORY_IDS[:2], "segm")
        entries = json.loads((root / "out" / "results.json").read_text())
        for image_id in range(1, 17):
            official.add(image_id, [entry for entry in entries if entry["image_id"] == image_id])
        numbers.append(official.compute())
    assert 0.3 < numbers[0]["AP"] < 1
    assert numbers == [numbers[0]] * 4
    (warning,) = (tmp_path / "log").read_text().splitlines()
    assert warning.startswith(f"{tmp_path}/True/annotations/instances_val.json: images such as ")


def test_maps_of_images_with_one_stem_are_two(images, tmp_path):
    (tmp_path / "in").mkdir()
    images[0].save(tmp_path / "in" / "a.jpg", quality=95)
    images[1].save(tmp_path / "in" / "a.png")
    predict(predictor("panoptic"), [tmp_path / "in"], tmp_path / "out")
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    shapes = [read_ids(tmp_path / "out" / "panoptic" / entry["file_name"]).shape for entry in document["annotations"]]
    assert shapes == [(200, 300), (400, 92)]


def test_pictures_show_panoptic_maps(images, tmp_path):
    predict(predictor("panoptic"), [saved(images[2:], tmp_path / "in")], tmp_path / "out")
    drawn = np.array(Image.open(tmp_path / "out" / "1.png").convert("RGB")).astype(int)  # ten times as large
    assert drawn.shape == (480, 640, 3)
    assert (drawn[450:470, 20:620].max(-1) > 40).mean() > 0.9  # the dark ground is coloured


def test_written_maps_are_read(tmp_path):
    ids = np.random.default_rng(0).integers(0, 2**24, (20, 30))
    write_ids(tmp_path / "map.png", ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "map.png"), ids)


@pytest.mark.slow
def test_the_memory_of_a_photograph_does_not_grow_with_its_masks(tmp_path):
    """20 masks more of 4.8 million pixels have 92 MiB, and as much again for each copy."""
    script = Path(__file__).with_name("mask_memory.py")
    peaks = []
    for count in (4, 24):
        command = [sys.executable, str(script), str(tmp_path / str(count)), "2400", "2000", str(count)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout))
        results = json.loads((tmp_path / str(count) / "out" / "results.json").read_text())
        assert len(results) == count
    assert peaks[1] - peaks[0] < 80
