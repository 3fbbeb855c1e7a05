"""Mean intersection over union of semantic label maps, as the Cityscapes evaluation computes it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dqdet.metrics.processes import gathered


class SemanticMetric:
    """Counts pixels by true and predicted label, image by image; keeps the counts only.

    Pixels whose true label is no class (255, say) are ignored. Pixels that are predicted to be no class count as
    missed. Works over several processes: every one gets the metrics of all images, and an image that several saw
    counts once.

    Args:
        classes: the name of each label.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = list(classes)
        self.reset()

    def reset(self) -> None:
        # Image id -> pairs of labels that occur (true * (C + 1) + predicted), pixels of each; an image has few.
        self.results: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def update(self, image_ids: Sequence[int], truths: Sequence[np.ndarray], predictions: Sequence[np.ndarray]) -> None:
        """Compare label maps ``[H, W]`` (whole numbers) with the true ones."""
        count = len(self.classes)
        for image_id, truth, prediction in zip(image_ids, truths, predictions, strict=True):
            labelled = (truth >= 0) & (truth < count)  # [H, W]
            true_labels, labels = truth[labelled].astype(np.int64), prediction[labelled].astype(np.int64)
            labels[(labels < 0) | (labels >= count)] = count
            self.results[image_id] = np.unique(true_labels * (count + 1) + labels, return_counts=True)

    def compute(self) -> dict[str, float]:
        """The metrics over all images given to ``update``, in any process, since the last ``reset``.

        Returns:
            ``IoU/name`` of each class in 0..1, -1 if it is neither in the ground truth nor predicted where there is
            ground truth, and ``mIoU``, the mean over the other classes.
        """
        count = len(self.classes)
        confusion = np.zeros((count, count + 1), dtype=np.int64)  # true label, predicted label (the last: no class)
        for pairs, pixels in gathered(self.results).values():
            confusion.reshape(-1)[pairs] += pixels
        hits = confusion.diagonal()  # [C]
        unions = confusion.sum(1) + confusion[:, :count].sum(0) - hits  # [C]
        occurring = unions > 0
        ious = np.where(occurring, hits / unions.clip(1), -1.0)
        mean = float(ious[occurring].mean()) if occurring.any() else -1.0
        return {"mIoU": mean, **{f"IoU/{name}": iou for name, iou in zip(self.classes, ious.tolist(), strict=True)}}
