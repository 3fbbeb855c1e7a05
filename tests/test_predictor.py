"""A predictor must put what the model finds where it is in the picture, whatever form the picture has."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn

from dqdet.config import Config, DataConfig, DetrConfig, LossConfig, QueriesConfig
from dqdet.errors import DqdetError
from dqdet.formats.image_files import read_image
from dqdet.metrics.detection import DetectionMetric
from dqdet.predict.images import image_ids
from dqdet.predict.predictor import Predictor, objects
from dqdet.predict.sources import predict
from dqdet.types import Predictions

CLASSES = ["red", "blue"]


class ColourFinder(nn.Module):
    """Query 0 boxes the red pixels, query 1 the blue ones; absent colours score near 0. Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.batches: list[int] = []

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.batches.append(len(images))
        logits = torch.full((1, len(images), 2, 2), -9.0)
        boxes = torch.full((1, len(images), 2, 4), 0.5)
        for b, (image, padded) in enumerate(zip(images, padding, strict=True)):
            assert not image[:, padded].any()
            valid = torch.tensor([(~padded).any(0).sum(), (~padded).any(1).sum()])  # width, height
            for query, channel in enumerate((0, 2)):
                found = ((image[channel] > 180) & (image[1] < 115)).nonzero().flip(1)  # [pixels, 2] x, y
                if len(found):
                    low, high = found.min(0).values / valid, (found.max(0).values + 1) / valid
                    boxes[0, b, query] = torch.cat([(low + high) / 2, high - low])
                    logits[0, b, query, query] = 3.0 - query
        coefficients = (images / 255).mean((2, 3))[:, None].softmax(-1)  # [B, 1, 3]
        return Predictions(logits, boxes, groups={"modulated": 2}, coefficients=coefficients)


def config(**options) -> Config:
    return Config(
        preset="test",
        model=DetrConfig(),
        loss=LossConfig(classification="focal"),
        data=DataConfig(val_resize=120, max_size=200),
        classes=CLASSES,
        **options,
    )


