"""Images reach a converted model as the image processors of ``transformers`` give them to theirs."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    ConditionalDetrImageProcessor,
    DeformableDetrImageProcessor,
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    Mask2FormerImageProcessor,
    ResNetConfig,
    RfDetrImageProcessor,
)

import dqdet
from dqdet.config import preset_names, resolve
from dqdet.data.transforms import input_size
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.predict.predictor import Predictor
from dqdet.runs.folder import load_config
from dqdet.types import Predictions
from dqdet.weights import PUBLISHED
from dqdet.weights.preparation import PREPARATION, PROCESSOR, of_processor, preparation, read_preparation
from tiny import TINY

# Width and height: ordinary ones, and those whose sides come out differently when one rounds at another moment.
THIN = (1, 200)
SIZES = [(64, 48), (61, 97), (333, 50), (50, 333), (127, 31), THIN, (53, 53), (80, 80), (107, 60)]

SMALL = {"shortest_edge": 80, "longest_edge": 133}
PROCESSORS = {
    "detr": DetrImageProcessor,
    "conditional_detr": ConditionalDetrImageProcessor,
    "dab_detr": ConditionalDetrImageProcessor,
    "deformable_detr": DeformableDetrImageProcessor,
    "mask2former": Mask2FormerImageProcessor,
    "lw_detr": DeformableDetrImageProcessor,
    "rf_detr": RfDetrImageProcessor,
}
PREPARATIONS = {
    "shorter side": {"size": SMALL},
    "fixed size": {"size": {"height": 96, "width": 64}},
    "within": {"size": {"max_height": 70, "max_width": 110}},
    "other colours": {"size": SMALL, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    "not normalised": {"size": SMALL, "do_normalize": False},
    "not rescaled": {"size": SMALL, "do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0] * 3},
    "as they are": {"size": SMALL, "do_rescale": False, "do_normalize": False},
    "other scale": {"size": SMALL, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
    "padded": {"size": SMALL, "pad_size": {"height": 192, "width": 192}},
    "not resized": {"do_resize": False},
    "by old names": {"size": 80, "max_size": 133},
    "by an old list": {"size": [70, 90]},
}


class Seen(Detector):
    """Keeps what reaches the backbone."""

    def __init__(self, divisor: int) -> None:
        super().__init__()
        self.divisor = divisor
        self.backbone = lambda images: [images]

    def forward_features(self, features: list[Tensor], padding: Tensor, targets=()) -> Predictions:
        (self.images,), self.padding = features, padding
        count = len(padding)
        return Predictions(torch.zeros(1, count, 1, 2), torch.zeros(1, count, 1, 4), {"static": 1})


def seen(family: str, options: dict, images: list[Image.Image]) -> tuple[Tensor, Tensor]:
    there = PUBLISHED[family].huggingface
    config = resolve({"mask2former": "mask2former_r50_coco_instance"}.get(family, "detr_r50"), options)
    model = Seen(there.divisor)
    model.mean, model.std = config.data.mean, config.data.std
    for _ in Predictor(model, config, device="cpu", batch=len(images)).predictions(images):
        pass
    return model.images, model.padding


def noise(size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("family", PROCESSORS)
@pytest.mark.parametrize("name", PREPARATIONS)
def test_images_are_prepared_as_in_transformers(tmp_path, family, name):
    if family == "mask2former" and name == "not resized":
        pytest.skip("refused, see below")
    if family == "rf_detr" and name == "not rescaled":
        pytest.skip("theirs ends in an error")
    theirs = PROCESSORS[family](**PREPARATIONS[name])
    theirs.save_pretrained(tmp_path)
    found = read_preparation(tmp_path, PUBLISHED[family].huggingface)
    for size in SIZES:
        if size == THIN and name in ("within", "padded"):
            continue  # theirs ends in an error
        image = noise(size)
        expected = theirs(image, return_tensors="pt")
        images, padding = seen(family, found, [image])
        assert images.shape == expected["pixel_values"].shape, size
        step = 1 / (255 * min(found["data.std"]))  # of colours: Pillow and torchvision round differently
        assert (images - expected["pixel_values"].float()).abs().max() < 1.01 * step, size
        assert torch.equal(~padding, expected["pixel_mask"].bool()), size


@pytest.mark.parametrize("family", PROCESSORS)
@pytest.mark.parametrize("name", PREPARATIONS)
def test_there_and_back(tmp_path, family, name):
    """What is read of a processor makes one that prepares images as the first."""
    if family == "mask2former" and name == "not resized":
        pytest.skip("refused, see below")
    there = PUBLISHED[family].huggingface
    found = preparation(PREPARATIONS[name], there)
    data = resolve({"mask2former": "mask2former_r50_coco_instance"}.get(family, "detr_r50"), found).data
    PROCESSORS[family](**of_processor(data, there)).save_pretrained(tmp_path)
    back = read_preparation(tmp_path, there)
    for option, expected in found.items():
        assert back[option] == (pytest.approx(expected) if option in ("data.mean", "data.std") else expected), option


@pytest.mark.parametrize("preset", ["detr_r50", "lw_detr_tiny", "mask2former_r50_coco_instance"])
def test_published_recipes_prepare_images_as_their_processors(preset):
    data = resolve(preset).data
    family = resolve(preset).model.family
    there = PUBLISHED[family].huggingface
    theirs = PROCESSORS[family](**of_processor(data, there))
    for size in [(640, 480), (480, 640), (500, 333), (1300, 400)]:
        found = theirs(noise(size), return_tensors="pt")["pixel_values"].shape[2:]
        expected = [-(-side // there.divisor) * there.divisor for side in input_size(size[1], size[0], data)]
        assert list(found) == pytest.approx(expected, abs=1)


def test_multiples_that_no_processor_makes_are_refused():
    data = resolve("detr_r50", {"data.val_divisor": 32}).data
    with pytest.raises(DqdetError, match=r"^data\.val_divisor=32: .*; set data\.val_divisor=1$"):
        of_processor(data, PUBLISHED["detr"].huggingface)


@pytest.mark.parametrize("family", PROCESSORS)
def test_batches_are_padded_as_in_transformers(family):
    options = PREPARATIONS["shorter side"]
    images = [noise(size) for size in SIZES if size != THIN]
    expected = PROCESSORS[family](**options)(images, return_tensors="pt")
    found, padding = seen(family, preparation(options, PUBLISHED[family].huggingface), images)
    assert found.shape == expected["pixel_values"].shape
    assert torch.equal(~padding, expected["pixel_mask"].bool())
    assert not found[padding[:, None].expand_as(found)].any()


def test_an_image_larger_than_what_it_is_padded_to_is_refused():
    found = preparation(PREPARATIONS["padded"], PUBLISHED["detr"].huggingface)
    with pytest.raises(DqdetError, match=r"images of up to 1x200 pixels cannot be padded to 192x192"):
        seen("detr", found | {"data.val_fit": "original"}, [noise((200, 1))])


@pytest.mark.parametrize("family", PROCESSORS)
def test_the_defaults_of_transformers_are_the_published_preparation(family):
    found = preparation({}, PUBLISHED[family].huggingface)
    assert (found["data.val_resize"], found["data.val_max_size"]) == (800, 1333)
    assert (found["data.mean"], found["data.std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert found["data.val_divisor"] == (32 if family == "mask2former" else 1)


def test_published_presets_keep_their_preparation():
    for name in preset_names():
        data = resolve(name).data
        assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (data.val_fit, data.val_size, data.val_divisor, data.val_pad) == ("shorter", None, 1, None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resample": 3}, "resample=3; supported is 2 (bilinear) only"),
        ({"image_processor_type": "ViTImageProcessor"}, "image_processor_type=ViTImageProcessor; supported are"),
        ({"size": {"shortest_edge": 800}}, "size={'shortest_edge': 800}; supported are"),
        ({"size": {"height": 0, "width": 4}}, "should be height and width in whole pixels"),
        ({"size": "large"}, "size=large; supported are"),
        ({"size": {"height": True, "width": 4}}, "should be height and width in whole pixels"),
        ({"image_mean": [0.5, 0.5]}, "image_mean=[0.5, 0.5]; should be three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "should be greater than 0"),
        ({"image_std": "x"}, "image_std=x; should be three numbers"),
        ({"rescale_factor": 0}, "should be greater than 0"),
        ({"do_resize": "yes"}, "do_resize=yes; should be true or false"),
        ({"pad_size": {"height": 9}}, "pad_size={'height': 9}; should be height and width in whole pixels"),
    ],
)
def test_what_cannot_be_followed_is_refused(tmp_path, options, expected):
    (tmp_path / PREPARATION).write_text(json.dumps(options))
    with pytest.raises(DqdetError) as caught:
        read_preparation(tmp_path, PUBLISHED["detr"].huggingface)
    assert str(caught.value).startswith(f"{PREPARATION} has ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"do_resize": False}, {"size_divisor": 0}, {"size_divisor": 16}])
def test_mask2former_refuses_sizes_that_it_would_pad(options):
    there = PUBLISHED["mask2former"].huggingface
    with pytest.raises(DqdetError, match="mask2former is given multiples of 32 only"):
        preparation(options, there)
    fixed = {"do_resize": True, "size_divisor": 0, "size": {"height": 384, "width": 640}}
    assert preparation(fixed, there)["data.val_size"] == [384, 640]


@pytest.fixture(scope="module")
def theirs():
    """A small random DETR of ``transformers``."""
    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        out_features=["stage4"],
    )
    sizes = {"d_model": 32, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_queries": 6}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, backbone=None, num_labels=5, **sizes, **layers
    )
    model = DetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.02 if "backbone" in name else 0.3) * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("name", ["other colours", "fixed size", "not normalised"])
@pytest.mark.parametrize("file", [PREPARATION, PROCESSOR])
def test_a_converted_model_finds_what_theirs_finds(tmp_path, theirs, name, file):
    processor = DetrImageProcessor(**PREPARATIONS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    processor.save_pretrained(tmp_path / "theirs")
    if file == PROCESSOR:  # as newer versions of the library may write it
        said = json.loads((tmp_path / "theirs" / PREPARATION).read_text())
        (tmp_path / "theirs" / PREPARATION).unlink()
        (tmp_path / "theirs" / PROCESSOR).write_text(json.dumps({"image_processor": said}))
    dqdet.convert(tmp_path / "theirs", tmp_path / "run")
    image = noise((101, 77))
    predictor = dqdet.load(tmp_path / "run", device="cpu")
    (predictions, _, _) = next(iter(predictor.predictions([image])))
    with torch.no_grad():
        expected = theirs(**processor(image, return_tensors="pt"))
    (tmp_path / "theirs" / file).unlink()
    ordinary = dqdet.load(tmp_path / "theirs", device="cpu", data={"val_resize": 80, "val_max_size": 133})
    (others, _, _) = next(iter(ordinary.predictions([image])))
    error = (predictions.logits[-1] - expected.logits).abs().max()  # resizing rounds colours differently
    effect = (others.logits[-1] - expected.logits).abs().max()  # of a preparation that is not followed
    assert error < 0.1 * effect, (error, effect)


def test_a_training_does_not_start_from_a_model_of_other_colours(tmp_path):
    colours = {"data.mean": [0.5, 0.5, 0.5]}
    run = dqdet.train("scenes_tiny", out=tmp_path / "run", **TINY, **colours, **{"train.steps": 1})
    assert load_config(run).data.mean == (0.5, 0.5, 0.5)
    assert dqdet.load(run).model.mean == (0.5, 0.5, 0.5)
    with pytest.raises(DqdetError, match=r"the model to train differs in data\.mean=\[0\.485, 0\.456, 0\.406\]"):
        dqdet.train("scenes_tiny", out=tmp_path / "tuned", **TINY, init=str(run))
    dqdet.train("scenes_tiny", out=tmp_path / "tuned", **TINY, **colours, **{"train.steps": 1}, init=str(run))
