"""Fetching over HTTP: what stalls or is cut off is an error, and what `curl` does for its users is done."""

from __future__ import annotations

import base64
import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from growclip_ds.data import addresses, remote_stream
from growclip_ds.data.addresses import open_address
from growclip_ds.data.remote_stream import stream_shard
from tests.data.corpus import pair, write_shard

BODY = bytes(range(256)) * 100


class Server(http.server.BaseHTTPRequestHandler):
    """Knows some paths; its server has the answers' `body`, the `requests` and an event for `the_end` of the test."""

    def do_GET(self) -> None:
        body = self.server.body
        self.server.requests.append((self.path, dict(self.headers)))
        first = len(self.server.requests) == 1
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/there")
            self.end_headers()
            return
        if self.path == "/chunks":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"10\r\nbody")
            return
        self.send_response(404 if self.path == "/missing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if first and self.path in ("/stalls", "/cut"):
            self.wfile.write(body[: len(body) // 2])
            if self.path == "/stalls":
                self.server.the_end.wait(20)
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        server.body, server.requests, server.the_end = BODY, [], threading.Event()
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.the_end.set()
        server.shutdown()


def address(server: http.server.ThreadingHTTPServer, path: str, user: str = "") -> str:
    return f"http://{user}127.0.0.1:{server.server_port}{path}"


def test_a_stream_that_stalls_is_opened_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(addresses, "TIMEOUT", 0.3)
    monkeypatch.setattr(remote_stream, "PAUSE", 0.0)
    start = time.monotonic()
    server.body = write_shard(tmp_path / "0.tar", map(pair, range(20))).read_bytes()
    assert [sample.key for sample in stream_shard(address(server, "/stalls"))] == [f"{n:06d}" for n in range(20)]
    assert len(server.requests) == 2
    assert time.monotonic() - start < 10


def test_a_connection_that_ends_too_early_is_an_error(server):
    with open_address(address(server, "/cut")) as stream:
        assert len(stream.read(12_800)) == 12_800
        with pytest.raises(OSError, match="12,800 bytes too early"):
            stream.read(1)
    with open_address(address(server, "/cut")) as stream:
        assert stream.read() == BODY


def test_errors_are_the_servers(server):
    with pytest.raises(OSError, match="404"):
        open_address(address(server, "/missing"))


def test_a_proxy_of_the_environment_is_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", address(server, ""))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies that there were
    with open_address("http://host.invalid/0.tar") as stream:
        assert stream.read() == BODY
    assert [path for path, _ in server.requests] == ["http://host.invalid/0.tar"]
    monkeypatch.setattr(urllib.request, "_opener", None)


def test_a_password_is_sent_and_not_passed_on(server):
    with open_address(address(server, "/moved", "me:p%40ss@")) as stream:
        assert stream.read() == BODY
    (_, first), (_, second) = server.requests
    assert first["Authorization"] == f"Basic {base64.b64encode(b'me:p@ss').decode()}"
    assert "Authorization" not in second


def test_addresses_with_any_characters(server):
    with open_address(address(server, "/größe a%20b.tar?x=[1]")) as stream:
        assert stream.read() == BODY
    assert server.requests[0][0] == "/gr%C3%B6%C3%9Fe%20a%20b.tar?x=[1]"


def test_chunks_that_end_too_early_are_an_error(server):
    with open_address(address(server, "/chunks")) as stream, pytest.raises(OSError, match="IncompleteRead"):
        stream.read()
