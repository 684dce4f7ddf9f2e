"""Clips named by URLs, read from a server on loopback."""

import http.server
import pathlib
import ssl
import threading

import numpy as np
import pytest

from stepaudio_jax.data import urls
from stepaudio_jax.data.clips import load_clip, probe_clip
from stepaudio_jax.errors import AudioError
from stepaudio_jax.text.dialogue import AudioPart

CERTIFICATE = pathlib.Path(__file__).parent / "tls" / "localhost.pem"  # self-signed, for tests


@pytest.fixture
def server(formats, monkeypatch):
    """Serves a.wav; a path that begins with a number of failures fails so often first."""
    content = (formats / "clips" / "a.wav").read_bytes()
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            kind, _, count = self.path.strip("/").partition("-")
            failing = len(requests) <= int(count or 0)
            if kind in ("500", "404") and failing:
                self.send_error(int(kind))
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if kind == "cut" and failing else content)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(urls, "_RETRY_DELAYS_S", (0.0, 0.0))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{httpd.server_address[1]}", requests
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(("path", "attempts"), [("a.wav", 1), ("500-2", 3), ("cut-1", 2)])
def test_clip_is_read_also_after_failures(server, formats, path, attempts):
    address, requests = server
    part = AudioPart(f"{address}/{path}")
    np.testing.assert_array_equal(
        load_clip(part, allow_urls=True), load_clip(AudioPart(str(formats / "clips" / "a.wav")))
    )
    assert len(requests) == attempts
    assert probe_clip(part, allow_urls=True) is None  # it is not read for that
    assert len(requests) == attempts


@pytest.mark.parametrize(
    ("path", "attempts", "message"),
    [("404-9", 1, "answers 404"), ("500-9", 3, "answers 500"), ("cut-9", 3, "cannot be read")],
)
def test_server_that_gives_no_clip_is_an_error(server, path, attempts, message):
    address, requests = server
    with pytest.raises(AudioError, match=message) as error:
        load_clip(AudioPart(f"{address}/{path}"), allow_urls=True)
    assert len(requests) == attempts
    assert "\n" not in str(error.value)


def test_urls_are_read_only_where_they_are_allowed_and_encrypted(server):
    address, requests = server
    with pytest.raises(AudioError, match=r"data\.allow_urls"):
        load_clip(AudioPart(f"{address}/a.wav"))
    with pytest.raises(AudioError, match="not encrypted"):
        load_clip(AudioPart("http://127.0.0.1/a.wav"), allow_urls=True)
    assert not requests
