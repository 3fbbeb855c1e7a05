"""Images wherever all machines of a cluster can read them: in stores, at addresses, and at paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, unquote

from PIL import Image

from dqdet.errors import DqdetError
from dqdet.formats.folders import numbered
from dqdet.formats.image_files import Encoded, is_image_name, one_line, read_image
from dqdet.formats.remote import is_address, public, read_whole
from dqdet.predict.images import Picture, image_ids
from dqdet.predict.sources import ids_from, images_of

SAFE = "/:?&=%@+~"  # what an address may have, as it is given
MAGIC = re.compile(r"[*?]")


class Job(NamedTuple):
    """An image to look at."""

    place: str  # path or address
    name: str  # in results
    image_id: int


def read_job(job: Job) -> Image.Image:
    """Raises DqdetError where it cannot be read."""
    if "://" not in job.place:
        return read_image(Path(job.place))
    if is_address(job.place):
        if (content := read_whole(job.place)) is None:
            raise DqdetError(f"{public(job.place)}: there is no such image; correct the address")
    else:
        from pyarrow import fs

        try:
            system, path = fs.FileSystem.from_uri(job.place)
            with system.open_input_file(path) as file:
                content = file.read()
        except (OSError, ValueError) as error:
            raise DqdetError(
                f"{public(job.place)}: cannot be read ({one_line(error)}); check address and rights"
            ) from error
    return read_image(Encoded(public(job.place), content))


def jobs_of(sources: Sequence[str], out: Path, annotations: Path | None) -> list[Job]:
    """All images of folders, patterns and addresses, also of stores; ids and names are those of `predict`.

    Raises:
        DqdetError: there are none.
    """
    local = [source for source in sources if "://" not in source]
    pictures = images_of(local, out) if local else []
    named = {str(picture.file.absolute()): picture.name for picture in pictures}
    for source in sources:
        if "://" in source:
            for place, name in _stored(source):
                named.setdefault(place, name)  # each once
    places, names = list(named), numbered(named.values())
    files = [Path(unquote(place) if "://" in place else place) for place in places]
    pictures = [Picture(file, name) for file, name in zip(files, names, strict=True)]
    if annotations is not None:
        by_name = ids_from(annotations, pictures)
        ids = [by_name[name] for name in names]
    else:
        ids = image_ids(files)
    return [Job(*one) for one in zip(places, names, ids, strict=True)]


def _stored(source: str) -> Iterator[tuple[str, str]]:
    """Places and names of the images that an address means: a file, a folder with all below, or a pattern."""
    if is_address(source):
        yield source, Path(source.partition("?")[0]).name
        return
    if is_image_name(Path(source)) and not MAGIC.search(source):
        yield quote(source, safe=SAFE), Path(unquote(source)).name
        return
    from pyarrow import fs

    start = MAGIC.search(source)
    folder = source.rstrip("/") if start is None else source[: start.start()].rpartition("/")[0]
    wanted = re.compile(".*" if start is None else _regular(source[len(folder) + 1 :]))
    try:
        system, base = fs.FileSystem.from_uri(folder)
        found = system.get_file_info(fs.FileSelector(base, recursive=True))
    except (OSError, ValueError) as error:
        raise DqdetError(f"{public(source)}: cannot be listed ({one_line(error)}); check address and rights") from error
    names = sorted(info.path.removeprefix(base).lstrip("/") for info in found if info.is_file)
    names = [name for name in names if is_image_name(Path(name)) and wanted.fullmatch(name)]
    if not names:
        raise DqdetError(f"{public(source)}: no images there; give a folder or a pattern, such as {public(folder)}/**")
    # Stores list names as they are, and open addresses, in which some characters mean something else.
    yield from ((f"{folder}/{quote(name)}", name) for name in names)


def _regular(pattern: str) -> str:
    """``**/`` is any folders or none, ``**`` anything, ``*`` a part of a name, ``?`` a character of it."""
    meanings = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(meanings.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", pattern))
