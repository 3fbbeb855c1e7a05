"""Shards: the items and trainings of the same set in COCO's format, in any order, from a disk or over HTTP."""

import http.server
import json
import os
import pickle
import re
import shutil
import tarfile
import threading
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from opening import error_of, opened

import own_data
from dqdet.config import resolve
from dqdet.config.effects import unused
from dqdet.data.conversion import write_shards
from dqdet.data.loader import make_loader
from dqdet.errors import DqdetError
from dqdet.formats import remote

SPLITS = ("train", "val")
SMALL: dict[str, Any] = {"resize": [64], "max_size": 96, "val_resize": 64, "crop": False}
opened_shards = partial(opened, kind="webdataset")
error_of_shards = partial(error_of, kind="webdataset")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dqdet" / "shards"


@pytest.fixture(scope="module")
def whole(shared, tmp_path_factory) -> Path:
    """BCCD in shards of at most a MiB of images."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    write_shards({split: opened(shared / "data" / "bccd", split) for split in SPLITS}, out, 2**20)
    return out


@pytest.fixture(scope="module")
def few(shared, tmp_path_factory) -> dict[str, Path]:
    """Some images of each split as COCO has them and in three shards or more."""
    root = own_data.write(tmp_path_factory.mktemp("few") / "coco", "coco", shared, images=12)
    write_shards({split: opened(root, split) for split in SPLITS}, root.parent / "shards", 100_000)
    return {"coco": root, "webdataset": root.parent / "shards"}


@pytest.fixture
def shards(few, tmp_path) -> Path:
    """A copy of the few that can be changed."""
    return Path(shutil.copytree(few["webdataset"], tmp_path / "shards"))


def same_items(one, other) -> None:
    assert len(one) == len(other)
    for index in range(len(one)):
        (image, target), (other_image, other_target) = one[index], other[index]
        assert torch.equal(image, other_image)
        for field in ("labels", "boxes"):
            assert torch.equal(getattr(target, field), getattr(other_target, field))
        same = ("size", "original_size", "image_id")
        assert [getattr(target, name) for name in same] == [getattr(other_target, name) for name in same]


@pytest.mark.parametrize("split", SPLITS)
def test_bccd_has_the_items_and_the_ground_truth_of_its_coco_form(shared, whole, split):
    """Augmented in training: the draws depend on seed, epoch and item alone."""
    expected, found = opened(shared / "data" / "bccd", split, **SMALL), opened_shards(whole, split, **SMALL)
    assert len(list(whole.glob(f"{split}-*.tar"))) > 1
    assert (found.classes, found.category_ids) == (expected.classes, expected.category_ids)
    np.testing.assert_array_equal(found.aspect_ratios, expected.aspect_ratios)
    for dataset in (expected, found):
        dataset.set_epoch(3)
    same_items(found, expected)
    truth, other = found.ground_truth(), expected.ground_truth()
    for kind in ("images", "categories", "annotations"):
        pairs = zip(truth[kind], other[kind], strict=True)
        # What else COCO's files may say of images and objects, such as licences, is not needed.
        assert all(one == another if kind == "categories" else one.items() <= another.items() for one, another in pairs)
    assert {"id", "bbox", "area", "iscrowd", "image_id", "category_id"} <= truth["annotations"][0].keys()


def with_masks(root: Path) -> Path:
    """Two images with a polygon, an RLE of a crowd, and one without objects."""
    document = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 40, "width": 60} for n in (7, 3)],
        "categories": [{"id": 9, "name": "bee"}, {"id": 4, "name": "ant"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [5, 5, 20, 10], "segmentation": [[5, 5, 25, 5, 25, 15]]},
            {
                **{"id": 2, "image_id": 7, "category_id": 4, "bbox": [0, 0, 60, 40], "iscrowd": 1, "area": 2400},
                "segmentation": {"size": [40, 60], "counts": [0, 2400]},
            },
        ],
    }
    for split in SPLITS:
        pictures = root / "images" / split
        pictures.mkdir(parents=True)
        for image in document["images"]:
            PIL.Image.new("RGB", (60, 40), (image["id"], 0, 0)).save(pictures / image["file_name"])
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))
    return root


def test_masks_crowds_and_ids_are_kept_also_by_a_new_index(tmp_path):
    root, out = with_masks(tmp_path / "coco"), tmp_path / "out"
    write_shards({split: opened(root, split) for split in SPLITS}, out)
    for anew in (False, True):
        if anew:
            for index in out.glob("index-*.json"):
                index.unlink()
        expected, found = opened(root, "val", task="instance"), opened_shards(out, "val", task="instance")
        assert (found.classes, found.image_ids) == (["ant", "bee"], [3, 7])
        assert found.category_ids == ([1, 2] if anew else [4, 9])  # classes.txt has no ids
        for index in range(2):
            (image, target), (other_image, other) = found[index], expected[index]
            assert torch.equal(image, other_image)
            assert torch.equal(target.masks, other.masks)
        assert [one["iscrowd"] for one in found.ground_truth()["annotations"]] == [0, 1]
        assert len(opened_shards(out, "train", task="instance", skip_empty=True)) == 1


def test_shards_are_recognised_checked_and_converted_back(run, few, tmp_path):
    shards = tmp_path / "shards"
    status, printed, err = run("data", "convert", few["coco"], "--to", "webdataset", "--out", shards)
    assert (status, err) == (0, "")
    assert printed == f"{shards}: coco as webdataset, train 12 images, val 12 images, 3 classes\n"
    status, out, err = run("data", "check", shards)
    assert (status, err) == (0, "")
    assert re.search(r"images +│ 12 +│ 12", out)
    status, _, err = run("data", "convert", shards, "--out", tmp_path / "back")
    assert (status, err) == (0, "")
    for split in SPLITS:
        same_items(opened(tmp_path / "back", split, **SMALL), opened(few["coco"], split, **SMALL))
        for file in (few["coco"] / "images" / split).iterdir():
            assert (tmp_path / "back" / "images" / split / file.name).read_bytes() == file.read_bytes()


def test_images_of_every_format_are_found_in_their_shards(tmp_path):
    """Whatever their names are: shards have those of a list of suffixes, and Pillow reads more formats."""
    names = ["a.jp2", "b.avif", "c.gif", "d.jfif", "e.tga", "f", "g.h.png"]
    for split in SPLITS:
        folder = tmp_path / "coco" / split
        folder.mkdir(parents=True)
        for name in names:
            PIL.Image.new("RGB", (60, 40)).save(folder / name, None if "." in name else "JPEG2000")
        document = {
            "images": [{"id": n, "file_name": name, "height": 40, "width": 60} for n, name in enumerate(names)],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [],
        }
        (folder / "_annotations.coco.json").write_text(json.dumps(document))
    out = tmp_path / "shards"
    write_shards({split: opened(tmp_path / "coco", split) for split in SPLITS}, out)
    found = opened_shards(out, "val")
    assert found.images.file_names.tolist() == names
    assert found.file_faults() == []
    suffixes = [Path(found.images.stored(index).name).suffix for index in range(len(names))]
    assert suffixes == [".jp2", ".avif", ".gif", ".jfif", ".jpg", ".jp2", ".png"]


@pytest.mark.slow
def test_two_workers_read_the_batches_of_none(few):
    batches = []
    for workers in (0, 2):
        loader = make_loader(opened_shards(few["webdataset"], **SMALL), batch=4, train=True, seed=1, workers=workers)
        loader.batch_sampler.set_epoch(2)
        batches.append(list(loader))
    assert len(batches[0]) == 3
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images)
        assert [target.image_id for target in one.targets] == [target.image_id for target in other.targets]


@pytest.fixture
def served(few, monkeypatch):
    """The address of the few, and what was asked for; ``server.ranges`` can be turned off, answers made to fail."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    asked: list[tuple[str, str | None]] = []
    state = {"ranges": True, "failing": 0, "missing": 404}

    class Handler(http.server.SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=few["webdataset"])

        def do_GET(self):
            given = self.headers.get("Range")
            asked.append((self.path, given))
            if state["failing"]:
                state["failing"] -= 1
                return self.send_error(503)
            file = Path(self.translate_path(self.path))
            if not file.is_file():
                return self.send_error(state["missing"])
            if not (given and state["ranges"]):
                return super().do_GET()
            content = file.read_bytes()
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", given).groups())
            part = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)
            return None

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked, state
        server.shutdown()
        remote._client.cache_clear()


