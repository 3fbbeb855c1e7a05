"""Panoptic results as the official evaluation reads them: JSON, and folders of PNG maps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqdet.errors import DqdetError
from dqdet.formats.panoptic import read_ids, segment_faults
from dqdet.metrics.panoptic import PanopticMetric
from dqdet.types import PanopticMap

SHOWN = 20  # faults that a message spells out


def evaluate_files(
    truth_file: Path, results_file: Path, truth_folder: Path | None = None, results_folder: Path | None = None
) -> dict[str, float]:
    """Panoptic quality of a results file in COCO's format: JSON, and a folder of PNG maps (default: named like it).

    Raises:
        DqdetError: a file is missing or unreadable; or, all of them together: images without a result, maps of
            another size, segments in only one of PNG and JSON, unknown categories.
    """
    truth_folder = truth_folder or truth_file.with_suffix("")
    results_folder = results_folder or results_file.with_suffix("")
    truth_document = _read_document(truth_file, ("annotations", "categories"))
    results_document = _read_document(results_file, ("annotations",))
    metric = PanopticMetric(truth_document["categories"])
    category_ids = {category["id"] for category in metric.categories}
    results = {annotation["image_id"]: annotation for annotation in results_document["annotations"]}

    faults = []
    for annotation in truth_document["annotations"]:
        image_id = annotation["image_id"]
        if image_id not in results:
            faults.append(f"{results_file}: has no result for image {image_id}")
            continue
        maps = []
        for folder, record in ((truth_folder, annotation), (results_folder, results[image_id])):
            file = folder / record["file_name"]
            maps.append(PanopticMap(read_ids(file), record["segments_info"]))
            faults += [f"{file}: image {image_id}: {fault}" for fault in segment_faults(maps[-1], category_ids)]
        truth, prediction = maps
        if truth.ids.shape != prediction.ids.shape:
            sizes = " not ".join(f"{width}x{height}" for height, width in (prediction.ids.shape, truth.ids.shape))
            faults.append(f"{file}: image {image_id}: the PNG has {sizes} pixels")
        if not faults:
            metric.update([image_id], [truth], [prediction])
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise DqdetError(f"{'; '.join(faults[:SHOWN] + more)}; write these files again")
    return metric.compute()


def _read_document(file: Path, lists: Sequence[str]) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise DqdetError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DqdetError(f"{file}: not valid JSON ({error}); write it again") from error
    for name in lists:
        if not isinstance(document, dict) or not isinstance(document.get(name), list):
            raise DqdetError(f"{file}: not in COCO's panoptic format (no list {name!r}); write it again")
    return document
