"""What is given to be looked at: files, folders with all that is in them, patterns such as ``*.jpg``, and addresses."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from dqdet.drawing.pictures import Threshold
from dqdet.errors import DqdetError, Interrupted, listed
from dqdet.formats.folders import folders_below, numbered
from dqdet.formats.image_files import image_files, is_image_name
from dqdet.formats.records import is_id, is_text
from dqdet.formats.remote import public
from dqdet.predict.addresses import fetch, is_download, is_stream
from dqdet.predict.frames import is_video_file
from dqdet.predict.images import Picture, predict_pictures
from dqdet.predict.predictor import Predictor
from dqdet.predict.videos import check_tracking, predict_video


def predict(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: Path,
    threshold: Threshold | None = None,
    annotations: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
    tracking: bool = False,
) -> list[DqdetError]:
    """Detect in all sources and write what was found into ``out``.

    Images go there together (`predict_pictures`), under their names relative to the innermost folder that all sources
    are in, or that is the only source. A single video goes there, too (`predict_video`); of several, each has a folder
    of its own there, named after it.

    Args:
        predictor: of the model.
        sources: files, folders, patterns, addresses (``http://``, ``https://``), or one stream or camera (see
            `is_stream`). A folder is a collection of images;
            of a model of videos one video, or, where it has no images but folders of them, several.
        out: folder to write to.
        threshold: as for `predict_pictures` and `predict_video`.
        annotations: file in COCO's format that has the ids of the images.
        force: overwrite results of other sources.
        say: is given a line on each thing that is done.
        tracking: number the objects in videos, as `predict_video` does.

    Returns:
        what was wrong with files and videos that could not be read; all others are done nevertheless.

    Raises:
        DqdetError: there is nothing to look at, ``out`` cannot be written, the model is one of videos and
            ``annotations`` are given, which are for images, or it cannot track, or an image should be tracked.
        Interrupted: by Ctrl-C or SIGTERM; results that are found are kept, and nothing else is begun.
    """
    of_videos = predictor.config.data.task == "video"
    if tracking:
        check_tracking(predictor)
    if of_videos and annotations is not None:
        raise DqdetError(f"{annotations}: has ids of images, but a model of data.task=video looks at videos")
    streams = [str(source) for source in sources if is_stream(str(source))]
    if streams and len(sources) > 1:
        raise DqdetError(f"{public(streams[0])}: all else would wait for the end of this stream; give it alone")
    if streams and annotations is not None:
        raise DqdetError(f"{annotations}: has ids of images, but {public(streams[0])} is a stream; leave it out")
    if streams:
        return predict_video(predictor, streams[0], out, threshold, force, say, tracking)
    failures: list[DqdetError] = []
    with TemporaryDirectory() as temporary:
        downloads = Path(temporary)
        addresses: dict[str, str] = {}  # of what was fetched, by its path
        given = _distinct(path for source in sources for path in _paths(source, out, downloads, addresses, failures))
        if not given and failures:
            return failures
        if of_videos:
            videos = _distinct(video for path in given for video in _videos(path))
        else:
            videos = [path for path in given if is_video_file(path)]
        images = [path for path in given if path not in videos and not of_videos]
        pictures = named(_distinct(file for path in images for file in _images(path, out)), given, downloads)
        if pictures and tracking:
            raise DqdetError(f"{pictures[0].file}: is an image, which has no tracks; give videos alone")
        if annotations is not None and not pictures:
            raise DqdetError(f"{annotations}: has ids of images, but the sources are videos alone; leave it out")
        if pictures:
            ids = None if annotations is None else ids_from(annotations, pictures)
            failures += predict_pictures(predictor, pictures, sources, out, threshold, ids, force, say)
        alone = len(videos) == 1 and not pictures
        for path, name in zip(videos, numbered(path.stem for path in videos), strict=True):
            try:
                place = out if alone else out / name
                address = addresses.get(str(path))
                failures += predict_video(predictor, path, place, threshold, force, say, tracking, address)
            except Interrupted:
                raise
            except DqdetError as error:
                if alone and not addresses:
                    raise
                failures.append(error)
    return [_by_address(failure, addresses) for failure in failures]


def _by_address(failure: DqdetError, addresses: Mapping[str, str]) -> DqdetError:
    """The same about an address instead of the file that was fetched from there."""
    message = str(failure)
    for file, address in addresses.items():
        message = message.replace(file, public(address))
    failure.args = (message,)
    return failure


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Each once, whatever it is called."""
    return list({path.resolve(): path for path in reversed(list(paths))}.values())[::-1]


def _paths(
    source: str | Path, out: Path, downloads: Path, addresses: dict[str, str], failures: list[DqdetError]
) -> list[Path]:
    """The files and folders that a source means; ``addresses`` takes where they were fetched from."""
    if isinstance(source, str) and is_download(source):
        try:
            file = fetch(source, downloads / str(len(list(downloads.iterdir()))))
            addresses[str(file)] = source
            return [file]
        except DqdetError as error:
            failures.append(error)
            return []
    return _matches(source, out)


