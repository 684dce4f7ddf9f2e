"""Ends work whose client has gone away."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from stepaudio_jax.errors import ClientGoneError

Result = TypeVar("Result")

# nginx' status for a client that has closed the connection; nobody reads it.
CLIENT_CLOSED_REQUEST = 499


async def run_while_connected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Returns the result of work, which is cancelled once the client has gone away.

    Args:
        receive: of the request, whose body was read.
        work: what is done for it.

    Raises:
        ClientGoneError: the client has gone away.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        await _cancel(watcher)
        await _cancel(task)


class EventStream(Response):
    """Server-sent events, which end where the client has gone away.

    Args:
        events: the text of each event.
        on_end: called in any case, also where no event was ever asked for.
        timeout_s: after which the connection is given up, as of a client that reads nothing.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[str], *, on_end: Callable[[], object], timeout_s: float
    ):
        super().__init__()
        del self.headers["content-length"]
        # Proxies pass each event on at once.
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._events, self._on_end, self._timeout_s = events, on_end, timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await run_while_connected(receive, self._send(send))
        except (ClientGoneError, TimeoutError):
            return
        finally:
            await self._events.aclose()
            self._on_end()

    async def _send(self, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": self.status_code,
                "headers": self.raw_headers,
            }
        )
        async for event in self._events:
            body = event.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel(task: Awaitable[Any]) -> None:
    """Cancels a task and waits until it has ended."""
    assert isinstance(task, asyncio.Task)
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()  # it is raised by whoever wanted its result
