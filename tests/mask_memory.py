"""Peak memory of a panoptic model and of what is written of its results, run by a test in a process of its own.

    python tests/mask_memory.py FOLDER WIDTH HEIGHT MASKS

predicts a black picture of this size, in which every query finds a mask, and prints MiB.
"""

import resource
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dqdet.nn.product_masks import ProductMasks
from dqdet.predict.sources import predict
from dqdet.types import Predictions
from test_segmentation_results import ColourSegmenter, predictor


class Everywhere(ColourSegmenter):
    """Query k finds the picture from its row k on."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.queries = queries

    def forward_features(self, features: list[Tensor], padding: Tensor, targets=()) -> Predictions:
        _, _, height, width = features[0].shape
        rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
        limits = torch.linspace(0, 0.9, self.queries)
        embeddings = torch.stack([torch.full((self.queries,), 50.0), -50 * limits], 1)  # [Q, 2]
        logits = torch.tensor([5.0, 0, 0, 0]).expand(1, 1, self.queries, 4)
        masks = ProductMasks(embeddings[None, None], torch.stack([rows, torch.ones_like(rows)])[None])
        return Predictions(logits, None, groups={"modulated": self.queries}, masks=masks)


def main(folder: Path, width: int, height: int, masks: int) -> None:
    folder.mkdir()
    Image.new("RGB", (width, height)).save(folder / "1.png")
    model = predictor("panoptic")
    model.model = Everywhere(masks).eval()
    model.config.inference.limit = masks
    model.config.inference.overlap_threshold = 0.0
    assert predict(model, [folder], folder / "out") == []
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
