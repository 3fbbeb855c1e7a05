"""Peak memory of eval and submit for a video of some length, run by a test in a process of its own.

    python tests/video_memory.py FOLDER LENGTH

writes a data set of one video into the folder, which shows one file again and again, and prints MiB.
"""

import json
import resource
import sys
from pathlib import Path

from PIL import Image

from dqdet.config import Config, DataConfig, InferenceConfig, MaskLossConfig, VideoMask2FormerConfig
from dqdet.data import open_dataset
from dqdet.predict.predictor import Predictor
from dqdet.predict.submission import write_submission
from test_segmentation_results import evaluated
from test_video_prediction import ClipSegmenter

WIDTH, HEIGHT = 640, 360


def main(folder: Path, length: int) -> None:
    (folder / "val" / "JPEGImages").mkdir(parents=True)
    image = Image.new("RGB", (WIDTH, HEIGHT))
    image.paste("red", (100, 80, 300, 200))
    image.save(folder / "val" / "JPEGImages" / "0.png")
    shape = [[110, 80, 300, 80, 300, 200, 110, 200]]
    track = {"id": 1, "video_id": 1, "category_id": 3, "iscrowd": 0, "segmentations": [shape] * length}
    video = {"id": 1, "file_names": ["0.png"] * length, "width": WIDTH, "height": HEIGHT, "length": length}
    categories = [{"id": 3, "name": "red"}, {"id": 40, "name": "blue"}]
    document = {"videos": [video], "annotations": [track], "categories": categories}
    (folder / "val.json").write_text(json.dumps(document))
    config = Config(
        preset="test",
        model=VideoMask2FormerConfig(),
        loss=MaskLossConfig(),
        data=DataConfig(
            kind="youtube_vis", task="video", root=str(folder), val_resize=HEIGHT, max_size=WIDTH, workers=0
        ),
        inference=InferenceConfig(window=6, limit=2),
        classes=["red", "blue"],
        category_ids=[3, 40],
    )
    predictor = Predictor(ClipSegmenter(), config, device="cpu")
    dataset = open_dataset(config.data, "val")
    assert evaluated(predictor, dataset)["AP"] > 0.5
    write_submission(predictor, dataset, folder / "results.zip")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
