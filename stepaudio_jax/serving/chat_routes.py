"""The route of `/v1/chat/completions`."""

import asyncio
import contextlib
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stepaudio_jax.errors import ApiError, ClientGoneError
from stepaudio_jax.serving.access import client_of
from stepaudio_jax.serving.chat import ChatService
from stepaudio_jax.serving.chat_protocol import ChatRequest, parse_body
from stepaudio_jax.serving.disconnects import (
    CLIENT_CLOSED_REQUEST,
    EventStream,
    run_while_connected,
)
from stepaudio_jax.serving.docs_page import body_schema

_BODY_TIMEOUT_S = 60
_SEND_TIMEOUT_S = 30  # behind the end of a request, for a client that reads slowly
_JSON = "application/json"


def chat_router(service: ChatService) -> APIRouter:
    """Returns the route of chat completions."""
    router = APIRouter(tags=["chat"])

    @router.post(
        "/v1/chat/completions",
        summary="Answers a dialogue",
        openapi_extra=body_schema(ChatRequest),
    )
    async def chat_completions(request: Request) -> Response:
        with _counted(service, request):
            body: ChatRequest = parse_body(ChatRequest, await read_json_body(request))
            client = client_of(request)
            try:
                chat = await run_while_connected(request.receive, service.prepare(body, client))
                request.state.model_name = chat.model.name
                if not chat.settings.stream:
                    work = service.complete(chat)
                    return JSONResponse(await run_while_connected(request.receive, work))
            except ClientGoneError:
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            job = service.submit(chat)
            return EventStream(
                service.stream(chat, job),
                on_end=job.close,
                timeout_s=service.settings.request_timeout_s + _SEND_TIMEOUT_S,
            )

    return router


async def read_json_body(request: Request) -> bytes:
    """Returns the body of a request that says that it is JSON.

    A page of another site can send a form or plain text to a server on this machine, but no JSON
    without being asked first, and this server answers no.

    Raises:
        ApiError: it says something else, or is too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        raise ApiError(
            415, f"the body must be JSON: send the header 'Content-Type: {_JSON}'", code="not_json"
        )
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            return await request.body()
    except TimeoutError:
        raise ApiError(408, "the body did not arrive in time; send it again") from None


@contextlib.contextmanager
def _counted(service: ChatService, request: Request) -> Iterator[None]:
    """Counts a request by its model and what became of it."""
    status = 500
    try:
        yield
        status = 200
    except ApiError as error:
        status = error.status
        raise
    finally:
        name = getattr(request.state, "model_name", "")
        service.metrics.requests.labels(name, str(status)).inc()
