"""A predictor of large pictures, which are cut in tiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NoReturn

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dqdet.drawing.pictures import Threshold
from dqdet.errors import DqdetError
from dqdet.inference.tiles import Tile, joined, tiles_of
from dqdet.predict.image_sources import ImageSource
from dqdet.predict.predictor import Predictor, Prepared, objects
from dqdet.predict.prefetch import ahead
from dqdet.types import Outcome

LARGEST_OVERLAP = 0.9  # with more, each pixel is looked at more than a hundred times


class TiledPredictor(Predictor):
    """Looks at a picture's tiles one by one, and joins what was found to that of the picture; see `Predictor.tiled`.

    ``config.inference.limit`` is that of a tile. A picture that is no larger than a tile goes through as ever.
    """

    def __init__(self, predictor: Predictor, side: int, overlap: float) -> None:
        task = predictor.config.data.task
        if task not in ("detection", "instance"):
            raise DqdetError(f"tiles are for boxes and instance masks, not for data.task={task}; leave them out")
        if side < 1 or not 0 <= overlap <= LARGEST_OVERLAP:
            raise DqdetError(
                f"tiles of {side} pixels with overlap {overlap:g}: give a side of at least 1, and an overlap from 0 to "
                f"{LARGEST_OVERLAP:g}"
            )
        super().__init__(
            predictor.model,
            predictor.config,
            predictor.metrics,
            predictor.device,
            predictor.batch,
            predictor.trained,
            predictor.source,
        )
        self.side, self.overlap = side, overlap

    def prepared(self, image: Image.Image) -> Prepared:
        """All pixels of an image; its tiles are made when they are needed, which bounds the memory."""
        return Prepared(F.pil_to_tensor(image), (image.height, image.width))

    def padded(self, prepared: Prepared) -> tuple[int, int]:
        return prepared.size

    def outcomes_of(self, batch: Sequence[Prepared], threshold: Threshold | None = None) -> list[Outcome]:
        of_images = [tiles_of(one.size, self.side, self.overlap) for one in batch]
        cut = ((one.pixels, tile) for one, tiles in zip(batch, of_images, strict=True) for tile in tiles)

        def prepare(part: tuple[Tensor, Tile]) -> Prepared:
            pixels, (left, top, right, bottom) = part
            return Predictor.prepared(self, F.to_pil_image(pixels[:, top:bottom, left:right]))

        prepared = ahead(prepare, cut, 2 * self.batch, threads=2)
        batches = iter(lambda: list(islice(prepared, self.batch)), [])
        found = (objects(outcome) for some in batches for outcome in super(TiledPredictor, self).outcomes_of(some))
        outcomes: list[Outcome] = []
        for one, tiles in zip(batch, of_images, strict=True):
            of_tiles = list(islice(found, len(tiles)))
            outcomes.append(joined(of_tiles, tiles, one.size) if len(tiles) > 1 else of_tiles[0])
        return outcomes

    def predictions(self, images: ImageSource | Iterable[ImageSource]) -> NoReturn:
        raise DqdetError("of a picture in tiles there are no predictions as a whole; ask the predictor without tiles")
