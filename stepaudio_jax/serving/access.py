"""Who may ask, and how much: API keys, the size of bodies, other sites' pages."""

import hashlib
import hmac
import ipaddress
import os
import re

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepaudio_jax.errors import ApiError, ConfigError
from stepaudio_jax.serving.errors import error_response
from stepaudio_jax.serving.settings import ServingSettings
from stepaudio_jax.storage import PathLike, read_text

_OPEN_PATHS = ("/", "/health")
_OPEN_FOLDER = "/page/"


def install_access_rules(app: FastAPI, settings: ServingSettings) -> None:
    """Adds the rules around all routes of an application."""
    app.add_middleware(
        _BodyLimit,
        max_bytes=round(settings.max_body_mb * 1e6),
        max_total_bytes=round(settings.max_bodies_mb * 1e6),
    )
    if settings.api_keys:
        app.add_middleware(_ApiKeys, keys=settings.api_keys)
    if is_loopback(settings.host):
        app.add_middleware(_LoopbackHosts, allowed=settings.allowed_hosts)
    if settings.cors_origins:  # the outermost: an answer without its headers says nothing
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )


def is_loopback(host: str) -> bool:
    """Returns whether a host is a name or an address of this machine for itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def client_of(request: Request) -> str:
    """Returns a name for whoever sends a request: of the key, or else of the address."""
    if request.app.state.settings.api_keys:
        return _digest(_bearer_key(request.headers)).hex()[:16]
    return request.client.host if request.client is not None else ""


def read_api_keys(path: PathLike) -> tuple[str, ...]:
    """Returns the keys of a file, one a line; empty lines and those that begin with # are none.

    Raises:
        ConfigError: the file cannot be read, or has no key.
    """
    try:
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file={os.fspath(path)!r} cannot be read ({error})") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"api_key_file={os.fspath(path)!r} has no key; write one a line")
    return keys


class _ApiKeys:
    """Lets requests through that bring a key as `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]):
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_open = scope["type"] != "http" or path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
        if is_open or self._is_known(_bearer_key(Headers(scope=scope))):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "a key is needed: send the header 'Authorization: Bearer KEY' with a key of this"
            " server",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(error)(scope, receive, send)

    def _is_known(self, key: bytes) -> bool:
        digest = _digest(key)
        # All are compared, each in constant time: how long it takes tells nothing of a key.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


class _LoopbackHosts:
    """Answers a server of this machine only under the names that lead to this machine.

    A page from elsewhere can point a name of its own to this machine, and would then be a page of
    this server to the browser.
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]):
        self._app = app
        self._allowed = {name.lower() for name in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        name = re.sub(r":\d+$", "", host).strip("[]").lower()
        if not name or is_loopback(name) or name in self._allowed:
            await self._app(scope, receive, send)
            return
        error = ApiError(
            400,
            "this server answers only under the names of its own machine; start it with"
            " --allowed-host to let a proxy use another",
            code="unknown_host",
        )
        await error_response(error)(scope, receive, send)


class _BodyLimit:
    """Refuses bodies that are too large, by what they say of themselves and by what arrives.

    A body counts until its request has been answered.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_total_bytes: int):
        self._app, self._max_bytes, self._max_total_bytes = app, max_bytes, max_total_bytes
        self._total_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._max_bytes:
            await error_response(self._error())(scope, receive, send)
            return
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._total_bytes += size
            if received > self._max_bytes:
                raise self._error()
            if self._total_bytes > self._max_total_bytes:
                raise ApiError(
                    503,
                    "the server is reading too many large requests; try again",
                    code="busy",
                    headers={"Retry-After": "5"},
                )
            return message

        try:
            await self._app(scope, limited_receive, send)
        finally:
            self._total_bytes -= received

    def _error(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than this server's {self._max_bytes / 1e6:g} MB; send less sound,"
            " or start the server with a larger --max-body-mb",
            code="body_too_large",
        )


def _bearer_key(headers: Headers) -> bytes:
    """Returns the key that a request brings, in whatever way its header is written; b"" for none.

    No key of a server is empty.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" else b""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