def painted(width: int, height: int, **colours: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", (width, height), "black")
    for colour, box in colours.items():
        image.paste(colour, box)
    return image


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(ColourFinder().train(), config(), device="cpu", batch=2)


@pytest.fixture
def images() -> list[Image.Image]:
    return [
        painted(300, 200, red=(30, 40, 90, 160), blue=(200, 10, 280, 60)),
        painted(90, 400, blue=(10, 300, 80, 390)),
        painted(64, 48, red=(8, 8, 32, 40)),
    ]


def assert_found(found: sv.Detections, names: list[str], boxes: list[tuple], pixels: float) -> None:
    assert found.data["class_name"].tolist() == names
    assert [CLASSES[label] for label in found.class_id] == names
    np.testing.assert_allclose(found.xyxy, np.array(boxes).reshape(-1, 4), atol=pixels)


def test_boxes_are_in_the_pixels_of_each_image(predictor, images):
    wide, tall, small = predictor(images)
    # A pixel of the network's input is up to 300 / 180 pixels of these images; edges are blurred by resizing.
    assert_found(wide, ["red", "blue"], [(30, 40, 90, 160), (200, 10, 280, 60)], pixels=2)
    assert_found(tall, ["blue"], [(10, 300, 80, 390)], pixels=3)
    assert_found(small, ["red"], [(8, 8, 32, 40)], pixels=1)
    assert wide.confidence == pytest.approx(torch.tensor([3.0, 2.0]).sigmoid().numpy())
    assert predictor.model.batches == [2, 1]


def test_all_forms_of_an_image_give_the_same(predictor, images, tmp_path):
    file = tmp_path / "image.png"
    images[0].save(file)
    expected = predictor(images[0])
    assert len(expected) == 2
    transparent = images[0].convert("RGBA")
    for form in (file, str(file), np.array(images[0]), transparent):
        found = predictor(form)
        np.testing.assert_array_equal(found.xyxy, expected.xyxy)
        np.testing.assert_array_equal(found.confidence, expected.confidence)
    assert [len(found) for found in predictor((file, np.array(images[1])))] == [2, 1]


def test_threshold(predictor, images):
    low, high = torch.tensor([2.0, 3.0]).sigmoid().tolist()
    assert len(predictor(images[0], threshold=(low + high) / 2)) == 1
    assert len(predictor(images[0], threshold=0.0)) == 4  # two queries times two classes
    nothing = predictor(images[0], threshold=0.99)
    assert len(nothing) == 0
    assert nothing.xyxy.shape == (0, 4)
    assert nothing.data["class_name"].tolist() == []


def test_no_images(predictor):
    assert predictor([]) == []


def test_files_are_turned_upright(predictor, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: to be turned clockwise by 90 degrees
    images[0].transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    expected = predictor(images[0]).xyxy
    np.testing.assert_array_equal(predictor(tmp_path / "phone.png").xyxy, expected)
    with Image.open(tmp_path / "phone.png") as image:  # PIL turns nothing by itself
        np.testing.assert_array_equal(predictor(image).xyxy, expected)
        np.testing.assert_array_equal(predictor(image.copy()).xyxy, expected)


def test_coefficients(predictor, images):
    coefficients = predictor.coefficients(images)
    assert coefficients.shape == (3, 1, 3)
    torch.testing.assert_close(coefficients.sum(-1), torch.ones(3, 1))
    assert not torch.allclose(coefficients[0], coefficients[1])


METHODS = {
    "call": lambda predictor, images: [found.xyxy for found in predictor(images)],
    "outcomes": lambda predictor, images: [found.boxes for found in predictor.outcomes(images)],
    "predictions": lambda predictor, images: [boxes for p, *_ in predictor.predictions(images) for boxes in p.boxes[0]],
    "coefficients": lambda predictor, images: list(predictor.coefficients(images)),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_several_images_in_any_iterable(predictor, images, method):
    found = METHODS[method]
    expected = found(predictor, images)
    assert len(expected) == 3
    predictor.model.batches.clear()
    for several in (tuple(images), iter(images), (image for image in images)):
        same = [np.array_equal(*pair) for pair in zip(found(predictor, several), expected, strict=True)]
        assert all(same)
    assert predictor.model.batches == [2, 1] * 3


@pytest.mark.parametrize("form", ["path", "PIL image", "array", "tensor", "bytes", "file object"])
def test_every_method_takes_one_image(predictor, images, tmp_path, form):
    file = tmp_path / "image.png"
    images[0].save(file)
    array = np.array(images[0])
    with file.open("rb") as opened:
        forms = {"path": str(file), "PIL image": images[0], "array": array, "bytes": file.read_bytes()}
        image = {**forms, "tensor": torch.from_numpy(array).permute(2, 0, 1), "file object": opened}[form]
        used = []
        for use in (predictor.outcomes, predictor.predictions):
            opened.seek(0)
            used.append(list(use(image)))
        opened.seek(0)
        coefficients = predictor.coefficients(image)
    (outcome,), ((predictions, sizes, original_sizes),) = used
    assert np.array_equal(outcome.boxes, next(predictor.outcomes(images[:1])).boxes)
    assert torch.equal(predictions.boxes, next(predictor.predictions(images[:1]))[0].boxes)
    assert (sizes, original_sizes) == ([(120, 180)], [(200, 300)])
    assert coefficients.shape == (1, 3)
    assert torch.equal(coefficients, predictor.coefficients(images[:1])[0])


def test_static_queries_have_no_coefficients(images):
    class Static(ColourFinder):
        def forward(self, images: Tensor, padding: Tensor) -> Predictions:
            return Predictions(torch.zeros(1, len(images), 1, 2), torch.zeros(1, len(images), 1, 4), {"static": 1})

    predictor = Predictor(Static(), config(queries=QueriesConfig(kind="static")), device="cpu")
    with pytest.raises(DqdetError, match=r"queries\.kind=static has no coefficients"):
        predictor.coefficients(images)


def truncated(file: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:1500])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tiff"])
def test_truncated_file_is_named(tmp_path, suffix):
    file = tmp_path / f"broken{suffix}"
    truncated(file)
    with pytest.raises(DqdetError, match=rf"broken\{suffix}: cannot be read as an image"):
        read_image(file)


def test_file_that_is_no_image_is_named(predictor, tmp_path):
    (tmp_path / "notes.jpg").write_text("not an image")
    with pytest.raises(DqdetError, match=r"notes\.jpg: cannot be read as an image"):
        predictor(tmp_path / "notes.jpg")
    with pytest.raises(DqdetError, match=r"absent\.jpg: no such file"):
        predictor(str(tmp_path / "absent.jpg"))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
)
def test_other_arrays_are_refused(predictor, array):
    with pytest.raises(DqdetError, match=r"give one of shape \[H, W, 3\] and type uint8"):
        predictor(array)


@pytest.mark.parametrize("form", [None, 3, [None], [[1, 2]], {}, {"street.jpg": 1}])
def test_what_is_no_image_is_refused(predictor, form):
    with pytest.raises(DqdetError, match="is no image; give a path or address, bytes"):
        predictor(form)


@pytest.mark.parametrize("empty", [np.zeros((0, 5, 3), np.uint8), Image.new("RGB", (0, 4))])
def test_images_without_pixels_are_refused(predictor, empty):
    with pytest.raises(DqdetError, match=r"of \d+ x \d+ pixels is empty"):
        predictor(empty)


def test_forms_that_give_nothing_are_refused(predictor, tmp_path):
    (tmp_path / "closed").touch()
    with (tmp_path / "closed").open("rb") as closed:
        pass
    with pytest.raises(DqdetError, match="a file object cannot be read"):
        predictor(closed)
    for tensor in (torch.zeros(3, 4, 4, device="meta"), torch.zeros(3, 4, 4).to_sparse()):
        with pytest.raises(DqdetError, match=r"an image tensor has shape \[3, 4, 4\]"):
            predictor(tensor)


@pytest.mark.parametrize("threshold", [-0.1, 2, float("nan"), None, "much", [0.5], [0.5] * 5, [0.5, float("nan")]])
def test_thresholds_that_are_none_are_refused(predictor, images, threshold):
    with pytest.raises(DqdetError, match=r"^threshold=.*: neither a score in 0..1 nor one of each of the 2 classes"):
        predictor(images[0], threshold=threshold)


def test_a_threshold_is_a_number_of_any_kind(predictor, images):
    expected = predictor(images[0], threshold=0.5).xyxy
    for threshold in (
        np.float32(0.5),
        np.array(0.5),
        torch.tensor(0.5),
        [0.5, 0.5],
        np.full(2, 0.5),
        torch.full([2], 0.5),
    ):
        assert np.array_equal(predictor(images[0], threshold=threshold).xyxy, expected)


def test_folder_gives_pictures_and_results(predictor, images, tmp_path, capfd):
    source, out = tmp_path / "in", tmp_path / "new" / "out"
    source.mkdir()
    names = ["000000000012.png", "7.png", "8.png"]
    for image, name in zip(images, names, strict=True):
        image.save(source / name)
    (source / "readme.txt").write_text("no image")
    predictor.config = config(category_ids=[3, 90])

    assert predict(predictor, [source], out) == []

    assert capfd.readouterr().out == ""
    assert sorted(file.name for file in out.iterdir()) == [*names, "images.json", "results.json"]
    # The way in which pycocotools users would read them.
    described = COCO(str(out / "images.json"))
    results = described.loadRes(str(out / "results.json"))
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in described.dataset["images"]] == [
        (12, names[0], 300, 200),
        (7, names[1], 90, 400),
        (8, names[2], 64, 48),
    ]
    assert {number: category["name"] for number, category in described.cats.items()} == {3: "red", 90: "blue"}
    assert len(results.anns) == 3 * 4  # all candidates, not only those above the threshold
    best = max(results.imgToAnns[12], key=lambda entry: entry["score"])
    assert best["category_id"] == 3
    assert best["bbox"] == pytest.approx([30, 40, 60, 120], abs=2)

    with Image.open(out / names[2]) as small:
        assert small.size == (640, 480)  # enlarged
        drawn = np.array(small.convert("RGB")).astype(int)
        enlarged = np.array(images[2].resize((640, 480), Image.Resampling.BICUBIC)).astype(int)
        changed = np.abs(drawn - enlarged).max(-1) > 60
        assert changed[240, 70:90].any()  # the left side of the box, x = 8 of 64
        assert not changed[:, 480:].any()


