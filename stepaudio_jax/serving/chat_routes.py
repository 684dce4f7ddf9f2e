"""The route of `/v1/chat/completions`."""

import asyncio
import contextlib
from collections.abc import Iterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from stepaudio_jax.errors import ApiError, ClientGoneError, StepAudioError
from stepaudio_jax.serving.access import client_of
from stepaudio_jax.serving.chat import ChatService
from stepaudio_jax.serving.chat_protocol import ChatRequest, parse_body
from stepaudio_jax.serving.disconnects import (
    CLIENT_CLOSED_REQUEST,
    EventStream,
    run_while_connected,
)
from stepaudio_jax.serving.docs_page import body_schema
from stepaudio_jax.serving.errors import user_error
from stepaudio_jax.serving.metrics import RequestCount

_BODY_TIMEOUT_S = 60
_SEND_TIMEOUT_S = 30  # after the end of a request, for a client that reads slowly
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
        with _counted(service) as count:
            body: ChatRequest = parse_body(ChatRequest, await read_json_body(request))
            client = client_of(request)
            try:
                chat = await run_while_connected(request.receive, service.prepare(body, client))
                count.model = chat.model.name
                if not chat.settings.stream:
                    work = service.complete(chat)
                    response = JSONResponse(await run_while_connected(request.receive, work))
                    count.status = response.status_code
                    return response
            except ClientGoneError:
                count.status = CLIENT_CLOSED_REQUEST
                return Response(status_code=count.status)
            job = service.submit(chat)
            count.status, count.is_streamed = CLIENT_CLOSED_REQUEST, True

            def end() -> None:
                job.close()
                count.add()

            return EventStream(
                service.stream(chat, job, count),
                on_end=end,
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
def _counted(service: ChatService) -> Iterator[RequestCount]:
    """Counts a request by its model and the status that its client gets."""
    count = RequestCount(service.metrics.requests)
    try:
        yield count
    except ApiError as error:
        count.status = error.status
        raise
    except StepAudioError as error:
        count.status = user_error(error).status
        raise
    finally:
        if not count.is_streamed:
            count.add()