def images_asked(asked) -> int:
    """Parts that are more than the first byte, which tells the length of a shard."""
    return sum(given not in (None, "bytes=0-0") for _, given in asked)


def test_shards_behind_an_address_give_the_same_and_each_image_is_fetched_once(run, few, served, cache):
    address, asked, state = served
    found = opened_shards(address, "val", **SMALL)
    state["failing"] = 2  # passes
    same_items(found, opened(few["coco"], "val", **SMALL))
    assert images_asked(asked) == 12 + 2
    same_items(opened_shards(address, "val", **SMALL), found)
    assert images_asked(asked) == 12 + 2
    copies = [file for file in cache.rglob("*") if re.fullmatch(r"\d+-[0-9a-f]{8}", file.name)]
    assert len(copies) == 12
    copies[0].write_bytes(b"damaged")
    same_items(opened_shards(address, "val", **SMALL), found)
    assert images_asked(asked) == 12 + 3
    status, out, err = run("data", "check", address)
    assert (status, err) == (0, "")
    assert re.search(r"images +│ 12 +│ 12", out)


@pytest.mark.slow
def test_workers_fetch_too(served):
    loader = make_loader(opened_shards(served[0], "val", **SMALL), batch=4, train=False, workers=2)
    assert sorted(target.image_id for batch in loader for target in batch.targets) == sorted(loader.dataset.image_ids)


