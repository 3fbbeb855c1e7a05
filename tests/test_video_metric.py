"""Video metrics must be those of the official YouTube-VIS evaluation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from dqdet.formats import rle
from dqdet.formats.results import video_results
from dqdet.metrics.detection import SUMMARY
from dqdet.metrics.video import VideoMetric, track_ious
from dqdet.types import ClipTracks, Track
from whole_tracks import as_tracks, decode_frames


def tracks_of(video: dict, entries: list[dict], category_ids: list[int]) -> list[Track]:
    masks = np.zeros((len(entries), video["length"], video["height"], video["width"]), dtype=bool)
    for track, entry in zip(masks, entries, strict=True):
        track[:] = decode_frames(entry["segmentations"], video["height"], video["width"])
    tracks = ClipTracks(
        scores=torch.tensor([entry["score"] for entry in entries], dtype=torch.float64),
        labels=torch.tensor([category_ids.index(entry["category_id"]) for entry in entries], dtype=torch.int64),
        masks=torch.from_numpy(masks),
    )
    return as_tracks(tracks)


def metric_of(ground_truth: dict, results: list[dict], video_ids: list[int] | None = None) -> VideoMetric:
    category_ids = [category["id"] for category in ground_truth["categories"]]
    metric = VideoMetric(ground_truth, category_ids)
    for video in ground_truth["videos"]:
        if video_ids is None or video["id"] in video_ids:
            entries = [entry for entry in results if entry["video_id"] == video["id"]]
            metric.update([video["id"]], [tracks_of(video, entries, category_ids)])
    return metric


def test_equals_official_numbers(shared):
    folder = shared / "metrics" / "video_instance"
    ground_truth, results, expected = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "results", "expected")
    )
    metrics = metric_of(ground_truth, results).compute()

    assert [metrics[name] for name in SUMMARY] == pytest.approx(expected["stats_list"], abs=1e-9)
    names = set()
    for category in expected["per_category"].values():
        names.add(category["name"])
        for number in ("AP", "AP50", "AP75", "AR100"):
            assert metrics[f"{number}/{category['name']}"] == pytest.approx(category[number], abs=1e-9)
    others = [category["name"] for category in ground_truth["categories"] if category["name"] not in names]
    assert {metrics[f"AP/{name}"] for name in others} == {-1}


def squares(*corners: tuple[int, int] | None) -> torch.Tensor:
    """[T, 20, 30]: a track of squares of 8 pixels; None where it is not visible."""
    masks = torch.zeros(len(corners), 20, 30, dtype=torch.bool)
    for mask, corner in zip(masks, corners, strict=True):
        if corner is not None:
            mask[corner[0] : corner[0] + 8, corner[1] : corner[1] + 8] = True
    return masks


def data_set(*tracks: torch.Tensor, crowd: int = 0) -> dict:
    """One video a track, of class 5."""
    annotations = []
    for number, masks in enumerate(tracks):  # the first has id 0
        annotations.append({"id": number, "iscrowd": crowd, **video_results(number, found(masks), len(masks), [5])[0]})
    videos = [{"id": i, "length": len(masks), "height": 20, "width": 30} for i, masks in enumerate(tracks)]
    return {"videos": videos, "annotations": annotations, "categories": [{"id": 5, "name": "fish"}]}


def found(*tracks: torch.Tensor) -> list[Track]:
    scores = torch.linspace(0.9, 0.5, len(tracks))
    return as_tracks(ClipTracks(scores, torch.zeros(len(tracks), dtype=torch.int64), torch.stack(tracks)))


def metrics_of(ground_truth: dict, tracks: list[Track]) -> dict[str, float]:
    metric = VideoMetric(ground_truth, [5])
    metric.update([0], [tracks])
    return metric.compute()


def test_overlap_is_of_all_frames_together():
    truth = data_set(squares((0, 0), (0, 10), None, (10, 20)))
    assert metrics_of(truth, found(squares((0, 0), (0, 10), None, (10, 20))))["AP"] == pytest.approx(1)
    # Two of four visible squares agree: IoU 2 / 4 with the other object, although two frames are perfect.
    switched = squares((0, 0), (0, 10), (0, 0), None)
    assert metrics_of(truth, found(switched))["AP50"] == pytest.approx(1)
    assert metrics_of(truth, found(switched))["AP75"] == 0
    assert metrics_of(truth, found(squares(None, None, None, None)))["AP"] == 0


def test_overlap_equals_that_of_whole_tracks():
    random = np.random.default_rng(0)
    tracks = random.random((9, 7, 12, 15)) < 0.6
    tracks &= random.random((9, 7, 1, 1)) < 0.7
    tracks[4] = tracks[7] = False
    masks = [one.masks for one in found(*torch.from_numpy(tracks))]
    masks[4] = {2: rle.encode(torch.zeros(1, 12, 15, dtype=torch.bool))[0]}  # as results files may have it
    ours, theirs = tracks[:5, None], tracks[None, 5:]
    both, either = ((ours & theirs).sum((2, 3, 4)), (ours | theirs).sum((2, 3, 4)))
    np.testing.assert_array_equal(track_ious(masks[:5], masks[5:]), both / np.maximum(either, 1))
    assert track_ious(masks, []).shape == (9, 0)
    assert track_ious([], masks).shape == (0, 9)


def test_crowds_excuse_by_overlap():
    crowd = squares((0, 0), (0, 0))
    crowd[:, :16, :20] = True
    truth = data_set(squares((0, 0)), crowd, crowd=0)
    truth["annotations"][1]["iscrowd"] = 1
    inside = squares((0, 0), (0, 0))  # within the crowd, but with a small overlap: an error
    metric = VideoMetric(truth, [5])
    metric.update([0, 1], [[replace(found(squares((0, 0)))[0], score=0.5)], found(inside)])
    assert metric.compute()["AP50"] == pytest.approx(0.5)
    metric.update([1], [found(crowd)])
    assert metric.compute()["AP50"] == pytest.approx(1)


def test_results_can_be_read_back():
    tracks = [squares((0, 0), None, (3, 5)), squares(None, (12, 20), (3, 3))]
    entries = json.loads(json.dumps(video_results(7, found(*tracks), 3, [5])))
    assert [entry["video_id"] for entry in entries] == [7, 7]
    assert [[frame is None for frame in entry["segmentations"]] for entry in entries] == [
        [False, True, False],
        [True, False, False],
    ]
    for masks, entry in zip(tracks, entries, strict=True):
        np.testing.assert_array_equal(decode_frames(entry["segmentations"], 20, 30), masks.numpy())


def test_frames_as_polygons():
    polygon = [[2.0, 3.0, 12.0, 3.0, 12.0, 9.0, 2.0, 9.0]]
    masks = decode_frames([None, polygon], 20, 30)
    assert not masks[0].any()
    assert masks[1].sum() == masks[1, 3:9, 2:12].sum() == 60


def test_ground_truth_is_left_as_it_was_and_computing_twice_gives_the_same():
    truth = data_set(squares((0, 0), (1, 1)))
    before = json.dumps(truth)
    metric = VideoMetric(truth, [5])
    metric.update([0], [found(squares((0, 0), (2, 3)))])
    assert metric.compute() == metric.compute()
    assert json.dumps(truth) == before
    metric.reset()
    metric.update([0], [[]])
    assert metric.compute()["AP"] == 0


def evaluate_share(rank: int, rendezvous: str, queue) -> None:
    """One of two processes: both have video 1, as with a sampler that pads the last batch."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    queue.put(metrics_of_videos([[0, 1], [1, 2]][rank]))
    dist.destroy_process_group()


