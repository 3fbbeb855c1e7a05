"""YouTube-VIS: clips have what the annotation file says, by its official reading, and bad input is named."""

import json
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import opening
import PIL.Image
import pytest
import torch
from run_lengths import compressed, uncompressed

from dqdet.config import ClipsConfig
from dqdet.data.loader import VideoLoader, make_loader
from dqdet.errors import DqdetError
from dqdet.metrics.video import VideoMetric
from dqdet.types import ClipTracks
from whole_tracks import as_tracks, decode_frames

opened = partial(opening.opened, kind="youtube_vis", task="video", resize=[20], val_resize=20, crop=False)

SIZES = {3: (20, 30), 8: (24, 16)}  # height, width
LENGTHS = {3: 5, 8: 1}


def rectangle(height: int, width: int, left: int) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[4:10, left : left + 5] = 1
    return mask


def document() -> dict:
    """Two videos, the second of one frame, with three tracks and a crowd."""
    videos = [
        {
            "id": video,
            "height": SIZES[video][0],
            "width": SIZES[video][1],
            "length": length,
            "file_names": [f"v{video}/{5 * frame:05d}.jpg" for frame in range(length)],
        }
        for video, length in LENGTHS.items()
    ]
    moving = [uncompressed(rectangle(20, 30, 2 * frame)) for frame in range(5)]
    flashing = [None, compressed(rectangle(20, 30, 15)), None, [[20, 4, 26, 4, 26, 9, 20, 9]], None]
    crowd = [uncompressed(rectangle(20, 30, 12))] * 5
    tracks = [
        {"id": 1, "video_id": 8, "category_id": 2, "iscrowd": 0, "segmentations": [uncompressed(rectangle(24, 16, 3))]},
        {"id": 2, "video_id": 3, "category_id": 7, "iscrowd": 0, "segmentations": moving},
        {"id": 3, "video_id": 3, "category_id": 2, "iscrowd": 0, "segmentations": flashing},
        {"id": 4, "video_id": 3, "category_id": 2, "iscrowd": 1, "segmentations": crowd},
    ]
    categories = [{"id": 7, "name": "fish"}, {"id": 2, "name": "giant_panda"}]
    return {"videos": videos, "annotations": tracks, "categories": categories}