def test_no_more_copies_are_kept_than_allowed(served, cache):
    address = served[0]
    lengths = opened_shards(address, "val").images.shards.lengths
    for allowed in (0, int(lengths[:3].sum())):
        shutil.rmtree(cache)
        dataset = opened_shards(address, "val", cache=allowed / 2**30)
        for index in range(len(dataset)):
            dataset.read(index)
        copies = [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".json"]
        assert sum(file.stat().st_size for file in copies) == allowed


def test_a_server_without_parts_or_without_the_shards_is_named(served, few):
    address, _, state = served
    message = error_of_shards(address, "val", val="valid")
    assert message.startswith(f"{address}: no shards of the val split; looked for index-valid.json")
    state["failing"] = remote.TRIES
    assert "cannot be fetched (503" in error_of_shards(address, "val")
    state["ranges"] = False
    assert f"{address}/val-000000.tar: the server does not give parts of files" in error_of_shards(address, "val")
    assert "cannot be fetched" in error_of_shards("http://127.0.0.1:1", "val")


@pytest.mark.parametrize("status", ["403 Forbidden", "404", "410 Gone"])
def test_a_name_that_a_server_does_not_have_is_passed_over_whatever_it_says(served, status):
    """Those of COCO are the first that are looked for."""
    address, asked, state = served
    state["missing"] = int(status[:3])
    assert len(opened_shards(address, "train")) == 12
    assert asked[0][0] == "/index-train2017.json"
    with pytest.raises(DqdetError) as caught:  # as processes of a loader pass it on
        remote.read_part(f"{address}/gone", 0, 1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    shown = "" if status == "404" else f" ({status})"
    assert error_of_shards(address, "val", val="holdout").startswith(
        f"{address}: no shards of the val split; looked for index-holdout.json{shown}, which `dqdet data check` "
    )


def test_messages_about_shards_behind_an_address_have_no_password(served):
    address, _, state = served
    private = address.replace("//", "//ada:secret@")
    assert "secret" not in error_of_shards(private, "val", val="valid")
    state["failing"] = 10
    for read in (remote.read_whole, lambda address: remote.read_part(address, 0, 1)):
        with pytest.raises(DqdetError) as caught:
            read(f"{private}/val-000000.tar")
        assert str(caught.value).startswith(f"{address}/val-000000.tar: cannot be fetched (503")


def test_what_to_do_about_shards_behind_an_address_is_to_be_done_there(served, few, shards, monkeypatch):
    """No index is made anew there."""
    address, _, state = served
    state["ranges"] = False
    assert error_of_shards(address, "val").endswith("or copy the files to a disk")
    state["ranges"] = True
    index = (shards / "index-val.json").read_bytes()
    for content, message in (
        (b"<html>", f"{address}/index-val.json: is no index of shards, as it is no object of JSON"),
        (index.replace(b'"bytes": ', b'"bytes": 9'), "; copy the shards and their index there again"),
    ):
        monkeypatch.setattr("dqdet.data.webdataset.read_whole", lambda address, content=content: content)
        assert message in error_of_shards(address, "val", val="val")


def webdataset(root: Path, split: str, samples: dict[str, tuple[dict | None, bool]], number: int = 0) -> Path:
    """A shard as others write it: of each key the JSON and whether there is an image; and a file of another kind."""
    root.mkdir(exist_ok=True)
    picture = BytesIO()
    PIL.Image.new("RGB", (60, 40), "teal").save(picture, "JPEG")
    shard = root / f"{split}-{number:06}.tar"
    with tarfile.open(shard, "w") as tar:
        for key, (record, image) in samples.items():
            files = {"cls": b"3"}
            files |= {"JPG": picture.getvalue()} if image else {}
            files |= {} if record is None else {"json": json.dumps(record).encode()}
            for suffix, content in files.items():
                info = tarfile.TarInfo(f"deep.er/{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, BytesIO(content))
    return shard


def record(*categories: str) -> dict:
    return {"height": 40, "width": 60, "objects": [{"bbox": [5, 5, 9, 9], "category": name} for name in categories]}


@pytest.mark.parametrize("writable", [True, False])
def test_shards_of_others_are_indexed_once(tmp_path, writable, monkeypatch, cache):
    root = tmp_path / "shards"
    webdataset(root, "train", {"a": (record("dog", "cat"), True), "b": (record(), True)}, 10)
    webdataset(root, "train", {"c": (record("cat"), True)}, 9)
    webdataset(root, "val", {"a": (record("eel"), True)})
    if not writable:
        monkeypatch.setattr("dqdet.data.webdataset.index_file", only_in(cache, root))
    dataset = opened_shards(root, "train")
    assert dataset.classes == ["cat", "dog", "eel"]  # of both splits
    assert dataset.images.file_names.tolist() == ["deep.er/c.JPG", "deep.er/a.JPG", "deep.er/b.JPG"]
    assert [len(dataset[n][1].labels) for n in range(3)] == [1, 2, 0]
    assert {file.name for file in root.iterdir() if file.suffix == ".json"} == (
        {"index-train.json"} if writable else set()
    )
    monkeypatch.setattr("dqdet.data.webdataset.scan", None)
    assert opened_shards(root, "train").image_ids == [1, 2, 3]
    if not writable:  # of other files it is another one
        os.utime(root / "val-000000.tar", (0, 0))
        with pytest.raises(TypeError):
            opened_shards(root, "train")


def only_in(cache: Path, root: Path):
    """As a user who may not write beside the shards, which the one of tests often may."""

    def place(folder: Path, name: str) -> Path:
        return Path("/proc/none/index.json") if folder == root else folder / f"index-{name}.json"

    return place


def test_all_that_is_wrong_with_samples_of_others_is_named_with_shard_and_file(tmp_path):
    samples = {
        **{"a": (None, True), "b": (record("cat"), False), "c": ({"width": 1}, True)},
        "d": ({**record(), "objects": [{"bbox": [0, 0, 1, 1]}]}, True),
    }
    webdataset(tmp_path, "train", samples)
    message = error_of_shards(tmp_path)
    assert message.startswith(f"{tmp_path}: bad entries (2): ")
    assert "train-000000.tar: deep.er/a.JPG has no annotations, deep.er/a.json" in message
    assert "train-000000.tar: deep.er/b.json has no image of that name" in message
    samples.pop("a"), samples.pop("b")
    webdataset(tmp_path, "train", samples)
    message = error_of_shards(tmp_path)
    assert "train-000000.tar: deep.er/c.json has no height" in message
    assert "train-000000.tar: deep.er/d.json object 1 has no name as category" in message
    odd = record("cat")
    odd["objects"][0]["bbox"] = [1, 2]
    webdataset(tmp_path, "train", {"e": (odd, True)})
    assert "train-000000.tar: deep.er/e.json object 1 has a bbox that is not 4 finite" in error_of_shards(tmp_path)
    assert not (tmp_path / "cache").exists()


def test_keys_of_others_may_have_dots_unless_files_of_a_sample_accompany_it(tmp_path):
    samples = {"b_1.5s": (record("cat"), True), "img.rf.0a": (record("cat"), True), "c": (record("cat"), True)}
    samples |= {"c.mask": (None, True), "._c": (None, True)}
    webdataset(tmp_path, "train", samples)
    names = opened_shards(tmp_path).images.file_names.tolist()
    assert names == ["deep.er/b_1.5s.JPG", "deep.er/img.rf.0a.JPG", "deep.er/c.JPG"]
    webdataset(tmp_path, "val", {"b_1.5s": (record("cat"), False)})
    assert "val-000000.tar: deep.er/b_1.5s.json has no image of that name" in error_of_shards(tmp_path, "val")


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("left", [0.5, 0.999, 1.0])  # 1.0: without the zeros at the end
def test_a_shard_cut_short_is_named(shards, indexed, left):
    shard = shards / "train-000001.tar"
    if not indexed:
        (shards / "index-train.json").unlink()
    size = shard.stat().st_size
    content = shard.read_bytes()
    end = len(content.rstrip(b"\0"))  # of the last file; zeros follow
    os.truncate(shard, int(end * left))
    message = error_of_shards(shards)
    assert str(shard) in message
    assert "cut short" in message
    if indexed:
        assert f"has {int(end * left)} bytes instead of {size}" in message


def test_an_index_of_other_shards_is_named(shards, run):
    """Of the same length, so that only reading tells."""
    shard = shards / "train-000000.tar"
    content = bytearray(shard.read_bytes())
    member = opened_shards(shards).images.stored(0)
    content[member.offset : member.offset + 20] = bytes(20)
    shard.write_bytes(content)
    dataset = opened_shards(shards)
    with pytest.raises(DqdetError, match=f"^{shard}: 000000000.jpg: is not what the index") as caught:
        dataset[0]
    assert "\n" not in str(caught.value)
    status, _, err = run("data", "check", shards)
    assert status == 1
    assert f"error: {shard}: 000000000.jpg cannot be read as an image" in err
    shard.unlink()
    assert f"{shard}: cannot be read (No such file or directory)" in error_of_shards(shards)
    (shards / "index-train.json").write_text('{"images": [1], "categories": [1], "annotations": []}')
    assert "index-train.json: is no index of shards (has no" in error_of_shards(shards)


@pytest.mark.parametrize(
    ("entry", "value", "fault"),
    [
        ("lengths", 10**15, "has images beyond the end of their shard"),
        ("offsets", 10**9, "has images beyond the end of their shard"),
        ("offsets", None, "int() argument must be"),
        ("offsets", 10**30, "too large"),
        ("bytes", 10**30, "too large"),
    ],
)
def test_an_index_with_impossible_places_is_named(shards, entry, value, fault):
    """Where it alone says how much is read, an image might ask for more memory than there is."""
    index = shards / "index-train.json"
    document = json.loads(index.read_text())
    shard = document["shards"][0]
    shard.update(bytes=value) if entry == "bytes" else shard[entry].__setitem__(0, value)
    index.write_text(json.dumps(document))
    message = error_of_shards(shards)
    assert message.startswith(f"{index}: is no index of shards (")
    assert fault in message


def test_a_shard_that_came_after_the_index_is_not_left_out(shards):
    shutil.copy(shards / "train-000000.tar", shards / "train-000100.tar")
    index = shards / "index-train.json"
    assert error_of_shards(shards) == (
        f"{index}: does not know train-000100.tar; remove the index, which is then made anew"
    )
    opened_shards(shards, "val")
    index.unlink()
    message = error_of_shards(shards)
    assert "train-000100.tar: 000000000.json has the id 1, which another sample has already" in message
    assert "index" not in message


def test_a_class_that_came_after_the_index_of_another_split_is_told_with_what_to_do(tmp_path):
    webdataset(tmp_path, "train", {"a": (record("cat"), True)})
    webdataset(tmp_path, "val", {"a": (record("cat"), True)})
    for split in SPLITS:
        opened_shards(tmp_path, split)
    webdataset(tmp_path, "train", {"b": (record("new"), True)}, 1)
    (tmp_path / "index-train.json").unlink()
    assert error_of_shards(tmp_path) == (
        f"{tmp_path}/index-val.json: does not have the classes new of the train shards; correct these, or remove all "
        "indices (index-*.json), which are then made anew"
    )
    (tmp_path / "index-val.json").unlink()
    assert [opened_shards(tmp_path, split).classes for split in SPLITS] == [["cat", "new"]] * 2


def test_ids_of_objects_need_not_differ_from_those_in_other_samples(tmp_path):
    two = record("cat", "cat")
    for number, one in enumerate(two["objects"]):
        one["id"] = number
    webdataset(tmp_path, "train", {"a": (two, True), "b": (two, True)})
    annotations = opened_shards(tmp_path).ground_truth()["annotations"]
    assert [one["id"] for one in annotations] == [1, 2, 3, 4]


def test_what_is_no_shard_is_named_and_has_no_index(tmp_path):
    """An index would outlive the faults of its shards."""
    shard = webdataset(tmp_path, "train", {"a": (record("cat"), True)})
    content = shard.read_bytes()
    odd = record("cat")
    odd["objects"][0]["bbox"] = [0, 0, None, 1]
    for make, fault in (
        (lambda: shard.write_bytes(bytes(10240)), "train-000000.tar has no samples"),
        (lambda: webdataset(tmp_path, "train", {"a": (odd, True)}), "a.json object 1 has a bbox that is not"),
        (lambda: shard.symlink_to("nowhere"), "train-000000.tar: cannot be read (No such file"),
        (lambda: os.mkfifo(shard), "train-000000.tar: is no file"),
        (shard.mkdir, "train-000000.tar: is no file"),
    ):
        shard.unlink()
        make()
        assert fault in error_of_shards(tmp_path)
    shard.rmdir()
    shard.write_bytes(content)
    assert len(opened_shards(tmp_path, "train")) == 1


def test_a_member_that_is_no_image_is_named(tmp_path):
    root = tmp_path / "shards"
    shard = webdataset(root, "train", {"a": (record("cat"), True)})
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"\xff\xd8\xff", b"no!"))
    with pytest.raises(DqdetError, match=f"^{shard}: deep.er/a.JPG: cannot be read as an image"):
        opened_shards(root)[0]
    shutil.rmtree(root)
    webdataset(root, "test", {"a": (record("cat"), True)})
    assert "no shards of the train split; looked for train2017-000000.tar, train-000000.tar" in error_of_shards(root)


def test_what_other_formats_do_not_read_is_said():
    def without(**options) -> str:
        return " ".join(unused(resolve("deformable_detr_r50", {f"data.{n}": v for n, v in options.items()}), OPTIONS))

    OPTIONS = ("data.cache", "data.val_share", "data.skip_empty")
    assert "data.cache" in without(kind="coco")
    of_shards = without(kind="webdataset")
    assert "data.val_share" in of_shards
    assert "data.cache" not in of_shards
    assert "data.skip_empty" not in of_shards
