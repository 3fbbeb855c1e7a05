"""Shards: tar files ``train-000000.tar``, ... with the images of a split and their annotations, on a disk or the web.

A sample is an image and a JSON file of the same key, in COCO's words: ``width``, ``height`` and ``objects``, of which
each has ``bbox``, the name of its ``category``, and may have ``segmentation``, ``iscrowd`` and ``area``.

``index-train.json`` has all annotations as COCO has them, and where each image lies in the shards. So items are read in
any order: shuffling, several processes and resuming are those of all other data sets. ``dqdet data convert`` writes it;
of shards from elsewhere it is made when they are first opened, which reads all of them once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.data.annotations import Annotations, listed_classes
from dqdet.data.coco_faults import find_faults
from dqdet.data.coco_files import SPLIT_NAMES, CocoImages, refuse, root_of
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError, listed, printable
from dqdet.formats.image_headers import AT_ONCE
from dqdet.formats.records import image_fault, is_id, is_text, read_document
from dqdet.formats.remote import WithheldFile, is_address, public, read_whole
from dqdet.formats.shards import ANEW, REPAIR, Member, Sample, Shards, read_samples
from dqdet.formats.writing import replacing

SHARD = re.compile(r"(.+)-(\d+)\.tar")
OF_OBJECT = ("id", "bbox", "area", "iscrowd", "segmentation")  # that are the same in COCO's annotations
GIB = 2**30


def read_webdataset(config: DataConfig, split: Split, keys: Sequence[str] | None = None) -> Annotations:
    """The annotations of a split; ``keys``: what is needed of each, see `read_document`.

    Raises:
        DqdetError: there are no shards of the split, or no index of them can be read or made.
    """
    if config.root is not None and is_address(config.root):
        root, folder = config.root, _cache(config.root)
        index = _fetched(config, split, folder)
    else:
        place = root_of(config)
        root, folder = str(place), place
        name = _name(config, split, place)
        index = _index(place, name, masks=config.task == "instance")
    # The place of an object in its shard is for messages.
    document = read_document(index, keys=None if keys is None else (*keys, "place"))
    try:
        shards = Shards(root, document.get("shards"), folder, int(config.cache * GIB))
        if len(shards) != len(document["images"]):
            raise ValueError(f"has {len(document['images'])} images, of which {len(shards)} are in shards")
    except ValueError as error:
        raise DqdetError(f"{index}: is no index of shards ({error}); {ANEW}") from error
    if not is_address(root):
        _refuse_others(index, shards.names, shards_of(folder).get(name, []))
    return Annotations(index, folder, {name: document[name] for name in document if name != "shards"}, shards=shards)


class ShardImages(CocoImages):
    """The images of an index, which lie in shards.

    Args:
        records: of the images, checked.
        annotation_file: the index.
        folder: of the shards.
        shards: that the images lie in.
        ids: of all images, in the order of ``shards``.
    """

    def __init__(
        self, records: list[dict[str, Any]], annotation_file: Path, folder: Path, shards: Shards, ids: list[int]
    ) -> None:
        super().__init__(records, annotation_file, folder)
        numbers = {image_id: number for number, image_id in enumerate(ids)}
        self.numbers = [numbers[image_id] for image_id in self.ids]
        self.shards = shards
        shards.check()

    def stored(self, index: int) -> Member:
        return self.shards[self.numbers[index]]

    def file_faults(self) -> list[str]:
        """On a disk. To fetch something of every image would take long: those are compared with the index as read."""
        if is_address(self.shards.root):
            return []

        def fault(index: int) -> str | None:
            height, width = self.sizes[index].tolist()
            return self.stored(index).header_fault((height, width))

        with ThreadPoolExecutor(AT_ONCE) as threads:
            return [found for found in threads.map(fault, range(len(self.ids))) if found]


def index_file(root: Path, name: str) -> Path:
    return root / f"index-{name}.json"


def _names(config: DataConfig, split: Split) -> list[str]:
    """The names that a split may have."""
    chosen = getattr(config, split)
    return [chosen] if chosen else list(SPLIT_NAMES[split])


def _missing(config: DataConfig, split: Split, looked: str) -> DqdetError:
    root = str(config.root)
    place = public(root) if is_address(root) else root
    return DqdetError(f"{place}: no shards of the {split} split; looked for {looked}; set data.{split} to its name")


def _name(config: DataConfig, split: Split, root: Path) -> str:
    names = _names(config, split)
    shards = shards_of(root)
    for name in names:
        if name in shards or os.path.isfile(index_file(root, name)):
            return name
    raise _missing(config, split, ", ".join(f"{name}-000000.tar" for name in names))


def shards_of(root: Path) -> dict[str, list[Path]]:
    """The shards of each split in a folder, in the order of their numbers."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for file in root.iterdir():
        if match := SHARD.fullmatch(file.name):
            found.setdefault(match[1], []).append((int(match[2]), file))
    return {name: [file for _, file in sorted(files)] for name, files in found.items()}