def metrics_of_videos(video_ids: list[int]) -> dict[str, float]:
    metric = VideoMetric(data_set(*[squares((0, 0), (5, number)) for number in range(3)]), [5])
    for number in video_ids:
        metric.update([number], [found(squares((0, 0), (5, 0)), squares((0, number), (5, 2)))])
    return metric.compute()


@pytest.mark.slow
def test_two_processes_get_the_metrics_of_one(tmp_path):
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(evaluate_share, args=(str(tmp_path / "rendezvous"), queue), nprocs=2)
    expected = metrics_of_videos([0, 1, 2])
    assert 0 < expected["AP"] < 1
    assert [queue.get(), queue.get()] == [expected, expected]


def test_ids_beyond_doubles_are_kept_apart(shared):
    """2**53 and 2**53 + 1 are the same double."""
    folder = shared / "metrics" / "video_instance"
    ground_truth, results = (json.loads((folder / f"{name}.json").read_text()) for name in ("gt", "results"))
    expected = metric_of(ground_truth, results).compute()
    for record in (*ground_truth["videos"], *ground_truth["categories"]):
        record["id"] += 2**53
    for record in (*ground_truth["annotations"], *results):
        record["video_id"] += 2**53
        record["category_id"] += 2**53
    assert metric_of(ground_truth, results).compute() == expected


def test_without_tracks_or_categories_nothing_is_defined():
    video = {"id": 1, "height": 20, "width": 30, "length": 1}
    for categories in ([{"id": 1, "name": "cat"}], []):
        metric = VideoMetric({"videos": [video], "categories": categories, "annotations": []}, [1])
        metric.update([1], [[]])
        assert {metric.compute()[name] for name in SUMMARY} == {-1}
