"""Opens URLs as webdataset does, except HTTP, where its reads can stall, and S3, which it does not support."""

from __future__ import annotations

import base64
import io
import string
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from webdataset.gopen import Pipe, gopen, gopen_curl, gopen_schemes

TIMEOUT = 60.0  # seconds without a byte from a server, while one waits for it

open_address = gopen


class _Body(io.RawIOBase):
    """What a server sends. A connection that ends too early is an error, which http.client takes for the end."""

    def __init__(self, answer: HTTPResponse) -> None:
        self._answer = answer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            read = self._answer.readinto(buffer)
        except HTTPException as error:
            raise _as_os_error(error) from error
        if not read and self._answer.length:
            raise OSError(f"the connection ended {self._answer.length:,} bytes too early")
        return read

    def close(self) -> None:
        self._answer.close()
        super().close()


def _open_http(url: str, mode: str = "rb", bufsize: int = 8192) -> _Body:
    """What a server has, through the proxy of the environment if there is one.

    webdataset's own way, `curl`, waits for ever on a server that sends nothing more, and its limits of speed count the
    time in which nobody reads. This limit counts while one reads.

    Raises:
        OSError: the server cannot be reached, or answers with an error.
    """
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    # Some hosts turn Python's own name away.
    request = Request(
        quote(parts._replace(netloc=host).geturl(), safe=string.punctuation), headers={"User-Agent": "growclip"}
    )
    if user:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        return _Body(urlopen(request, timeout=TIMEOUT))
    except HTTPException as error:
        raise _as_os_error(error) from error


def _as_os_error(error: HTTPException) -> OSError:
    return OSError(f"{type(error).__name__}: {error}")


def _open_s3(url: str, mode: str = "rb", bufsize: int = 8192) -> Pipe:
    """What `aws` fetches; the address is one argument of it, and no shell's."""
    # 141: it was told with SIGPIPE that no more is wanted.
    return Pipe(["aws", "s3", "cp", "--only-show-errors", url, "-"], mode=mode, bufsize=bufsize, ignore_status=[141])


gopen_schemes.setdefault("s3", _open_s3)  # webdataset 1.0 has none
for _scheme in ("http", "https"):
    if gopen_schemes[_scheme] is gopen_curl:  # not what webdataset's own settings may have put there
        gopen_schemes[_scheme] = _open_http