def test_results_evaluate_like_the_images_themselves(predictor, images, tmp_path):
    """What a folder gives has the metrics that evaluation computes without files."""
    truth = [(1, 1, (30, 40, 60, 120)), (1, 2, (200, 10, 80, 50)), (2, 2, (15, 310, 70, 90)), (3, 1, (8, 8, 24, 32))]
    ground_truth = {
        "images": [{"id": i, "width": image.width, "height": image.height} for i, image in enumerate(images, 1)],
        "categories": [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "bbox": list(box), "area": box[2] * box[3]}
            for i, (image, category, box) in enumerate(truth, 1)
        ],
    }
    for name, image in zip("abc", images, strict=True):
        image.save(tmp_path / f"{name}.png")
    predict(predictor, [tmp_path], tmp_path / "out")
    from_file, direct = DetectionMetric(ground_truth, [1, 2]), DetectionMetric(ground_truth, [1, 2])
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    for image_id in (1, 2, 3):
        from_file.add(image_id, [entry for entry in entries if entry["image_id"] == image_id])
    direct.update([1, 2, 3], [objects(found) for found in predictor.outcomes(images)])
    assert direct.compute()["AP50"] > 0.5
    assert from_file.compute() == direct.compute()


def test_unreadable_files_do_not_cost_the_others(predictor, images, tmp_path):
    for name, image in zip("bdf", images, strict=True):
        image.save(tmp_path / f"{name}.png")
    (tmp_path / "a.jpg").write_text("not an image")
    truncated(tmp_path / "c.png")
    (tmp_path / "e.png").mkdir()  # is no file at all

    failures = predict(predictor, [tmp_path], tmp_path / "out")

    assert [str(error).split(":")[0] for error in failures] == [str(tmp_path / n) for n in ("a.jpg", "c.png")]
    written = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
    assert [(image["file_name"], image["id"]) for image in written] == [("b.png", 2), ("d.png", 4), ("f.png", 5)]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())) == 3 * 4
    assert (tmp_path / "out" / "f.png").is_file()


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_folder_of_everything(predictor, images, tmp_path):
    """Pipes and damage are reported; the rest is done, whatever its encoding, and its pictures can be opened."""
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    picture = images[2]
    for compression in ("group4", "tiff_lzw", "jpeg", "tiff_adobe_deflate"):
        mode = "1" if compression == "group4" else "RGB"
        picture.convert(mode).save(source / f"{compression}.tiff", compression=compression)
    picture.convert("CMYK").save(source / "cmyk.jpg")
    picture.convert("LA").save(source / "la.png")
    picture.convert("P").save(source / "palette.png", transparency=bytes(range(0, 250, 10)))
    Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 257).save(source / "sixteen.png")
    good = {file.name for file in source.iterdir()}

    os.mkfifo(source / "pipe.jpg")
    os.symlink("nowhere", source / "link.png")
    truncated(source / "cut.tiff")
    picture.save(source / "moving.webp", save_all=True, append_images=[images[1].resize(picture.size)])
    bad = {"pipe.jpg", "link.png", "cut.tiff", "moving.webp"}

    failures = predict(predictor, [source], out)
    assert {Path(str(failure).split(":")[0]).name for failure in failures} == bad
    assert {image["file_name"] for image in json.loads((out / "images.json").read_text())["images"]} == good
    for name in good:
        with Image.open(out / name) as written:
            assert written.convert("RGB").size == (640, 480)
    written = {file.name for file in out.iterdir()}
    assert written == good | {"results.json", "images.json"}


