"""The page: its files, and the headers that keep it to itself.

The browser may load nothing from elsewhere, run no script but the page's files, and show the page
in no frame: what a model writes cannot reach further, whatever it writes.
"""

import hashlib
import pathlib
from collections.abc import Iterable

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from stepaudio_jax.errors import ApiError
from stepaudio_jax.hub import has_random_weights
from stepaudio_jax.serving.models import ServedModel

PAGE_FOLDER = pathlib.Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "media-src blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def mount_page(app: FastAPI, models: Iterable[ServedModel] = ()) -> None:
    """Adds the page at `/`, its files at `/page/NAME`, and `/about`, what it says of the server.

    Args:
        app: the application.
        models: of which the page says whether their weights are random, or few.
    """
    known = {
        model.name: {
            "num_parameters": model.num_parameters,
            "is_random": has_random_weights(model.loaded.folder),
        }
        for model in models
    }
    # All are read now: a name that is none of theirs reaches no file.
    files = {
        path.name: (path.read_bytes(), _MEDIA_TYPES[path.suffix])
        for path in sorted(PAGE_FOLDER.iterdir())
        if path.suffix in _MEDIA_TYPES
    }

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return _answer(request, *files["index.html"])

    @app.get("/about", include_in_schema=False)
    async def about() -> JSONResponse:
        has_study = getattr(app.state, "preferences", None) is not None
        return JSONResponse({"models": known, "preferences": has_study}, headers=HEADERS)

    @app.get("/page/{name}", include_in_schema=False)
    async def file(request: Request, name: str) -> Response:
        if name not in files:
            raise ApiError(404, f"the page has no file {name!r}")
        return _answer(request, *files[name])


def _answer(request: Request, content: bytes, media_type: str) -> Response:
    """Returns a file, or that the browser has it already."""
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)