def _matches(source: str | Path, out: Path) -> list[Path]:
    """A file or folder itself, or all that have a pattern; of ``out``, only where the pattern begins there."""
    path = Path(source)
    if os.path.exists(path) or not glob.has_magic(str(source)):
        return [path]
    matches = [Path(match) for match in sorted(glob.glob(str(source), recursive=True))]
    start = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    if not start.resolve().is_relative_to(out.resolve()):
        matches = [match for match in matches if not match.resolve().is_relative_to(out.resolve())]
    if not matches:
        raise DqdetError(f"{source}: no file or folder has such a name; give an image, a video or a folder of images")
    return matches


def images_of(sources: Sequence[str | Path], out: Path) -> list[Picture]:
    """All images of files, folders and patterns, by the names of their results; other files that a pattern has are not.

    Raises:
        DqdetError: there is nothing of a name.
    """
    given = [path for source in sources for path in _matches(source, out)]
    given = _distinct(path for path in given if path in map(Path, sources) or path.is_dir() or is_image_name(path))
    return named(_distinct(file for path in given for file in _images(path, out)), given)


def _images(path: Path, out: Path) -> list[Path]:
    """A file itself, or the images in a folder and its subfolders, without hidden ones and those in ``out``."""
    if not os.path.isdir(path):
        return image_files(path)
    files = []
    for folder, subfolders, names in folders_below(path, _unreadable):
        inside = [folder / name for name in sorted(subfolders) if not name.startswith(".")]
        subfolders[:] = [one.name for one in inside if one.resolve() != out.resolve()]
        files += [folder / name for name in sorted(names) if is_image_name(Path(name))]
    return files or image_files(path)  # which says what was looked for


def _unreadable(error: OSError) -> None:
    raise DqdetError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error


def _videos(path: Path) -> list[Path]:
    """A file or a folder of frames itself, or the folders of frames in a folder."""
    if not os.path.isdir(path) or _has_images(path):
        return [path]
    return [folder for folder in sorted(path.iterdir()) if _has_images(folder)] or [path]


def _has_images(path: Path) -> bool:
    return os.path.isdir(path) and any(map(is_image_name, path.iterdir()))


def named(files: Sequence[Path], given: Sequence[Path], downloads: Path | None = None) -> list[Picture]:
    """Files with the names that their results have.

    Args:
        files: images.
        given: the files and folders that they are from; names are relative to the innermost folder with all of these.
        downloads: folder of files that have their own names alone.
    """
    folders = [path if os.path.isdir(path) else path.parent for path in given if downloads not in path.parents]
    inside = os.path.commonpath(map(os.path.abspath, folders)) if folders else ""  # without ".."
    names = [file.name if downloads in file.parents else os.path.relpath(file, inside) for file in files]
    names = [name if is_image_name(Path(name)) else f"{name}.png" for name in names]
    return [Picture(file, name) for file, name in zip(files, numbered(names), strict=True)]


def ids_from(annotations: Path, pictures: Sequence[Picture]) -> dict[str, int]:
    """The ids that a file in COCO's format has for pictures, by their names in results.

    A picture is meant by the record whose ``file_name`` is the longest end of its path; otherwise by the only one with
    its name in whatever folder.

    Raises:
        DqdetError: the file cannot be read, it has no record or several ones of a picture, or two pictures are meant by
            the same one.
    """
    records = read_images(annotations)
    by_path: dict[str, list[int]] = {}
    by_name: dict[str, list[int]] = {}
    for record in records:
        by_path.setdefault(record["file_name"], []).append(record["id"])
        by_name.setdefault(PurePosixPath(record["file_name"]).name, []).append(record["id"])
    ids, unknown = {}, []
    for picture in pictures:
        parts = picture.file.absolute().parts
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
        known = next((by_path[end] for end in ends if end in by_path), by_name.get(parts[-1], []))
        if len(known) == 1:
            ids[picture.name] = known[0]
        else:
            unknown.append(picture.name)
    if unknown:
        raise DqdetError(
            f"{annotations}: no id, or more than one, for {len(unknown)} of {len(pictures)} images: {listed(unknown)}; "
            "give the file that lists them, or leave these images out"
        )
    first: dict[int, str] = {}
    for name, number in ids.items():
        if first.setdefault(number, name) != name:
            raise DqdetError(f"{annotations}: {first[number]} and {name} are the same image {number}; give one of them")
    return ids


def read_images(annotations: Path) -> list[Mapping[str, Any]]:
    """The records of images in a file of COCO's detection or panoptic format, or one without annotations."""
    try:
        document = json.loads(annotations.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DqdetError(
            f"{annotations}: cannot be read as JSON ({error}); give the annotations of the images"
        ) from error
    records = document.get("images") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise DqdetError(f"{annotations}: has no list 'images'; give annotations in COCO's format")
    for record in records:
        if not isinstance(record, dict) or not is_id(record.get("id")) or not is_text(record.get("file_name")):
            raise DqdetError(f"{annotations}: has an image without id or file_name; export the annotations again")
    return records
