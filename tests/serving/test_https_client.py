"""Reading clips over https, from a real server with a certificate on loopback."""

import datetime
import http.server
import ipaddress
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from stepaudio_jax.errors import ApiError, AudioError
from stepaudio_jax.serving import ServingSettings, https_client
from stepaudio_jax.serving.clips import ClipReader, UrlTime

HOST = "media.example.org"
CONTENT = b"RIFF" * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["Host"]))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"https://{HOST}/clip.wav")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/drip":
            self.send_response(200)
            self.flush_headers()
            for index in range(200):  # more than http.client takes
                self.wfile.write(f"X-{index}: 0\r\n".encode())
                time.sleep(0.02)
        else:
            self.send_response(200)
            self.end_headers()
            for index in range(0, len(CONTENT), 400):
                self.wfile.write(CONTENT[index : index + 400])
                if self.path == "/slow":
                    time.sleep(0.1)

    def log_message(self, *_):
        pass


def make_certificate(folder, host):
    """Writes a key and a certificate of a host, signed by itself; returns their files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server of media.example.org, which the name leads to and which is trusted."""
    key, certificate = make_certificate(tmp_path, HOST)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    trusting = ssl.create_default_context(cafile=certificate)
    monkeypatch.setattr(https_client.ssl, "create_default_context", lambda: trusting)
    monkeypatch.setattr(
        https_client, "resolve", lambda host, name: [ipaddress.ip_address("127.0.0.1")]
    )
    monkeypatch.setattr(https_client._CheckedConnection, "default_port", server.server_address[1])
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def read(path, **options):
    options = {"max_bytes": 1_000_000, "timeout_s": 5.0, **options}
    return https_client.read_https(f"https://{HOST}{path}", [HOST], **options)


def test_a_file_is_read_under_the_name_of_its_host(web):
    assert read("/clip.wav?x=1") == CONTENT
    ((path, host),) = web.asked
    assert path == "/clip.wav?x=1"
    assert host.startswith(HOST)


def test_a_redirect_is_not_followed(web):
    with pytest.raises(AudioError, match="not followed"):
        read("/moved")
    assert [path for path, _ in web.asked] == ["/moved"]


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("/missing", {}, "answers 404"),
        ("/clip.wav", {"max_bytes": 3999}, "larger than"),
        ("/slow", {"timeout_s": 0.2}, "in time"),
        ("/drip", {"timeout_s": 0.2}, "in time"),
    ],
)
def test_what_cannot_be_read_is_refused(web, path, options, words):
    with pytest.raises(AudioError, match=words):
        read(path, **options)


def test_reading_takes_off_the_time_of_the_request(web):
    clips, url_time = ClipReader(ServingSettings(audio_domains=(HOST,)), 0), UrlTime(60.0)
    assert clips.fetch(f"https://{HOST}/slow", "part 1", url_time) == CONTENT
    assert url_time.left < 59.2  # the server takes 1 s
    with pytest.raises(ApiError, match=r"part 2: .* in time"):
        clips.fetch(f"https://{HOST}/clip.wav", "part 2", UrlTime(-0.1))
    assert len(web.asked) == 1


def test_a_certificate_of_another_host_is_refused(web):
    with pytest.raises(AudioError, match="cannot be read"):
        https_client.read_https(
            f"https://other.{HOST}/clip.wav", [HOST], max_bytes=10_000, timeout_s=5.0
        )
    assert web.asked == []


def test_an_address_of_this_machine_is_not_connected_to(monkeypatch):
    """A name that leads to this machine is refused before a connection is made."""
    connected = []
    monkeypatch.setattr(https_client.socket, "create_connection", lambda *_: connected.append(1))
    with pytest.raises(AudioError, match=r"public internet|not known"):
        https_client.read_https("https://localhost/", ["localhost"], max_bytes=1, timeout_s=1.0)
    assert not connected
