"""Reads files from the web, for clips that are named by a URL."""

import email.message
import email.utils
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from stepaudio_jax.errors import AudioError
from stepaudio_jax.storage import DiskCache, format_path

_TIMEOUT_S = 30
_MAX_BYTES = 1 << 30
_RETRY_DELAYS_S = (0.5, 2.0, 5.0)
_NOT_MODIFIED, _TOO_MANY_REQUESTS = 304, 429
_MIN_AGE_S = 60  # of a file known by its date, which tells seconds: it might be changed once more
# What a server says of a version of a file (RFC 9110), and the condition of a later request.
_CONDITIONS = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
_USER_AGENT = "stepaudio_jax"


def read_url(url: str, cache: DiskCache | None = None) -> bytes:
    """Returns the content of a `https://` URL.

    Broken connections, HTTP 429 and 5xx are tried again three times.

    Args:
        url: the address.
        cache: where the content is kept, if its server says how to ask whether it has changed
            (`ETag` or `Last-Modified`); it is asked each time.

    Raises:
        AudioError: the address is not encrypted, the server refuses, or the file is over 1 GiB.
    """
    name = format_path(url)
    if not url.lower().startswith("https://"):
        raise AudioError(name, "is not encrypted; give it as https://")
    version, kept = (cache and cache.get(url)) or ("{}", None)
    for delay_s in (*_RETRY_DELAYS_S, None):
        try:
            content, headers = _fetch(url, name, conditions=json.loads(version))
            if cache is not None and (version := _version(headers)):
                cache.put(url, version, content)
            return content
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _NOT_MODIFIED and kept is not None:
                return kept
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


def _fetch(
    url: str, name: str, conditions: Mapping[str, str]
) -> tuple[bytes, email.message.Message]:
    """Returns the content of a URL, and the headers of the answer."""
    request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT, **conditions})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        content: bytes = response.read(_MAX_BYTES + 1)
        headers: email.message.Message = response.headers
    declared = headers.get("Content-Length")
    if len(content) > _MAX_BYTES:
        raise AudioError(name, "is larger than 1 GiB; download it, and name the file")
    if declared is not None and int(declared) != len(content):
        raise http.client.IncompleteRead(content, int(declared) - len(content))
    return content, headers


def _version(headers: email.message.Message) -> str:
    """Returns, as JSON, the conditions of a request for what has changed since; "" if none."""
    conditions = {
        condition: headers[name] for name, condition in _CONDITIONS.items() if headers.get(name)
    }
    if "no-store" in headers.get("Cache-Control", "").lower():
        return ""
    is_settled = "ETag" in headers or _age_s(headers) > _MIN_AGE_S
    return json.dumps(conditions) if conditions and is_settled else ""


def _age_s(headers: email.message.Message) -> float:
    """Returns how long ago a file was changed, by its server's clock; 0 where that is not said."""
    try:
        now, changed = (
            email.utils.parsedate_to_datetime(headers[name]) for name in ("Date", "Last-Modified")
        )
        return (now - changed).total_seconds()
    except (TypeError, ValueError):
        return 0.0
