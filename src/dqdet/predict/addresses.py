"""Images, videos and streams that have an address, and cameras."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from dqdet.errors import DqdetError
from dqdet.formats.remote import TIMEOUT, is_address, public

LARGEST = 256 * 2**20  # bytes of a file
LONGEST_NAME = 100  # bytes of its name here, of which file systems take 255

STREAM = re.compile(r"(rtsps?|rtmps?|srt|udp|tcp)://", re.I)
PLAYLIST = re.compile(r"https?://[^?#]*\.m3u8($|[?#])", re.I)
CAMERA = re.compile(r"(webcam:|/dev/video)(?P<number>\d+)$")


def is_download(source: str) -> bool:
    """Whether it is the address of a file."""
    return is_address(source) and not is_stream(source)


def is_stream(source: str) -> bool:
    """Whether frames come from there one after the other; ``webcam:0`` and ``/dev/video0`` are cameras."""
    return any(known.match(source) for known in (STREAM, PLAYLIST, CAMERA))


def fetch(address: str, folder: Path, largest: int = LARGEST) -> Path:
    """Bring what is at an address into a new folder, under the last part of the address as its name.

    Raises:
        DqdetError: it cannot be had, or has more than ``largest`` bytes.
    """
    try:
        name = re.sub(r"[^\w.-]", "_", PurePosixPath(unquote(urlsplit(address).path)).name)
        name = name.encode()[-LONGEST_NAME:].decode(errors="ignore").lstrip(".")
        file = folder / (name or "image")
        folder.mkdir(parents=True)
        with httpx.stream("GET", address, follow_redirects=True, timeout=TIMEOUT) as answer, file.open("wb") as opened:
            answer.raise_for_status()
            received = int(answer.headers.get("Content-Length", 0))
            for part in answer.iter_bytes():
                if max(received, opened.tell() + len(part)) > largest:
                    raise DqdetError(
                        f"{public(address)}: more than {largest / 2**20:g} MiB; fetch it yourself, and give the file"
                    )
                opened.write(part)
    except httpx.HTTPStatusError as error:
        reason = f"{error.response.status_code} {error.response.reason_phrase}"
        raise DqdetError(f"{public(address)}: cannot be fetched ({reason}); correct the address") from error
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as error:
        raise DqdetError(f"{public(address)}: cannot be fetched ({error}); check address and connection") from error
    except OSError as error:
        raise DqdetError(f"{folder}: cannot be written ({error.strerror}); make space there") from error
    return file
