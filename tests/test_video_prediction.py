"""Video files in, annotated videos and results of YouTube-VIS out."""

import json
import re
import struct
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dqdet.config import Config, DataConfig, InferenceConfig, MaskLossConfig, VideoMask2FormerConfig
from dqdet.data import open_dataset
from dqdet.drawing.pictures import PALETTE
from dqdet.errors import DqdetError
from dqdet.formats import rle
from dqdet.inference.windows import WindowTracks, best_tracks
from dqdet.models import create_model
from dqdet.nn.product_masks import ProductMasks
from dqdet.predict.frames import VideoFile, is_video_file, open_video, video_writer
from dqdet.predict.predictor import Predictor
from dqdet.predict.submission import submit, write_submission
from dqdet.predict.videos import find_tracks, predict_video
from dqdet.runs.folder import save_folder
from dqdet.training.task_metrics import make_metric
from dqdet.types import ClipTracks, Predictions, Track
from test_predictor import ColourFinder
from test_predictor import config as boxes_config
from test_segmentation_results import ColourSegmenter, evaluated
from test_segmentation_results import predictor as image_predictor
from tiny import tiny_family
from whole_tracks import decode_frames, whole

WIDTH, HEIGHT = 96, 64


class ClipSegmenter(ColourSegmenter):
    """Query 0 is what is red in any frame of a clip, query 1 what is blue. Remembers the lengths of clips."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.lengths: list[int] = []

    def forward(self, images: Tensor, padding: Tensor) -> Predictions:
        assert not padding.any()
        self.lengths.append(images.shape[1])
        of_frames = super().forward(images.flatten(0, 1), padding.repeat_interleave(images.shape[1], 0))
        return Predictions(
            of_frames.logits[:, :1, :2, [0, 1, 3]],
            None,
            groups={"modulated": 2},
            masks=ProductMasks(
                of_frames.masks.embeddings[:, :1, :2], of_frames.masks.features.unflatten(0, images.shape[:2])
            ),
        )


@pytest.fixture
def predictor() -> Predictor:
    config = Config(
        preset="test",
        model=VideoMask2FormerConfig(),
        loss=MaskLossConfig(),
        data=DataConfig(kind="youtube_vis", task="video", val_resize=HEIGHT, max_size=WIDTH),
        inference=InferenceConfig(window=6, limit=2),
        classes=["red", "blue"],
        category_ids=[3, 40],
    )
    return Predictor(ClipSegmenter(), config, device="cpu")


def box(name: str, t: int) -> tuple[int, int, int, int] | None:
    """Red moves to the right, blue comes late."""
    if name == "red":
        return (4 + 3 * t, 8, 28 + 3 * t, 32)
    return (60, 36, 84, 60) if t >= 4 else None


def frame(t: int) -> Image.Image:
    image = Image.new("RGB", (WIDTH, HEIGHT), "black")
    for name in ("red", "blue"):
        if box(name, t):
            image.paste(name, box(name, t))
    return image


def encode(file, frames, codec="libx264", rate=10, **options):
    with av.open(file, "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "1", "bf": "0"} if codec == "libx264" else {})
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for name, value in options.items():
            getattr(stream, name)(value)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file


@pytest.fixture
def clip(tmp_path):
    return encode(tmp_path / "clip.mp4", [frame(t) for t in range(15)])


def expected_masks(name: str) -> np.ndarray:
    masks = np.zeros((15, HEIGHT, WIDTH), dtype=bool)
    for t in range(15):
        if box(name, t):
            left, top, right, bottom = box(name, t)
            masks[t, top:bottom, left:right] = True
    return masks


def test_a_video_gives_results_and_an_annotated_video(predictor, clip, tmp_path, capfd):
    out = tmp_path / "new" / "out"
    predict_video(predictor, clip, out)
    assert capfd.readouterr().out == ""
    assert sorted(file.name for file in out.iterdir()) == ["clip.mp4", "results.json", "videos.json"]

    described = json.loads((out / "videos.json").read_text())
    assert described["videos"] == [{"id": 1, "name": "clip", "width": WIDTH, "height": HEIGHT, "length": 15}]
    assert [(category["id"], category["name"]) for category in described["categories"]] == [(3, "red"), (40, "blue")]
    results = json.loads((out / "results.json").read_text())
    assert {entry["video_id"] for entry in results} == {1}
    assert [entry["category_id"] for entry in results] == [3, 40]
    for entry, name in zip(results, ("red", "blue"), strict=True):
        masks, expected = decode_frames(entry["segmentations"], HEIGHT, WIDTH), expected_masks(name)
        assert (masks & expected).sum() / (masks | expected).sum() > 0.8
    assert [mask is None for mask in results[1]["segmentations"]] == [True] * 4 + [False] * 11

    written = VideoFile(out / "clip.mp4")
    assert (written.rate, written.size) == (10, (640, 426))  # enlarged, with even sides
    drawn = [np.array(image).astype(int) for image in written]
    assert len(drawn) == 15
    for t, picture in enumerate(drawn):
        for number, name in enumerate(("red", "blue"), 1):
            colour = np.array(PALETTE.by_idx(number).as_rgb())
            outline = (abs(picture - colour).max(-1) < 40).nonzero()
            if box(name, t) is None:
                assert len(outline[0]) < 200  # mixtures at the edges of letters
            else:
                left, top, right, bottom = (side * 640 / WIDTH for side in box(name, t))
                assert len(outline[0]) > 600
                assert left - 20 < np.median(outline[1]) < right + 20
                assert top - 20 < np.median(outline[0]) < bottom + 20


def test_the_video_goes_through_in_windows(predictor, clip):
    tracks, length = find_tracks(predictor, open_video(clip))
    assert length == 15
    assert max(predictor.model.lengths) == 6
    assert len(predictor.model.lengths) > 2
    assert [len(one.masks) for one in tracks] == [15, 11]


def test_a_folder_of_frames_is_a_video(predictor, clip, tmp_path):
    (tmp_path / "frames").mkdir()
    for t in range(15):
        frame(t).save(tmp_path / "frames" / f"{t:05d}.png")
    predict_video(predictor, tmp_path / "frames", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["frames.mp4", "results.json", "videos.json"]
    assert VideoFile(tmp_path / "out" / "frames.mp4").length == 15
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results) == 2


@pytest.mark.parametrize("still", ["one.png", "one.mp4"])
def test_one_frame_is_a_video(predictor, tmp_path, still):
    if still.endswith("png"):
        frame(5).save(tmp_path / still)
    else:
        encode(tmp_path / still, [frame(5)])
    predict_video(predictor, tmp_path / still, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [len(entry["segmentations"]) for entry in results] == [1, 1]
    assert len(list(VideoFile(tmp_path / "out" / "one.mp4"))) == 1


def test_image_models_detect_in_each_frame(clip, tmp_path):
    predict_video(image_predictor("panoptic"), clip, tmp_path / "out")
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert names == ["clip.mp4", "images.json", "panoptic", "panoptic.json", "results.json"]
    assert len(list((tmp_path / "out" / "panoptic").iterdir())) == 15
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == set(range(1, 16))
    assert len(list(VideoFile(tmp_path / "out" / "clip.mp4"))) == 15


@pytest.mark.parametrize("batch", [4, 100])
def test_frames_go_through_an_image_model_together(clip, tmp_path, batch):
    results = []
    for size in (1, batch):
        model = ColourFinder()
        predict_video(Predictor(model, boxes_config(), device="cpu", batch=size), clip, tmp_path / str(size))
        results.append([(tmp_path / str(size) / name).read_bytes() for name in ("results.json", "images.json")])
        assert model.batches == {1: [1] * 15, 4: [4, 4, 4, 3], 100: [15]}[size]
    assert results[0] == results[1]


def test_image_models_find_no_tracks(clip):
    with pytest.raises(DqdetError, match=r"data\.task=instance finds no tracks"):
        find_tracks(image_predictor("instance"), open_video(clip))


@pytest.mark.parametrize(
    "use",
    [Predictor.__call__, Predictor.coefficients, lambda *given: [*Predictor.predictions(*given)]],
    ids=["call", "coefficients", "predictions"],
)
def test_video_models_take_no_single_images(predictor, use):
    with pytest.raises(DqdetError, match="takes no single images"):
        use(predictor, frame(0))


def audio_only(file):
    with av.open(file, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())


def two_sizes(file):
    parts = []
    for size in ((WIDTH, HEIGHT), (64, 48)):
        encode(file, [frame(0).resize(size)] * 4, codec="mpeg2video", rate=25)
        parts.append(file.read_bytes())
    file.write_bytes(b"".join(parts))


def damaged(file):
    """The third of five frames is no picture."""
    with av.open(file, "w") as container:
        stream = container.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "rgb24"
        for t in range(5):
            container.mux(stream.encode(av.VideoFrame.from_image(frame(t))))
        container.mux(stream.encode())
    parts = file.read_bytes().split(b"\x89PNG")
    parts[3] = bytes(len(parts[3]))
    file.write_bytes(b"\x89PNG".join(parts))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("empty.mp4", lambda file: file.write_bytes(b""), "cannot be read as a video"),
        ("text.mp4", lambda file: file.write_text("no video" * 100), "cannot be read as a video"),
        ("sound.m4a", audio_only, "has no pictures, only audio"),
        ("absent.mp4", lambda file: None, "no such file"),
        ("folder", lambda file: file.mkdir(), "no images in this folder"),
    ],
)
@pytest.mark.parametrize("task", ["panoptic", "video"])
def test_bad_videos_are_named_and_nothing_is_left(predictor, tmp_path, name, make, message, task):
    make(tmp_path / name)
    with pytest.raises(DqdetError, match=message) as error:
        predict_video(predictor if task == "video" else image_predictor(task), tmp_path / name, tmp_path / "out")
    assert str(error.value).startswith(str(tmp_path / name))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def other_frames(folder):
    """The third of four frames has another size."""
    folder.mkdir()
    for t in range(4):
        frame(t).resize((50, 40) if t == 2 else (WIDTH, HEIGHT)).save(folder / f"{t}.png")


def cut_frames(folder):
    """The third of four frames is cut off."""
    folder.mkdir()
    for t in range(4):
        frame(t).save(folder / f"{t}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:100])


@pytest.mark.parametrize(
    ("name", "make", "message", "before"),
    [
        ("sizes.m2v", two_sizes, r"frame 4 is 64x48, the first one 96x64", 3),
        ("damaged.mov", damaged, "frame 3 cannot be decoded", 2),
        ("other", other_frames, r"2\.png: is 50x40, 0\.png 96x64", 2),
        ("cut", cut_frames, r"2\.png: cannot be read as an image", 2),
    ],
)
@pytest.mark.parametrize("task", ["panoptic", "video"])
def test_a_bad_frame_does_not_cost_those_before_it(predictor, tmp_path, name, make, message, before, task):
    make(tmp_path / name)
    model = predictor if task == "video" else image_predictor(task)
    (failure,) = predict_video(model, tmp_path / name, tmp_path / "out")
    assert str(failure).startswith(str(tmp_path / name))
    assert re.search(message, str(failure))
    assert str(failure).endswith(f"; only the {before} frames before it are done")
    assert "\n" not in str(failure)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    if task == "video":
        assert {len(entry["segmentations"]) for entry in results} == {before}
        assert json.loads((tmp_path / "out" / "videos.json").read_text())["videos"][0]["length"] == before
    else:
        assert {entry["image_id"] for entry in results} == set(range(1, before + 1))
    assert len(list(VideoFile(tmp_path / "out" / f"{Path(name).stem}.mp4"))) == before


def test_videos_are_turned_upright(tmp_path):
    image = frame(5)
    upright = encode(tmp_path / "upright.mp4", [image])
    turned = encode(tmp_path / "turned.mp4", [image.rotate(90, expand=True)], set_display_rotation=-90)
    first, second = (np.array(next(iter(VideoFile(file)))).astype(int) for file in (upright, turned))
    assert first.shape == second.shape
    assert abs(first - second).mean() < 5


MATRICES = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MIRRORED = [(-1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 0, -1), (0, -1, -1, 0)]


@pytest.mark.parametrize("matrix", MATRICES + MIRRORED)
def test_display_matrices_are_applied_in_full(tmp_path, matrix):
    """Pixel (x, y) is shown at (a x + c y, b x + d y), moved so that the picture begins at 0 (ISO/IEC 14496-12)."""
    file = encode(tmp_path / "phone.mp4", [frame(5)])
    content = bytearray(file.read_bytes())
    place = content.index(b"tkhd") + 44  # of the matrix, in a box of version 0
    assert struct.unpack_from(">9i", content, place) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    struct.pack_into(">9i", content, place, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    file.write_bytes(content)

    stored = np.array(frame(5)).astype(int)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    column, row = a * x + c * y, b * x + d * y
    column, row = column - column.min(), row - row.min()
    expected = np.zeros((row.max() + 1, column.max() + 1, 3), int)
    expected[row, column] = stored
    video = VideoFile(file)
    shown = np.array(next(iter(video))).astype(int)
    assert video.size == (shown.shape[1], shown.shape[0])
    assert shown.shape == expected.shape
    assert abs(shown - expected).mean() < 2


def test_frames_are_in_the_order_of_their_numbers_and_named(predictor, tmp_path):
    (tmp_path / "frames").mkdir()
    names = [f"{t + 1}.png" for t in range(11)]
    for t, name in enumerate(names):
        frame(t).save(tmp_path / "frames" / name)
    predict_video(predictor, tmp_path / "frames", tmp_path / "out")
    (described,) = json.loads((tmp_path / "out" / "videos.json").read_text())["videos"]
    assert described["file_names"] == names
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    masks, expected = decode_frames(results[0]["segmentations"], HEIGHT, WIDTH), expected_masks("red")[:11]
    assert (masks & expected).sum() / (masks | expected).sum() > 0.8

    predict_video(image_predictor("instance"), tmp_path / "frames", tmp_path / "images")
    images = json.loads((tmp_path / "images" / "images.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [*enumerate(names, 1)]


def recorded(file, times):
    """A file with frames at ``times``, in ms, that says nothing on their rate."""
    with av.open(file, "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for t, time in enumerate(times):
            picture = av.VideoFrame.from_image(frame(t % 10))
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    content = bytearray(file.read_bytes())
    place = content.index(b"\x23\xe3\x83")  # DefaultDuration, which becomes a Void element of the same length
    length = content[place + 3] & 0x7F
    content[place : place + 4] = bytes([0xEC, 0x80 | (length + 2), 0, 0])
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (np.arange(60) * 33 + np.arange(60) % 7, Fraction(59 * 1000, 59 * 33 + 3)),
        ([0], 6),
    ],
)
def test_a_file_without_a_rate_has_that_of_its_frames(tmp_path, times, expected):
    file = recorded(tmp_path / "screen.webm", list(map(int, times)))
    with av.open(file) as container:
        assert container.streams.video[0].average_rate in (None, 1000)
    assert VideoFile(file).rate == expected
    predict_video(Predictor(ColourFinder(), boxes_config(), device="cpu"), file, tmp_path / "out")
    assert VideoFile(tmp_path / "out" / "screen.mp4").rate == pytest.approx(expected, rel=1e-3)


def animated(file):
    first, *others = [frame(t) for t in range(5)]
    options = {"lossless": True} if file.suffix == ".webp" else {}
    first.save(file, save_all=True, append_images=others, duration=50, **options)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tiff"])
def test_animations_and_pages_are_videos(predictor, tmp_path, suffix):
    file = tmp_path / f"moving{suffix}"
    animated(file)
    assert is_video_file(file)
    video = open_video(file)
    assert (video.name, video.length, video.size) == ("moving", 5, (WIDTH, HEIGHT))
    assert video.rate == (6 if suffix == ".tiff" else 20)
    for t, image in enumerate(video):
        np.testing.assert_array_equal(np.array(image), np.array(frame(t)))
    predict_video(predictor, file, tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {len(entry["segmentations"]) for entry in results} == {5}


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_the_rate_of_an_animation_is_that_of_all_its_frames(tmp_path, suffix):
    first, *others = [frame(t) for t in range(11)]
    file = tmp_path / f"moving{suffix}"
    first.save(file, save_all=True, append_images=others, duration=[2000, *[100] * 10])
    assert open_video(file).rate == Fraction(11, 3)


def test_a_damaged_animation_has_the_rate_of_the_frames_before(tmp_path):
    file = tmp_path / "moving.png"
    first, *others = [frame(t) for t in range(5)]
    first.save(file, save_all=True, append_images=others, duration=50)
    parts = file.read_bytes().split(b"fdAT")
    parts[3] = parts[3][:4] + bytes(len(parts[3]) - 4)  # the fourth frame
    file.write_bytes(b"fdAT".join(parts))
    video = open_video(file)
    assert video.rate == 20
    frames = iter(video)
    assert len([next(frames) for _ in range(3)]) == 3
    with pytest.raises(DqdetError, match=r"moving\.png: cannot be read as an image"):
        next(frames)


def test_earlier_results_stay_when_a_video_is_bad(predictor, clip, tmp_path):
    out = tmp_path / "out"
    predict_video(predictor, clip, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    audio_only(tmp_path / "clip.m4a")
    with pytest.raises(DqdetError):
        predict_video(predictor, tmp_path / "clip.m4a", out)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_the_video_itself_is_not_overwritten(predictor, clip):
    before = clip.read_bytes()
    with pytest.raises(DqdetError, match="would be overwritten"):
        predict_video(predictor, clip, clip.parent)
    assert clip.read_bytes() == before


def test_unwritable_folder_is_named(predictor, clip, tmp_path):
    (tmp_path / "out").write_text("a file is in the way")
    with pytest.raises(DqdetError, match="out: cannot be written"):
        predict_video(predictor, clip, tmp_path / "out")


def test_writing_without_x264(monkeypatch, tmp_path):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with video_writer(tmp_path / "a.mp4", Fraction(30000, 1001)) as append:
        for t in range(3):
            append(frame(t))
    with av.open(tmp_path / "a.mp4") as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
        assert container.streams.video[0].average_rate == Fraction(30000, 1001)
    assert len(list(VideoFile(tmp_path / "a.mp4"))) == 3


def test_compressed_tracks_are_those_of_a_whole_video():
    generator = torch.Generator().manual_seed(0)

    def windows():
        start, number = 0, 0
        open_ids: list[int] = []
        for _ in range(6):
            kept = [one for one in open_ids if torch.rand((), generator=generator) < 0.6]
            new = list(range(number, number + 5 - len(kept)))
            number += len(new)
            open_ids = [*kept, *new]
            masks = torch.rand(5, 3, 8, 9, generator=generator) > 0.7
            masks &= torch.rand(5, 3, 1, 1, generator=generator) > 0.4
            labels = torch.tensor(open_ids) % 4
            yield WindowTracks(start, open_ids, ClipTracks(torch.rand(5, generator=generator), labels, masks))
            start += 3

    parts = list(windows())
    for limit in (1, 4, 100):
        expected, found = whole(parts, limit), best_tracks(parts, limit)
        assert [one.score for one in found] == pytest.approx(expected.scores.tolist(), rel=1e-5)
        assert [one.label for one in found] == expected.labels.tolist()
        for one, masks in zip(found, expected.masks, strict=True):
            np.testing.assert_array_equal(decode_frames([one.masks.get(t) for t in range(18)], 8, 9), masks)


@pytest.fixture
def youtube_vis(tmp_path):
    """Three videos of 4, 5 and 6 frames; the annotated masks lie a little beside the objects."""
    root = tmp_path / "youtube_vis"
    categories = [{"id": 3, "name": "red"}, {"id": 40, "name": "blue"}]
    document: dict = {"videos": [], "annotations": [], "categories": categories}
    for number, length in ((7, 4), (8, 5), (12, 6)):
        start = number - 7
        names = [f"{number}/{t:05d}.png" for t in range(length)]
        (root / "val" / "JPEGImages" / str(number)).mkdir(parents=True)
        for t, name in enumerate(names):
            frame(start + t).save(root / "val" / "JPEGImages" / name)
        size = {"width": WIDTH, "height": HEIGHT, "length": length}
        document["videos"].append({"id": number, "file_names": names, **size})
        for name, category_id in (("red", 3), ("blue", 40)):
            shown = torch.from_numpy(expected_masks(name))[start : start + length].roll(start + 1, 2)
            masks = [mask if seen.any() else None for mask, seen in zip(rle.encode(shown), shown, strict=True)]
            if any(masks):
                track = {"id": len(document["annotations"]) + 1, "video_id": number, "category_id": category_id}
                document["annotations"].append(track | {"segmentations": masks, "iscrowd": 0})
    (root / "val.json").write_text(json.dumps(document))
    return root


def test_submit_looks_at_the_headers_of_all_frames(youtube_vis, tmp_path):
    """Before it looks for tracks: the faulty frame is one of the last video's."""
    known = {"classes": ["red", "blue"], "category_ids": [3, 40]}
    data = {"data__root": str(youtube_vis), "data__val_resize": HEIGHT, "data__max_size": WIDTH}
    config = tiny_family("video_mask2former_r50", **data, **known)
    save_folder(tmp_path / "run", create_model(config), config, {})
    faulty = youtube_vis / "val" / "JPEGImages" / "12" / "00005.png"
    Image.new("RGB", (WIDTH + 1, HEIGHT)).save(faulty)
    with pytest.raises(DqdetError, match=r"^1 image files cannot be used: .*12/00005\.png.*data\.check=false"):
        submit(tmp_path / "run", tmp_path / "results.zip")
    with pytest.raises(DqdetError, match=rf"^{faulty}: is {WIDTH + 1} x {HEIGHT} pixels, but"):
        submit(tmp_path / "run", tmp_path / "results.zip", ["data.check=false", "data.workers=0"])


