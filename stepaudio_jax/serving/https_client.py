"""Reads a file over https from an address that was checked, and from no other."""

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Sequence

from stepaudio_jax.errors import AudioError
from stepaudio_jax.serving.address_rules import check_url, resolve, short_name

_READ_BYTES = 1 << 16
_OK = 200
_REDIRECTS = range(300, 400)


def read_https(url: str, domains: Sequence[str], *, max_bytes: int, timeout_s: float) -> bytes:
    """Returns the content of a URL of an allowed host.

    Its host is looked up once, and the connection goes to an address of that answer: another answer
    a moment later changes nothing. Redirects are not followed.

    Args:
        url: as the client has sent it.
        domains: see `check_url`.
        max_bytes: a longer file is refused.
        timeout_s: for all of it after the name is looked up.

    Raises:
        AudioError: the URL is not allowed, or its host does not send the file.
    """
    host, target = check_url(url, domains)
    name = short_name(url)
    addresses = resolve(host, name)
    deadline = time.monotonic() + timeout_s
    connection = _CheckedConnection(host, str(addresses[0]), timeout_s)
    # A host that sends a byte now and then never lets a read time out.
    watchdog = threading.Timer(timeout_s, connection.abort)
    watchdog.start()
    try:
        connection.request("GET", target, headers={"User-Agent": "stepaudio_jax"})
        response = connection.getresponse()
        if response.status in _REDIRECTS:
            raise AudioError(
                name, "leads to another address, which is not followed; give that address"
            )
        if response.status != _OK:
            raise AudioError(name, f"cannot be read: its host answers {response.status}")
        return _read(response, name, max_bytes, deadline)
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= deadline:
            raise _late(name) from None
        raise AudioError(name, f"cannot be read ({type(error).__name__})") from None
    finally:
        watchdog.cancel()
        connection.release()


def _read(response: http.client.HTTPResponse, name: str, max_bytes: int, deadline: float) -> bytes:
    content = bytearray()
    while chunk := response.read1(_READ_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise AudioError(name, f"is larger than {max_bytes / 1e6:g} MB; send less sound")
        if time.monotonic() >= deadline:
            break
    if time.monotonic() >= deadline:  # what was read may be cut short
        raise _late(name)
    return bytes(content)


def _late(name: str) -> AudioError:
    return AudioError(name, "cannot be read in time; send the clip itself")


class _CheckedConnection(http.client.HTTPSConnection):
    """A connection to one address, under the name of its host."""

    def __init__(self, host: str, address: str, timeout_s: float):
        super().__init__(host, timeout=timeout_s, context=ssl.create_default_context())
        self._address = address
        self._wire: socket.socket | None = None  # stays open when the response takes the other over
        self._is_aborted = False

    def connect(self) -> None:
        plain = socket.create_connection((self._address, self.port), self.timeout)
        self._wire = plain.dup()
        if self._is_aborted:
            plain.close()
            raise TimeoutError
        self.sock = self._context.wrap_socket(plain, server_hostname=self.host)  # type: ignore[attr-defined]

    def abort(self) -> None:
        """Ends whatever waits for the connection, from another thread."""
        self._is_aborted = True
        if self._wire is not None:
            with contextlib.suppress(OSError):  # it has ended by itself
                self._wire.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Closes the connection for good."""
        self.close()
        if self._wire is not None:
            self._wire.close()
