"""Errors that a client sees, in OpenAI's form, and never a traceback."""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stepaudio_jax.errors import ApiError, StepAudioError

_LOGGER = logging.getLogger(__name__)
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
MAX_MESSAGE_CHARACTERS = 1000


def error_body(error: ApiError) -> dict[str, Any]:
    """Returns the body of the answer to a request that is refused."""
    return {
        "error": {
            "message": _truncate(error.message),
            "type": error_type(error.status),
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError) -> JSONResponse:
    """Returns the answer to a request that is refused."""
    return JSONResponse(error_body(error), status_code=error.status, headers=error.headers)


def error_type(status: int) -> str:
    """Returns OpenAI's word for a class of errors."""
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def user_error(error: StepAudioError, param: str | None = None) -> ApiError:
    """Returns the answer to a user's mistake that the rest of the package has found."""
    return ApiError(400, str(error), param=param)


def install_error_handlers(app: FastAPI) -> None:
    """Gives every error of an application OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(StepAudioError)
    async def mistaken(request: Request, error: StepAudioError) -> JSONResponse:
        return error_response(user_error(error))

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(validation_error(error))

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        headers = dict(error.headers or {})
        return error_response(ApiError(error.status_code, message, headers=headers))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        _LOGGER.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(internal_error())


def internal_error() -> ApiError:
    """Returns the answer to a request that met a mistake of the server's, which its log has."""
    return ApiError(500, "the server made a mistake, which its log describes; try again")


def validation_error(error: RequestValidationError) -> ApiError:
    """Returns the answer to a body that the schema does not allow: the first fault, with its key.

    A body that is no JSON gets 400, and one of another form 422.
    """
    first = error.errors()[0]
    keys = [str(item) for item in first["loc"] if item != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}", code="invalid_json")
    param = ".".join(keys) or None
    return ApiError(422, f"{param or 'the body'}: {first['msg']}", param=param)


def _truncate(message: str) -> str:
    line = " ".join(message.split())
    if len(line) <= MAX_MESSAGE_CHARACTERS:
        return line
    return f"{line[:MAX_MESSAGE_CHARACTERS]} .."