def test_a_submission_evaluates_like_the_videos_themselves(predictor, youtube_vis, tmp_path):
    config = predictor.config
    config.data.root = str(youtube_vis)
    dataset = open_dataset(config.data, "val")
    write_submission(predictor, dataset, tmp_path / "new" / "results.zip")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["results.zip"]

    metric = make_metric(config, dataset)
    direct = evaluated(predictor, dataset)
    with zipfile.ZipFile(tmp_path / "new" / "results.zip") as archive:
        assert archive.namelist() == ["results.json"]
        entries = json.loads(archive.read("results.json"))
    assert {entry["video_id"] for entry in entries} == {7, 8, 12}
    for video in dataset.ground_truth()["videos"]:
        found = [entry for entry in entries if entry["video_id"] == video["id"]]
        tracks = [
            Track(
                config.category_ids.index(entry["category_id"]),
                entry["score"],
                {frame: mask for frame, mask in enumerate(entry["segmentations"]) if mask is not None},
            )
            for entry in found
        ]
        metric.update([video["id"]], [tracks])
    assert 0.3 < direct["AP"] < 1
    assert metric.compute() == direct


@pytest.mark.slow
def test_the_memory_of_eval_and_submit_does_not_grow_with_the_length_of_a_video(tmp_path):
    """350 frames more have 231 MiB as they are read, and as much again for each copy."""
    script = Path(__file__).with_name("video_memory.py")
    peaks = []
    for length in (50, 400):
        command = [sys.executable, str(script), str(tmp_path / str(length)), str(length)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout))
    assert peaks[1] - peaks[0] < 80