def _fetched(config: DataConfig, split: Split, folder: Path) -> Path:
    """The index of shards behind an address, in a folder for copies."""
    looked = []
    for name in _names(config, split):
        address = f"{str(config.root).rstrip('/')}/index-{name}.json"
        status = ""
        try:
            content = read_whole(address)
        except WithheldFile as error:
            content, status = None, f" ({error.status})"
        if content is None:
            looked.append(f"index-{name}.json{status}")
            continue
        if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):  # a page that asks for a password
            raise DqdetError(
                f"{public(address)}: is no index of shards, as it is no object of JSON; open it in a browser"
            )
        file = index_file(folder, name)
        _write(file, content)
        return file
    tried = ", ".join(looked)
    raise _missing(config, split, f"{tried}, which `dqdet data check` makes where the shards are on a disk")


def _refuse_others(index: Path, known: Sequence[str], there: Sequence[Path]) -> None:
    """Raise DqdetError for shards that came after the index, which would be left out without a word."""
    if others := [file.name for file in there if file.name not in known]:
        raise DqdetError(f"{index}: does not know {listed(others)}; remove the index, which is then made anew")


def _cache(text: str) -> Path:
    """A folder of the user's cache for what belongs to shards."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "dqdet" / "shards" / hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()


def _index(root: Path, name: str, masks: bool) -> Path:
    """The index of a split, which is made if there is none: beside the shards, or in the user's cache.

    One of shards with faults is not kept: it would outlive their correction.
    """
    if os.path.isfile(file := index_file(root, name)):
        return file
    shards = shards_of(root)
    states = [_state(file) for of_name in shards.values() for file in of_name]
    if os.path.isfile(kept := index_file(_cache(f"{root.resolve()}\n{states}"), name)):
        return kept
    scanned = {other: scan(files) for other, files in shards.items()}
    categories = _categories(root, name, scanned)
    document = indexed(scanned[name], categories, root)
    refuse(root, find_faults(document, masks), {})
    content = json.dumps(document).encode()
    try:
        with replacing(file) as unfinished:
            unfinished.write_bytes(content)
        return file
    except OSError:
        _write(kept, content)
        return kept


def _state(shard: Path) -> tuple[str, int, int]:
    """Name, bytes and time of a shard; raises DqdetError where there is no file."""
    try:
        found = shard.stat()
    except OSError as error:
        raise DqdetError(f"{shard}: cannot be read ({error.strerror}); {REPAIR}") from error
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for someone who writes to it
        raise DqdetError(f"{shard}: is no file; {REPAIR}")
    return shard.name, found.st_size, found.st_mtime_ns


def _write(file: Path, content: bytes) -> None:
    try:
        with replacing(file) as unfinished:
            unfinished.write_bytes(content)
    except OSError as error:
        raise DqdetError(
            f"{file}: the index of the shards cannot be written ({error.strerror}); make space, or set XDG_CACHE_HOME"
        ) from error


def _categories(root: Path, name: str, scanned: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of another split that has an index, of a list of classes, or all that are named, by their names."""
    named = {split: {one["category"] for one in found["annotations"]} for split, found in scanned.items()}
    if other := next(iter(sorted(root.glob("index-*.json"))), None):
        categories = read_document(other, keys=())["categories"]
        if unknown := sorted(named[name].difference(category["name"] for category in categories)):
            raise DqdetError(
                f"{other}: does not have the classes {listed(unknown)} of the {name} shards; correct these, or remove "
                "all indices (index-*.json), which are then made anew"
            )
        return categories
    classes = listed_classes(root) or sorted(set().union(*named.values()))
    return [{"id": number, "name": name} for number, name in enumerate(classes, 1)]


