"""A fixture of tests that read clips by URLs: a server on loopback, encrypted."""

import http.server
import pathlib
import ssl
import threading

import pytest

from stepaudio_jax.data import urls

CERTIFICATE = pathlib.Path(__file__).parent / "tls" / "localhost.pem"  # self-signed, for tests


@pytest.fixture
def web(formats, monkeypatch):
    """The address of a server of a.wav, and what was asked of it.

    A path that begins with a number of failures (`500-2`, `404-1`, `cut-1`) fails so often first.
    """
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
