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
)

import dqdet
from dqdet.config import Config, from_yaml, resolve
from dqdet.data.loader import collate
from dqdet.data.transforms import make_transform
from dqdet.errors import DqdetError
from dqdet.models.detector import Detector
from dqdet.predict.predictor import Predictor
from dqdet.types import Predictions
from dqdet.weights import PUBLISHED
from dqdet.weights.preparation import preparation, read_preparation

# Width and height: ordinary ones, and those whose sides come out differently when one rounds at another moment.
SIZES = [(64, 48), (61, 97), (333, 50), (50, 333), (127, 31), (1, 200), (53, 53), (80, 80), (107, 60)]

SMALL = {"shortest_edge": 80, "longest_edge": 133}
PROCESSORS = {
    "detr": DetrImageProcessor,
    "conditional_detr": ConditionalDetrImageProcessor,
    "dab_detr": ConditionalDetrImageProcessor,
    "deformable_detr": DeformableDetrImageProcessor,
    "mask2former": Mask2FormerImageProcessor,
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

    def forward_features(self, features: list[Tensor], padding: Tensor) -> Predictions:
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
    options = dict(PREPARATIONS[name])
    if family == "mask2former":
        if name == "not resized":
            pytest.skip("not followed; see the refusals")
    PROCESSORS[family](**options).save_pretrained(tmp_path)
    there = PUBLISHED[family].huggingface
    found = read_preparation(tmp_path, there)
    for size in SIZES:
        image = noise(size)
        try:
            theirs = PROCESSORS[family](**options)(image, return_tensors="pt")
        except (RuntimeError, ZeroDivisionError, ValueError) as e:
            print("\nSKIP", name, size, e)
            continue  # they make sides of 0 pixels
        images, padding = seen(family, found, [image])
        expected = theirs["pixel_values"].float()
        height, width = expected.shape[-2:]
        assert images.shape[-2:] == (height, width), (size, images.shape, expected.shape)
        step = 1 / (255 * min(found["data.std"]))  # of colours: Pillow and torchvision round differently
        assert (images - expected).abs().max() < 1.01 * step, size
        if "pixel_mask" in theirs:
            assert torch.equal(~padding, theirs["pixel_mask"].bool())