def scan(files: Sequence[Path]) -> dict[str, Any]:
    """What shards hold, as an index without categories: annotations have the name of theirs, ``category``.

    Raises:
        DqdetError: a shard cannot be read, or samples are incomplete or no annotations.
    """
    document: dict[str, Any] = {"shards": [], "images": [], "annotations": []}
    faults: list[str] = []
    ids: set[int] = set()  # of the images
    for file in files:
        samples, wrong = read_samples(file)
        faults += wrong if samples else [f"{file.name} has no samples, images KEY.jpg with KEY.json"]
        members = [sample.image for sample in samples if sample.image is not None]
        document["shards"].append(
            {
                "name": file.name,
                "bytes": file.stat().st_size,
                "members": [member.name for member in members],
                "offsets": [member.offset for member in members],
                "lengths": [member.length for member in members],
                "crc32": [member.crc32 for member in members],
            }
        )
        for sample in samples:
            if sample.image is not None and sample.place and not wrong:
                faults += _add(document, sample, sample.image.name, ids)
    refuse(files[0].parent, faults, {})
    for kind in ("images", "annotations"):
        given = [record.get("id") for record in document[kind]]
        # Where some have no ids, or objects have one that others have in their samples, those of all cannot be used.
        if None in given or (all(map(is_id, given)) and len(set(given)) < len(given)):
            for number, record in enumerate(document[kind], 1):
                record["id"] = number
    return document


def _add(document: dict[str, Any], sample: Sample, name: str, ids: set[int]) -> list[str]:
    """Add the annotations of an image; ``image_id`` is its number. Returns what is wrong with them."""
    record, number = sample.record, len(document["images"])
    if not isinstance(record, dict):
        return [f"{sample.place} is no object of JSON"]
    image = {"file_name": name} | {key: record[key] for key in ("id", "file_name", "height", "width") if key in record}
    if fault := image_fault(image):
        return [f"{sample.place} {fault}"]
    if is_id(image.get("id")):
        if image["id"] in ids:
            return [f"{sample.place} has the id {image['id']}, which another sample has already"]
        ids.add(image["id"])
    objects = record.get("objects")
    if not isinstance(objects, list):
        return [f"{sample.place} has no list of objects"]
    bad = [n for n, one in enumerate(objects, 1) if not (isinstance(one, dict) and is_text(one.get("category")))]
    if bad:
        return [f"{sample.place} object {n} has no name as category" for n in bad]
    document["images"].append(image)
    for n, one in enumerate(objects, 1):
        known = {key: one[key] for key in OF_OBJECT if key in one}
        place = f"{sample.place} object {n}"
        document["annotations"].append(known | {"image_id": number, "category": one["category"], "place": place})
    return []


def indexed(scanned: dict[str, Any], categories: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What `scan` found in a folder as an index, with the ids of images and categories.

    Raises:
        DqdetError: there are objects of other categories.
    """
    numbers = {category["name"]: category["id"] for category in categories}
    unknown = [one for one in scanned["annotations"] if one["category"] not in numbers]
    faults = [f"{one['place']} has the class {printable(one['category'])!r}, which is not listed" for one in unknown]
    refuse(folder, faults, {})
    annotations = []
    for one in scanned["annotations"]:
        ids = {"image_id": scanned["images"][one["image_id"]]["id"], "category_id": numbers[one["category"]]}
        annotations.append({key: value for key, value in one.items() if key != "category"} | ids)
    return {**scanned, "categories": categories, "annotations": annotations}
