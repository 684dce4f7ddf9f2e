"""Clips named by URLs, read from a server on loopback."""

import contextlib
import http.server
import pathlib
import ssl
import threading

import numpy as np
import pytest

from stepaudio_jax.data import urls
from stepaudio_jax.data.clips import load_clip, probe_clip
from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import DiskCache
from stepaudio_jax.text.dialogue import AudioPart

CERTIFICATE = pathlib.Path(__file__).parent / "tls" / "localhost.pem"  # self-signed, for tests


class ClipServer:
    """Serves a clip on loopback, over TLS.

    Attributes:
        content: of the clip.
        headers: sent with it. A request whose condition is one of their values is answered by 304.
        requests: the paths that were asked for. A path that begins with a failure and a number
            fails so often first.
        statuses: the answers.
    """

    def __init__(self, content: bytes):
        self.content, self.headers = content, dict[str, str]()
        self.requests: list[str] = []
        self.statuses: list[int] = []
        self._httpd = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Handler", (_Handler,), {"clip": self})
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        self._httpd.socket = context.wrap_socket(self._httpd.socket, server_side=True)
        self.address = f"https://127.0.0.1:{self._httpd.server_address[1]}"
        threading.Thread(target=self._httpd.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._httpd.shutdown()
        self._httpd.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    clip: ClipServer

    def do_GET(self) -> None:
        clip = self.clip
        clip.requests.append(self.path)
        kind, _, count = self.path.strip("/").partition("-")
        is_failing = len(clip.requests) <= int(count or 0)
        conditions = {self.headers["If-None-Match"], self.headers["If-Modified-Since"]}
        is_known = not conditions.isdisjoint(clip.headers.values())
        clip.statuses.append(int(kind) if is_failing and kind.isdigit() else 304 * is_known or 200)
        self.send_response_only(clip.statuses[-1])
        for name, value in clip.headers.items():
            self.send_header(name, value)
        content = clip.content if clip.statuses[-1] == 200 else b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_failing else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def clip(formats, monkeypatch):
    """A server of a.wav, which this process trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(urls, "_RETRY_DELAYS_S", (0.0, 0.0))
    with contextlib.closing(ClipServer((formats / "clips" / "a.wav").read_bytes())) as server:
        yield server


@pytest.mark.parametrize(("path", "attempts"), [("a.wav", 1), ("500-2", 3), ("cut-1", 2)])
def test_clip_is_read_also_after_failures(clip, formats, path, attempts):
    part = AudioPart(f"{clip.address}/{path}")
    np.testing.assert_array_equal(
        load_clip(part, allow_urls=True), load_clip(AudioPart(str(formats / "clips" / "a.wav")))
    )
    assert len(clip.requests) == attempts
    assert probe_clip(part, allow_urls=True) is None  # it is not read for that
    assert len(clip.requests) == attempts


@pytest.mark.parametrize(
    ("path", "attempts", "message"),
    [("404-9", 1, "answers 404"), ("500-9", 3, "answers 500"), ("cut-9", 3, "cannot be read")],
)
def test_server_that_gives_no_clip_is_an_error(clip, path, attempts, message):
    with pytest.raises(AudioError, match=message) as error:
        load_clip(AudioPart(f"{clip.address}/{path}"), allow_urls=True)
    assert len(clip.requests) == attempts
    assert "\n" not in str(error.value)


def test_urls_are_read_only_where_they_are_allowed_and_encrypted(clip):
    with pytest.raises(AudioError, match=r"data\.allow_urls"):
        load_clip(AudioPart(f"{clip.address}/a.wav"))
    with pytest.raises(AudioError, match="not encrypted"):
        load_clip(AudioPart("http://127.0.0.1/a.wav"), allow_urls=True)
    assert not clip.requests


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"1"'},
        {
            "Last-Modified": "Tue, 01 Apr 2025 10:00:00 GMT",
            "Date": "Tue, 01 Apr 2025 10:02:00 GMT",
        },
    ],
)
def test_clip_is_kept_as_long_as_its_server_says_that_it_is_the_same(
    clip, formats, tmp_path, headers
):
    clip.headers = headers
    part, cache = AudioPart(f"{clip.address}/a.wav"), DiskCache(tmp_path, 1 << 20)
    first = load_clip(part, allow_urls=True, cache=cache)
    for _ in range(2):
        again = load_clip(part, allow_urls=True, cache=DiskCache(tmp_path, 1 << 20))
        np.testing.assert_array_equal(again, first)
    assert clip.statuses == [200, 304, 304]

    clip.content = (formats / "clips" / "b.wav").read_bytes()
    clip.headers = {"ETag": '"2"'}
    for _ in range(2):
        other = load_clip(part, allow_urls=True, cache=cache)
        assert len(other) != len(first)
    assert clip.statuses == [200, 304, 304, 200, 304]
    assert len(list(tmp_path.rglob("??/*"))) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ETag": '"1"', "Cache-Control": "private, no-store"},
        {"Last-Modified": "Tue, 01 Apr 2025 10:00:00 GMT"},  # by which clock?
        {
            "Last-Modified": "Tue, 01 Apr 2025 10:00:00 GMT",
            "Date": "Tue, 01 Apr 2025 10:00:00 GMT",
        },
    ],
)
def test_clip_is_not_kept_where_a_change_could_not_be_seen(clip, tmp_path, headers):
    clip.headers = headers
    cache = DiskCache(tmp_path, 1 << 20)
    for _ in range(2):
        load_clip(AudioPart(f"{clip.address}/a.wav"), allow_urls=True, cache=cache)
    assert clip.statuses == [200, 200]
    assert not list(tmp_path.rglob("??/*"))


def test_clip_that_is_kept_is_not_heard_without_its_server(clip, tmp_path):
    """A clip that its owner has removed, or a server that fails, is an error as without a cache."""
    clip.headers = {"ETag": '"1"'}
    part, cache = AudioPart(f"{clip.address}/a.wav"), DiskCache(tmp_path, 1 << 20)
    load_clip(part, allow_urls=True, cache=cache)
    clip.close()
    with pytest.raises(AudioError, match="cannot be read"):
        load_clip(part, allow_urls=True, cache=cache)
