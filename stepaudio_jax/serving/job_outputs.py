"""What the engines' thread gives of a job, for the event loop that waits for it."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from stepaudio_jax.errors import ApiError, GenerationError
from stepaudio_jax.generation import RequestOutput
from stepaudio_jax.serving.engine_thread import EngineThread
from stepaudio_jax.serving.errors import user_error
from stepaudio_jax.serving.jobs import Job, Work

Outputs = Sequence[tuple[int, RequestOutput]]
"""What a step has added to a job: (which of its replies, output)."""


class JobOutputs:
    """The outputs of a job, as they come, for the event loop in which it was made.

    Args:
        work: of the job.
        thread: the engines' thread.
        on_end: called once the job is over for the server.

    Attributes:
        job: for the thread.
    """

    def __init__(self, work: Work, thread: EngineThread, on_end: Callable[["JobOutputs"], object]):
        self._thread, self._on_end = thread, on_end
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Outputs | ApiError] = asyncio.Queue()
        self._is_closed = False
        self.job = Job(work, self._deliver, self._fail_from_thread)

    async def next(self) -> Outputs:
        """Returns what the next steps have added.

        Raises:
            ApiError: the job will not be finished.
        """
        outputs = await self._queue.get()
        if isinstance(outputs, ApiError):
            raise outputs
        return outputs

    def fail(self, error: ApiError) -> None:
        """Lets the next call of `next` raise an error."""
        self._queue.put_nowait(error)

    def close(self) -> None:
        """Gives the job up, if it has not ended."""
        if not self._is_closed:
            self._is_closed = True
            self._thread.cancel(self.job)
            self._on_end(self)

    def _deliver(self, outputs: Outputs) -> None:
        self._call(self._queue.put_nowait, outputs)

    def _fail_from_thread(self, error: GenerationError | None) -> None:
        self._call(self.fail, stopping_error() if error is None else user_error(error))

    def _call(self, function: Callable[..., object], argument: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, argument)


def stopping_error() -> ApiError:
    """Returns what a client gets whose reply the server cannot finish any more."""
    return ApiError(503, "the server stops and could not finish this reply", code="stopping")
