"""Data sets of YOLO: ``images`` and ``labels`` side by side, and ``data.yaml`` (Ultralytics, Roboflow, CVAT) or
``classes.txt`` (Label Studio, LabelImg).

``data.yaml`` says where the images of a split are, in a folder, a list of folders or a list of files. Without it, or
where it does not, a split is in ``images/NAME`` or ``NAME/images``; a set with all images in ``images`` is divided. The
labels of an image are in the file of its name under ``labels`` instead of ``images``; without one it has no objects,
but where no image of a split has one, the labels are elsewhere. Labels without an image are told in a warning.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dqdet.config import DataConfig
from dqdet.data.annotations import (
    CLASS_FILES,
    Annotated,
    Annotations,
    as_document,
    images_in,
    listed_classes,
    part,
    upright_sizes,
)
from dqdet.data.coco_files import SPLIT_NAMES, root_of
from dqdet.data.dataset import Split
from dqdet.errors import DqdetError, listed
from dqdet.formats.folders import has_suffix
from dqdet.formats.image_files import is_image_name
from dqdet.formats.records import TEXT
from dqdet.formats.yolo import keypoint_numbers, read_labels, read_yaml

YAML = ("data.yaml", "dataset.yaml")


def read_yolo(config: DataConfig, split: Split) -> Annotations:
    """The annotations of a split.

    Raises:
        DqdetError: the names of the classes or the images are missing.
    """
    root = root_of(config)
    described = next((root / name for name in YAML if os.path.isfile(root / name)), None)
    document: dict[str, Any] = {} if described is None else read_yaml(described)
    classes = document.get("names") or listed_classes(root)
    if not classes:
        raise DqdetError(
            f"{root}: no names of the classes; add data.yaml with names, or classes.txt with one in each line"
        )
    keypoints = keypoint_numbers(described or root, document)
    if keypoints and config.task == "instance":
        raise DqdetError(f"{described}: objects have keypoints (kpt_shape) but no polygons; set data.task=detection")
    files, warnings = _images(config, split, root, document)
    found_sizes, faults = upright_sizes(files)
    warnings += _without_image({file.parent for file in files})
    labels = [_labels_of(file) for file in files]
    if not faults and not any(map(os.path.isfile, labels)):
        raise DqdetError(
            f"{root}: none of the {len(files)} images of the {split} split has labels; looked for {labels[0]} and so "
            "on; correct folders or names, or, if there are no objects, write empty files"
        )
    images = []
    for file, of_file, (height, width) in zip(files, labels, found_sizes, strict=True):
        objects, wrong = read_labels(of_file, len(classes), height, width, keypoints)
        faults += wrong
        images.append(Annotated(_relative(file, root), height, width, objects))
    return Annotations(described or root, root, as_document(images, classes), faults, warnings)


def _images(config: DataConfig, split: Split, root: Path, document: dict[str, Any]) -> tuple[list[Path], list[str]]:
    """The images of a split, and a warning for each place in ``data.yaml`` that they are not in: of another machine?"""
    chosen = getattr(config, split)
    # What data.yaml says of a split is before folders that other names of it have.
    names = [chosen] if chosen else sorted(SPLIT_NAMES[split], key=lambda name: name != split or name not in document)
    looked: list[Path] = []
    absent: list[str] = []
    for name in names:
        given = document.get(name)
        entries = [entry for entry in (given if isinstance(given, list) else [given]) if isinstance(entry, str)]
        found = {entry: _place(entry, root, document) for entry in entries}
        missing = [f"{name}: {entry}" for entry, place in found.items() if place is None]
        if missing and len(found) > 1:  # one folder cannot stand for several
            raise DqdetError(f"{root}: data.yaml has places that are not there ({listed(missing)}); correct it")
        absent += missing
        own = [root / "images" / name, root / name / "images"]
        places = [place for place in found.values() if place] or [place for place in own if os.path.isdir(place)][:1]
        looked += [root / entry for entry in entries] or own
        if files := [file for place in places for file in _listed(place, root)]:
            return sorted(dict.fromkeys(files)), _taken_instead(root, absent, str(places[0]))
    whole = images_in(root / "images") if os.path.isdir(root / "images") else []
    if whole and not (
        config.train or config.val or any(os.path.isdir(folder) for folder in (root / "images").iterdir())
    ):
        chosen_names = part([str(file) for file in whole], split, config.val_share)
        files = [file for file in whole if str(file) in chosen_names]
        return files, _taken_instead(root, absent, f"a part of {root / 'images'}")
    shown = ", ".join(str(place) for place in looked)
    raise DqdetError(
        f"{root}: no images of the {split} split; looked in {shown}; set data.{split} to the name of the split, or "
        "correct data.yaml"
    )


def _taken_instead(root: Path, absent: list[str], place: str) -> list[str]:
    return [f"{root}: data.yaml has {one}, which is not there; {place} is taken instead" for one in absent]


def _place(entry: str, root: Path, document: dict[str, Any]) -> Path | None:
    """The folder or list that ``data.yaml`` means: relative to its ``path``, or to itself, as Roboflow writes it."""
    base = document.get("path")
    bases = [root / base] if isinstance(base, str) else []
    candidates = [place for folder in (*bases, root) for place in (folder / entry, folder / entry.removeprefix("../"))]
    return next((place for place in candidates if os.path.exists(place)), None)


def _listed(place: Path, root: Path) -> list[Path]:
    """The images of a folder, or those that a text file lists."""
    if os.path.isdir(place):
        return images_in(place)
    try:
        lines = place.read_text(encoding=TEXT).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DqdetError(f"{place}: cannot be read as a list of images ({error}); correct data.yaml") from error
    names = [line.strip() for line in lines if line.strip()]
    # Ultralytics: ./ is the folder of the list; CVAT: names begin with data/, in place of the folder of data.yaml.
    options = [(place.parent / name, root / name, root / name.removeprefix("data/")) for name in names]
    return [next((file for file in of_name if os.path.isfile(file)), of_name[0]) for of_name in options]


def _labels_of(image: Path) -> Path:
    parts = [*image.parent.parts, f"{image.stem}.txt"]  # lists may name "/"
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts)


def _without_image(folders: Iterable[Path]) -> list[str]:
    """Warnings of label files that belong to no image in folders of images."""
    warnings = []
    for images, labels in sorted((folder, _labels_of(folder / "image").parent) for folder in folders):
        if images == labels or not (os.path.isdir(images) and os.path.isdir(labels)):
            continue
        known = {file.stem for file in images.iterdir() if is_image_name(file)}
        named = {file.name for file in labels.iterdir() if has_suffix(file, (".txt",)) and file.stem not in known}
        if alone := sorted(named.difference(CLASS_FILES)):
            warnings.append(f"{labels}: {len(alone)} label files have no image in {images}: {listed(alone)}")
    return warnings


def _relative(file: Path, root: Path) -> str:
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file.absolute())