def test_a_single_pipe_is_named(predictor, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DqdetError, match=r"pipe\.png: is a named pipe, no regular file"):
        predict(predictor, [tmp_path / "pipe.png"], tmp_path / "out")


def test_a_pil_image_that_cannot_be_read_is_named(predictor, tmp_path):
    truncated(tmp_path / "cut.png")
    with (
        Image.open(tmp_path / "cut.png") as image,
        pytest.raises(DqdetError, match=r"cut\.png: cannot be read as an image"),
    ):
        predictor(image)


def test_single_unreadable_image(predictor, tmp_path):
    (tmp_path / "a.jpg").write_text("not an image")
    (failure,) = predict(predictor, [tmp_path / "a.jpg"], tmp_path / "out")
    assert "a.jpg: cannot be read" in str(failure)


def test_nothing_to_predict(predictor, tmp_path):
    with pytest.raises(DqdetError, match="no images in this folder"):
        predict(predictor, [tmp_path], tmp_path / "out")
    with pytest.raises(DqdetError, match="absent: no such file or folder"):
        predict(predictor, [tmp_path / "absent"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_not_overwritten(predictor, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for source in (tmp_path, tmp_path / "a.png"):
        with pytest.raises(DqdetError, match="would be overwritten"):
            predict(predictor, [source], tmp_path / "." / "")
    assert (tmp_path / "a.png").read_bytes() == before


def test_unwritable_folder_is_named(predictor, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(DqdetError, match="out: cannot be written"):
        predict(predictor, [tmp_path], tmp_path / "out")


def test_image_ids():
    def ids(*names):
        return image_ids([Path(name) for name in names])

    assert ids("000139.jpg", "7.png") == [139, 7]
    assert ids("7.jpg", "7.png") == [1, 2]
    assert ids("7.jpg", "cat.jpg") == [1, 2]
