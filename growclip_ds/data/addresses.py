"""Opens URLs through webdataset, with own handlers for HTTP, on which its reads can stall, and S3, which it lacks."""

from __future__ import annotations

import base64
import io
import string
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request, urlopen

from webdataset.gopen import Pipe, gopen, gopen_curl, gopen_schemes

TIMEOUT = 60.0  # seconds that a read waits for data from a server

open_address = gopen


class _Body(io.RawIOBase):
    """The body of an HTTP response. A connection that closes early raises; http.client would take it for the end."""

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
    """Opens an HTTP URL, through the environment's proxy if there is one.

    webdataset uses `curl`, which waits forever for a server that stalls, and whose speed limits also count time in
    which nobody reads. `TIMEOUT` applies only during reads.

    Raises:
        OSError: the server cannot be reached, or answers with an error.
    """
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    # Some hosts reject Python's default user agent.
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
    """Opens an S3 URL with `aws`, to which the URL is passed as one argument, without a shell."""
    # 141: SIGPIPE, as the pipe was closed before its end.
    return Pipe(["aws", "s3", "cp", "--only-show-errors", url, "-"], mode=mode, bufsize=bufsize, ignore_status=[141])


gopen_schemes.setdefault("s3", _open_s3)  # webdataset 1.0 has none
for _scheme in ("http", "https"):
    if gopen_schemes[_scheme] is gopen_curl:  # unless webdataset's own settings have changed it
        gopen_schemes[_scheme] = _open_http
