"""Where an evaluation set's files are: a folder, or addresses that are read through webdataset."""

from __future__ import annotations

import re
import shlex
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from growclip_ds.data import remote_stream
from growclip_ds.data.addresses import open_address
from growclip_ds.data.remote import is_remote
from growclip_ds.errors import InputError

TIMEOUT = 30  # seconds for a text file to begin to arrive
_HUB_FILES = "/resolve/main"  # under the address of a data set on the Hugging Face hub


@dataclass(frozen=True)
class Source:
    """A set's files.

    Attributes:
        location: a folder; an address (`https://…`, `gs://…`), to which a file's path is appended; or a command
            (`pipe:aws s3 cp s3://sets/food/{} -`), in which it takes the place of `{}`. The address of a data set's
            page on the Hugging Face hub stands for its files.
    """

    location: str

    def __post_init__(self) -> None:
        if self.location.startswith("pipe:") and "{}" not in self.location:
            raise InputError(f"evaluation set {self.location}: put {{}} where the path of the set's file belongs")

    @property
    def is_remote(self) -> bool:
        return is_remote(self.location)

    def address(self, path: str) -> str:
        """Of one of the set's files, by its path in the set."""
        if not self.is_remote:
            return str(Path(self.location) / path)
        if self.location.startswith("pipe:"):
            return self.location.replace("{}", shlex.quote(path))
        folder = self.location.rstrip("/")
        if re.fullmatch(r"https://huggingface\.co/datasets/[^/]+/[^/]+", folder):
            folder += _HUB_FILES
        return f"{folder.replace('/tree/', '/resolve/', 1)}/{path}"

    def read(self, path: str) -> str | None:
        """A text file's content; None if there is no such file.

        Of a command that fails nobody knows why, so the file counts as missing.

        Raises:
            InputError: the file cannot be read, or is not UTF-8.
        """
        address = self.address(path)
        try:
            data = self._fetch(address) if self.is_remote else Path(address).read_bytes()
            return None if data is None else data.decode("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise InputError(f"{address}: the file is not UTF-8; save it as UTF-8") from None
        except OSError as error:
            reason = error.strerror or str(error)
            remedy = "see that it can be fetched" if self.is_remote else "see that it is a file you may read"
            raise InputError(f"{address}: cannot be read ({reason}); {remedy}") from None

    @staticmethod
    def _fetch(address: str) -> bytes | None:
        if not address.startswith("http"):
            try:
                with open_address(address) as stream:
                    return stream.read()
            except OSError:
                return None
        for attempt in range(remote_stream.RETRIES + 1):
            try:
                with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
                    return answer.read()
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if attempt == remote_stream.RETRIES or error.code < 500:
                    raise OSError(f"HTTP {error.code} {error.reason}") from None
            except OSError as error:
                if attempt == remote_stream.RETRIES:
                    raise OSError(str(error)) from None
            time.sleep(remote_stream.PAUSE)
        raise AssertionError("the last attempt returns or raises")
