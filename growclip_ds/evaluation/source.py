"""Location of an evaluation set's files: a folder, or URLs and commands that are read through webdataset."""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError

from growclip_ds.config.set_names import HUB_REVISION
from growclip_ds.data import remote_stream
from growclip_ds.data.addresses import open_address
from growclip_ds.data.remote import is_remote
from growclip_ds.errors import InputError

_RETRIES_OF_OPTIONAL = 3  # of a command, for a file that the set does not require
_NOT_FOUND = 127  # a shell's exit code for a program that it does not find
_HUB = r"https://(?:[^/@]+@)?huggingface\.co/datasets/[^/]+/[^/]+"
_HUB_FILES = "/resolve/main"  # appended to the URL of a data set on the Hugging Face hub


@dataclass(frozen=True)
class Source:
    """Access to a set's files.

    Attributes:
        location: a folder; a URL (`https://…`, `gs://…`), to which a file's path is appended; or a command
            (`pipe:aws s3 cp s3://sets/food/{} -`), in which the path replaces `{}`. The URL of a data set's page on the
            Hugging Face hub stands for its files.
    """

    location: str

    def __post_init__(self) -> None:
        if self.location.startswith("pipe:") and "{}" not in self.location:
            raise InputError(f"evaluation set {self.location}: put {{}} where the path of the set's file belongs")

    @property
    def is_remote(self) -> bool:
        return is_remote(self.location)

    def address(self, path: str) -> str:
        """The local path, URL or command that reads one of the set's files, given its path within the set."""
        if not self.is_remote:
            return str(Path(self.location) / path)
        if self.location.startswith("pipe:"):
            return self.location.replace("{}", shlex.quote(path))
        folder = self.location.rstrip("/")
        if re.fullmatch(_HUB, folder):
            folder += _HUB_FILES
        return re.sub(HUB_REVISION, r"\1/resolve/", folder) + f"/{path}"

    def read(self, path: str, is_required: bool = True) -> str | None:
        """The content of a text file; None if there is no such file.

        Args:
            path: the file's path within the set.
            is_required: whether the set needs the file. Why a command fails is unknown: if it keeps failing, a required
                file is an error and an optional one is taken to be missing.

        Raises:
            InputError: the file cannot be read, or is not UTF-8.
        """
        address = self.address(path)
        try:
            data = _fetch(address, is_required) if self.is_remote else _content_of(address)
            return None if data is None else data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError(f"{address}: the file is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "check that it can be fetched" if self.is_remote else "check that you may read it"
            raise InputError(f"{address}: cannot be read ({reason}); {remedy}") from None


def _content_of(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return None


def _fetch(address: str, is_required: bool) -> bytes | None:
    """The content of a remote file; for `is_required` and None see `Source.read`.

    Raises:
        InputError: the program that fetches such URLs is not installed.
        OSError: the file cannot be fetched.
    """
    is_http = address.startswith("http")
    retries = remote_stream.RETRIES if is_http or is_required else _RETRIES_OF_OPTIONAL
    for attempt in range(retries + 1):
        stream = None
        try:
            with open_address(address) as stream:
                return stream.read()
        except HTTPError as error:
            if error.code == 404:
                return None
            if attempt == retries or remote_stream.is_refusal(error):
                raise OSError(f"HTTP {error.code} {error.reason}") from None
        except FileNotFoundError as error:  # the program that a URL's scheme needs
            raise InputError(
                f"{address}: {error.filename}, which fetches it, is not installed; install it, or copy the set"
            ) from None
        except ValueError as error:
            raise OSError(str(error)) from None  # not a URL
        except OSError as error:
            status = getattr(stream, "status", None)  # a command's exit code
            if status == _NOT_FOUND:
                raise OSError("a program of its command was not found") from None
            if attempt == retries:
                if not is_http and not is_required:
                    return None
                raise OSError(f"its command ended with exit code {status}" if status else str(error)) from None
        time.sleep(remote_stream.PAUSE)
    raise AssertionError("the last attempt returns or raises")
