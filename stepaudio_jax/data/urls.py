"""Reads files from the web, for clips that are named by a URL."""

import http.client
import time
import urllib.error
import urllib.request

from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import format_path

_TIMEOUT_S = 30
_MAX_BYTES = 1 << 30
_RETRY_DELAYS_S = (0.5, 2.0, 5.0)
_TOO_MANY_REQUESTS = 429
_USER_AGENT = "stepaudio_jax"


def read_url(url: str) -> bytes:
    """Returns the content of a `https://` URL.

    Broken connections, HTTP 429 and 5xx are tried again three times.

    Raises:
        AudioError: the address is not encrypted, the server refuses, or the file is over 1 GiB.
    """
    name = format_path(url)
    if not url.lower().startswith("https://"):
        raise AudioError(name, "is not encrypted; give it as https://")
    for delay_s in (*_RETRY_DELAYS_S, None):
        try:
            return _fetch(url, name)
        except urllib.error.HTTPError as error:
            error.close()
            if delay_s is None or (error.code < 500 and error.code != _TOO_MANY_REQUESTS):
                raise AudioError(
                    name, f"cannot be read: the server answers {error.code} {error.reason}"
                ) from None
        except (OSError, http.client.HTTPException) as error:
            if delay_s is None:
                reason = getattr(error, "reason", error)
                raise AudioError(name, f"cannot be read ({reason})") from None
        time.sleep(delay_s)
    raise AssertionError("the last attempt returns or raises")


def _fetch(url: str, name: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        content: bytes = response.read(_MAX_BYTES + 1)
        declared = response.headers.get("Content-Length")
    if len(content) > _MAX_BYTES:
        raise AudioError(name, "is larger than 1 GiB; download it, and name the file")
    if declared is not None and int(declared) != len(content):
        raise http.client.IncompleteRead(content, int(declared) - len(content))
    return content
