"""Files behind addresses on the web, of which parts are read (HTTP's Range)."""

from __future__ import annotations

import os
import re
import time
from functools import cache
from http import HTTPStatus

import httpx

from dqdet.errors import DqdetError

TIMEOUT = 30.0  # seconds without a byte
TRIES, PAUSE = 3, 1.0  # of a request, and seconds before the second one; twice as many before the next
WITHHELD = (HTTPStatus.FORBIDDEN, HTTPStatus.GONE)  # statuses that may mean that there is no such file
PASSING = (HTTPStatus.TOO_MANY_REQUESTS, 500, 502, 503, 504)  # statuses that may be others a second later


def is_address(source: str) -> bool:
    """Whether it is one of HTTP."""
    return source.lower().startswith(("http://", "https://"))


def public(address: str) -> str:
    """An address without the name and password of a user."""
    return re.sub(r"//[^/?#]*@", "//", address)


class WithheldFile(DqdetError):
    """A file that a server does not give, maybe because there is none: stores do not tell everyone what they have."""

    def __init__(self, message: str, status: str = "") -> None:  # of another process it comes without, which follows
        super().__init__(message)
        self.status = status


def read_whole(address: str) -> bytes | None:
    """All bytes; None: there is no such file.

    Raises:
        WithheldFile: there may be none.
        DqdetError: it cannot be had.
    """
    answer = _get(address, {})
    return None if answer.status_code == HTTPStatus.NOT_FOUND else _right(address, answer).content


def read_part(address: str, start: int, length: int) -> tuple[bytes, int]:
    """The bytes from ``start`` on, fewer where the file ends before, and the length of the whole file.

    Raises:
        DqdetError: they cannot be had, or the server gives whole files only.
    """
    answer = _get(address, {"Range": f"bytes={start}-{start + length - 1}"})
    found = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", answer.headers.get("Content-Range", ""))
    if answer.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and found:
        return b"", int(found[1])
    if _right(address, answer).status_code != HTTPStatus.PARTIAL_CONTENT or found is None:
        raise DqdetError(
            f"{public(address)}: the server does not give parts of files (Range); take another one, such as nginx or "
            "an object store, or copy the files to a disk"
        )
    return answer.content, int(found[1])


@cache
def _client(process: int) -> httpx.Client:
    """Its connections belong to one process: those that a loader forks make their own."""
    return httpx.Client(follow_redirects=True, timeout=TIMEOUT)


def _get(address: str, headers: dict[str, str]) -> httpx.Response:
    """An answer, whatever it is; of a whole file where a part was asked for, only its beginning."""
    pause = PAUSE
    for left in reversed(range(TRIES)):
        try:
            with _client(os.getpid()).stream("GET", address, headers=headers) as answer:
                passing = left and answer.status_code in PASSING
                if not passing and (not headers or answer.status_code == HTTPStatus.PARTIAL_CONTENT):
                    answer.read()
                if not passing:
                    return answer
        except httpx.TransportError as error:
            if not left:
                raise DqdetError(
                    f"{public(address)}: cannot be fetched ({error}); check address and connection"
                ) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError) as error:
            raise DqdetError(f"{public(address)}: cannot be fetched ({error}); correct the address") from error
        time.sleep(pause)
        pause *= 2
    raise AssertionError("the last try returns or raises")


def _right(address: str, answer: httpx.Response) -> httpx.Response:
    if not answer.is_success:
        status = f"{answer.status_code} {answer.reason_phrase}"
        message = f"{public(address)}: cannot be fetched ({status}); correct the address"
        raise WithheldFile(message, status) if answer.status_code in WITHHELD else DqdetError(message)
    return answer
