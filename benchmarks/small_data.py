"""What `dqdet train auto` gives on a small data set, beside a YOLO11n that is trained from scratch.

    python benchmarks/small_data.py ../shared/data/bccd --seeds 3 --out runs/small_data

Boxes of any data set that `train auto` takes. Both models see as many pixels (the side that auto chooses), both are
measured by the same COCO metric on the same validation images, and of both the weights of their own best validation
count. Minutes are of the CPU's cores together, so that other programs do not disturb them. YOLO11n is of `ultralytics`,
which is no dependency: where it is not installed, it is left out.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import supervision as sv
import torch
import yaml

from dqdet.config import DataConfig
from dqdet.data import open_dataset
from dqdet.data.coco import CocoDataset
from dqdet.data.kinds import kind_of
from dqdet.metrics.detection import DetectionMetric
from dqdet.runs.folder import load_config, load_metrics
from dqdet.types import ImageDetections


def minutes() -> float:
    """Of the CPU, of this process and all that it has waited for."""
    times = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(time.ru_utime + time.ru_stime for time in times) / 60


def ours(root: Path, out: Path, seed: int, options: list[str]) -> dict[str, float]:
    """A training in a process of its own, which goes on where it was interrupted."""
    start = minutes()
    if (out / "last.ckpt").exists():
        command = ["--resume", str(out)]
    else:
        command = ["auto", f"data.root={root}", f"train.seed={seed}", "--out", str(out), *options]
    subprocess.run([sys.executable, "-m", "dqdet", "train", *command], check=True)
    return {"AP": load_metrics(out)["AP"], "minutes": minutes() - start}


def as_yolo(dataset: CocoDataset, folder: Path) -> Path:
    """Writes a split; the folder of its images."""
    boxes = {}
    for index, name in enumerate(dataset.images.file_names):
        first, stop = dataset.starts[index : index + 2].tolist()
        boxes[str(dataset.images.folder / name)] = sv.Detections(
            dataset.boxes[first:stop], class_id=dataset.labels[first:stop]
        )
    split = sv.DetectionDataset(dataset.classes, list(boxes), boxes)
    split.as_yolo(images_directory_path=str(folder / "images"), annotations_directory_path=str(folder / "labels"))
    return folder / "images"


def yolo(splits: dict[str, CocoDataset], out: Path, seed: int, side: int, epochs: int) -> dict[str, float]:
    """A YOLO11n from nothing, measured as ours is."""
    from ultralytics import YOLO

    places = {split: str(as_yolo(dataset, out / split).resolve()) for split, dataset in splits.items()}
    file = out / "data.yaml"
    file.write_text(yaml.safe_dump({**places, "names": splits["train"].classes}))
    start = minutes()
    model = YOLO("yolo11n.yaml")
    options = {"epochs": epochs, "imgsz": side, "seed": seed, "pretrained": False, "plots": False, "exist_ok": True}
    model.train(data=str(file), project=str(out.resolve()), name="run", workers=0, **options)
    spent = minutes() - start
    val = splits["val"]
    metric = DetectionMetric(val.ground_truth(), val.category_ids)
    best = YOLO(out / "run" / "weights" / "best.pt")
    for index, image_id in enumerate(val.image_ids):
        (found,) = best(val.images.folder / val.images.file_names[index], imgsz=side, conf=0.001, verbose=False)
        boxes = found.boxes.cpu()
        metric.update([image_id], [ImageDetections(boxes.conf, boxes.cls.long(), boxes.xyxy)])
    return {"AP": metric.compute()["AP"], "minutes": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("options", nargs="*", help="of our training, for example train.epochs=20")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--yolo-epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("runs/small_data"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    results: dict[str, list[dict[str, float]]] = {"dqdet train auto": []}
    for seed in range(arguments.seeds):
        run = arguments.out / f"auto-{seed}"
        results["dqdet train auto"].append(ours(arguments.root, run, seed, arguments.options))
    if find_spec("ultralytics") is None:
        print("YOLO11n is left out: ultralytics is not installed", file=sys.stderr)
    else:
        data = DataConfig(kind=kind_of(arguments.root), root=str(arguments.root))
        splits = {split: open_dataset(data, split) for split in ("train", "val")}
        side = load_config(run).data.max_size  # ultralytics' size is that of the longer side
        results["YOLO11n from scratch"] = [
            yolo(splits, arguments.out / f"yolo-{seed}", seed, side, arguments.yolo_epochs)
            for seed in range(arguments.seeds)
        ]
    print("| model | AP, mean | of each seed | CPU minutes, mean |\n| --- | --- | --- | --- |")
    for name, runs in results.items():
        scores = [run["AP"] for run in runs]
        each = ", ".join(f"{score:.3f}" for score in scores)
        spent = statistics.mean(run["minutes"] for run in runs)
        print(f"| {name} | {statistics.mean(scores):.3f} | {each} | {spent:.1f} |")
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
