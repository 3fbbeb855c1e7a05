"""CPU time and peak memory of opening annotations of the size of COCO's training split, for boxes.

    python benchmarks/coco_opening.py --images 118000 --objects 860000

Records are those of COCO, with polygons of 8 to 39 points; the image files are empty. Another process writes them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dqdet.config import DataConfig
from dqdet.data import open_dataset

ADDRESS = "http://images.cocodataset.org/train2017/"


def write(root: Path, images: int, objects: int) -> None:
    random = np.random.default_rng(0)
    folder = root / "train2017"
    folder.mkdir()
    (root / "annotations").mkdir()
    records = []
    for number in range(1, images + 1):
        name = f"{number:012d}.jpg"
        (folder / name).touch()
        links = {"coco_url": ADDRESS + name, "flickr_url": ADDRESS + name, "date_captured": "2013-11-14 11:18:45"}
        records.append({"id": number, "file_name": name, "height": 480, "width": 640, "license": 3, **links})
    corners, sides = random.uniform(0, 300, (objects, 2)).round(2), random.uniform(5, 150, (objects, 2)).round(2)
    places = zip(
        random.integers(1, images + 1, objects).tolist(), random.integers(1, 81, objects).tolist(), strict=True
    )
    annotations = []
    for number, (image, category) in enumerate(places):
        points = random.random((random.integers(8, 40), 2)) * sides[number] + corners[number]
        shape = {"bbox": [*corners[number].tolist(), *sides[number].tolist()], "area": 1000.5, "iscrowd": 0}
        where = {"id": number + 1, "image_id": image, "category_id": category}
        annotations.append({**where, **shape, "segmentation": [points.round(2).ravel().tolist()]})
    categories = [{"id": number, "name": f"class {number}"} for number in range(1, 81)]
    document = {"images": records, "annotations": annotations, "categories": categories}
    (root / "annotations/instances_train2017.json").write_text(json.dumps(document))


def peak() -> float:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=860_000)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write, options.images, options.objects)
        return
    with TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--write", folder], check=True)
        libraries, start = peak(), time.process_time()
        dataset = open_dataset(DataConfig(root=folder, check=False), "train")
        measured = {"cpu_seconds": time.process_time() - start, "peak_mib": peak(), "libraries_mib": libraries}
    print(json.dumps({"images": len(dataset), **measured}, indent=2))


if __name__ == "__main__":
    main()