def written(root: Path, annotations: dict, file: str = "train.json", split: str = "train") -> Path:
    """A folder with the annotations and all frames; the red channel of a frame is its number times 40."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(annotations))
    for video in document()["videos"]:
        for number, name in enumerate(video["file_names"]):
            frame = root / split / "JPEGImages" / name
            frame.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (video["width"], video["height"]), (40 * number, 0, 0)).save(frame, quality=95)
    return root


@pytest.mark.parametrize(
    "file",
    ["train.json", "train/instances.json", "annotations/instances_train.json", "annotations/instances_train_sub.json"],
)
def test_layouts(tmp_path, file):
    dataset = opened(written(tmp_path, document(), file))
    assert dataset.annotation_file == tmp_path / file
    assert dataset.image_ids == [3, 8]
    assert dataset.classes == ["giant_panda", "fish"]
    assert dataset.category_ids == [2, 7]
    assert dataset.aspect_ratios.tolist() == [30 / 20, 16 / 24]


@pytest.mark.parametrize("frames", [range(5), [3, 1], [2, 2, 2]])
def test_clips_have_the_annotated_masks_of_their_frames(tmp_path, frames):
    annotations = document()
    clip = opened(written(tmp_path, annotations)).read_clip(0, frames, masks=True)
    red = clip["image"][:, 0].float().mean((1, 2))
    torch.testing.assert_close(red, 40.0 * torch.tensor([*frames]), atol=3, rtol=0)
    rows = {}
    for track, frame, label, mask, box in zip(
        *(clip[name] for name in ("tracks", "frames", "labels", "masks", "boxes")), strict=True
    ):
        ys, xs = mask.nonzero(as_tuple=True)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        rows[int(label), int(frame)] = mask
        assert int(track) in (1, 2)
    for label, annotation in ((1, annotations["annotations"][1]), (0, annotations["annotations"][2])):
        masks = decode_frames(annotation["segmentations"], 20, 30)
        for position, frame in enumerate(frames):
            found = rows.pop((label, position), torch.zeros(20, 30))
            assert np.array_equal(found.numpy().astype(bool), masks[frame])
    assert not rows


def test_training_items_are_clips_and_validation_items_videos(tmp_path):
    root = written(tmp_path, document())
    dataset = opened(root, clips=ClipsConfig(frames=3, reach=2))
    assert len(dataset) == 2
    for epoch in range(5):
        dataset.set_epoch(epoch)
        frames, target = dataset[0]
        assert frames.shape == (3, 3, 20, 30)
        assert target.boxes.shape == (len(target.labels), 3, 4)
        assert target.masks.shape == (len(target.labels), 3, 20, 30)
    frames, target = opened(root, "val", val="train")[0]
    assert frames.shape == (5, 3, 20, 30)
    assert target.labels.tolist() == [1, 0]
    assert target.boxes.any(2).tolist() == [[True] * 5, [False, True, False, True, False]]


def test_a_video_of_one_frame(tmp_path):
    root = written(tmp_path, document())
    frames, target = opened(root, clips=ClipsConfig(frames=2))[1]
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(target.masks[:, 0], target.masks[:, 1])
    frames, target = opened(root, "val", val="train")[1]
    assert frames.shape[0] == 1
    assert target.boxes.any(2).tolist() == [[True]]


def test_the_official_format_is_read_as_the_official_evaluation_does(tmp_path, shared):
    """All annotated tracks, given back as predictions, are all that can be found."""
    truth = json.loads((shared / "metrics/video_instance/gt.json").read_text())
    for video in truth["videos"]:
        for name in video["file_names"]:
            file = tmp_path / "valid/JPEGImages" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (video["width"], video["height"])).save(file)
    (tmp_path / "valid.json").write_text(json.dumps(truth))
    dataset = opened(tmp_path, "val")
    assert len(dataset.classes) == 40
    metric = VideoMetric(dataset.ground_truth(), dataset.category_ids)
    for video, video_id in enumerate(dataset.image_ids):
        clip = dataset.read_clip(video, range(int(dataset.lengths[video])), masks=True)
        target = dataset.target(clip, (0, 0), video_id)
        scores = torch.full((len(target.labels),), 0.9)
        metric.update([video_id], [as_tracks(ClipTracks(scores, target.labels, target.masks))])
    metrics = metric.compute()
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["AR10"] == pytest.approx(1)


@pytest.mark.parametrize("tracks", [True, 0, {}, "", 1.5])
def test_tracks_are_a_list(tmp_path, tracks):
    root = written(tmp_path, document() | {"annotations": tracks})
    with pytest.raises(DqdetError, match=r"train.json: not in COCO's video format \(no list 'annotations'\)"):
        opened(root)


@pytest.mark.parametrize("missing", [None, "left out"])
def test_a_validation_split_without_annotations_can_be_used(tmp_path, caplog, missing):
    annotations = document() | {"annotations": None}
    if missing:
        del annotations["annotations"]
    root = written(tmp_path, annotations, "valid.json", "valid")
    dataset = opened(root, "val")
    assert f"{root}/valid.json: has no annotations" in caplog.text
    videos = [(len(list(video.frames)), len(video.targets[0].labels)) for video in VideoLoader(dataset)]
    assert sorted(videos) == [(1, 0), (5, 0)]
    metric = VideoMetric(dataset.ground_truth(), dataset.category_ids)
    metric.update([3], [as_tracks(ClipTracks(torch.tensor([0.5]), torch.tensor([0]), torch.ones(1, 5, 20, 30).bool()))])
    assert metric.compute()["AP"] == -1


def test_faults_are_reported_together(tmp_path):
    annotations = document()
    videos, tracks = annotations["videos"], annotations["annotations"]
    videos.append(videos[0] | {"id": 9, "length": 4})
    tracks[0]["category_id"] = 5
    tracks[1]["segmentations"].pop()
    tracks[2]["segmentations"] = [None] * 5
    tracks[3]["segmentations"] = [uncompressed(rectangle(10, 10, 0)), *tracks[3]["segmentations"][1:]]
    tracks.append(deepcopy(tracks[3]) | {"id": 5, "video_id": 4})
    root = written(tmp_path, annotations)
    for frame in (0, 10):
        (root / f"train/JPEGImages/v3/{frame:05d}.jpg").unlink()
    with pytest.raises(DqdetError) as caught:
        opened(root)
    assert str(caught.value) == (
        f"{root}/train.json: bad entries (6): video 9 has the length 4, but 5 file_names; "
        "annotation 1 has the unknown category_id 5; "
        "annotation 2 has 4 segmentations for the 5 frames of video 3; "
        "annotation 3 is visible in no frame; "
        "annotation 4 has an RLE of 10 x 10 pixels in an image of 30 x 20 (segmentations[0]); and 1 more; "
        f"correct or remove them; 2 of 6 frames are missing in {root}/train/JPEGImages: "
        "v3/00000.jpg, v3/00010.jpg; add them or remove their records"
    )


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda d: d["annotations"][1].update(video_id=4), "annotation 2 has the unknown video_id 4"),
        (lambda d: d["annotations"][1].update(bboxes=[None]), "annotation 2 has 1 bboxes for the 5 frames of video 3"),
        (lambda d: d["annotations"][1].pop("segmentations"), "annotation 2 has 0 segmentations for the 5 frames"),
        (
            lambda d: d["annotations"][1].update(segmentations=[{"size": [20, 30], "counts": [600]}] * 5),
            "annotation 2 is visible in no frame",
        ),
        (
            lambda d: d["annotations"][0].update(segmentations=[{"size": [24, 16], "counts": [5, 5]}]),
            "annotation 1 has an RLE whose counts are not 384 pixels (segmentations[0])",
        ),
        (lambda d: d["videos"][1].update(file_names=[]), "video 8 has no file_names"),
        (lambda d: d["videos"][1].pop("height"), "video 8 has no height"),
        (lambda d: d["videos"][1].update(id=3), "video 3 has an id that is there already"),
        (lambda d: d["categories"][1].pop("name"), "category 2 has no name"),
    ],
)
def test_one_fault(tmp_path, change, fault):
    annotations = document()
    change(annotations)
    with pytest.raises(DqdetError) as caught:
        opened(written(tmp_path, annotations))
    assert str(caught.value).startswith(f"{tmp_path}/train.json: bad entries (")
    assert fault in str(caught.value)


def test_an_empty_mask_is_a_frame_without_the_object(tmp_path):
    annotations = document()
    annotations["annotations"][2]["segmentations"][1] = {"size": [20, 30], "counts": [600]}
    _, target = opened(written(tmp_path, annotations), "val", val="train")[0]
    assert target.boxes.any(2).tolist() == [[True] * 5, [False, False, False, True, False]]


def test_a_frame_of_another_size(tmp_path):
    root = written(tmp_path, document())
    file = root / "train/JPEGImages/v3/00010.jpg"
    PIL.Image.new("RGB", (31, 20)).save(file)
    with pytest.raises(DqdetError) as caught:
        _ = opened(root, "val", val="train")[0]
    assert str(caught.value) == (
        f"{file}: is 31 x 20 pixels, but video 3 of {root}/train.json is 30 x 20; correct one of them"
    )


def test_an_unreadable_frame(tmp_path):
    root = written(tmp_path, document())
    file = root / "train/JPEGImages/v8/00000.jpg"
    file.write_text("no image")
    with pytest.raises(DqdetError) as caught:
        list(make_loader(opened(root), batch=2, train=True, workers=1))
    assert str(caught.value) == (
        f"{file}: cannot be read as an image (in no format that is known); "
        f"replace the file or remove video 8 from {root}/train.json"
    )


def test_no_annotation_file(tmp_path):
    (tmp_path / "train/JPEGImages").mkdir(parents=True)
    with pytest.raises(DqdetError) as caught:
        opened(tmp_path, train="train")
    assert str(caught.value) == (
        f"{tmp_path}: no annotations of the train split; looked for train.json, train/instances.json, "
        "annotations/instances_train.json, annotations/instances_train_sub.json; "
        "set data.train to the name of the split"
    )


def test_images_instead_of_videos(tmp_path):
    annotations = document()
    annotations["images"] = annotations.pop("videos")
    with pytest.raises(DqdetError, match="no list 'videos'"):
        opened(written(tmp_path, annotations))
