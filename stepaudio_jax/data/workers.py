"""Worker processes: they prepare records where the threads of one process no longer scale.

Each of them opens the sources for itself, and is given single visits, whose results the packer puts
in order. So neither the batches nor the state depend on how many workers there are. (grain's
`mp_prefetch` deals the elements of a dataset to its workers, whose number then decides the order,
and is part of the state.)

Results come back through pipes, by pickle. That copies 0.5 MB for 10 s of sound, in well under a
millisecond of a thread that does nothing else. Shared memory would save the copy; but containers
often have 64 MB of it, and what a killed process leaves there stays.
"""

import contextlib
import functools
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import jax

from stepaudio_jax.errors import StepAudioError, WorkerError

Item = TypeVar("Item")
Result = TypeVar("Result")

_CLOSE_TIMEOUT_S = 10.0  # after which a worker that still computes is killed
_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)


class WorkerPool(Generic[Item, Result]):
    """Calls a function in several processes, each with several threads.

    The processes leave Ctrl-C and SIGTERM to the one that started them, and end when it does,
    however it ends. None of them uses an accelerator.

    Args:
        open_function: returns the function, in each process anew; the function need not be
            picklable, its arguments and results must be.
        processes: how many.
        threads: of each process.
    """

    def __init__(
        self,
        open_function: Callable[[], Callable[[Item], Result]],
        *,
        processes: int,
        threads: int,
    ):
        self._workers: list[_Worker[Item, Result]] = [
            _Worker(open_function, threads) for _ in range(processes)
        ]

    def submit(self, item: Item) -> Future[Result]:
        """Lets the process with the least to do compute the result of an item.

        The future raises what the function, or its opening, raises there, and a WorkerError if the
        process ends before.
        """
        return min(self._workers, key=lambda worker: worker.num_pending).submit(item)

    def close(self) -> None:
        """Ends the processes; what was not begun is cancelled. Calling it again does nothing."""
        for worker in self._workers:
            worker.stop()
        for worker in self._workers:
            worker.join()


class _Worker(Generic[Item, Result]):
    """One process: a pipe to it, and a thread that waits for its answers."""

    def __init__(self, open_function: Callable[[], Callable[[Item], Result]], threads: int):
        context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
        self._connection, worker_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(worker_end, open_function, threads), daemon=True
        )
        with _signals_blocked():
            self._process.start()
        worker_end.close()  # the process has its own; when that is closed, the pipe has ended
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._pending: dict[int, Future[Result]] = {}
        self._ended: str | None = None
        self._receiver = threading.Thread(
            target=self._receive, name=f"stepaudio-worker-{self._process.pid}", daemon=True
        )
        self._receiver.start()

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def submit(self, item: Item) -> Future[Result]:
        future: Future[Result] = Future()
        with self._lock:
            if self._ended is not None:
                future.set_exception(WorkerError(self._ended))
                return future
            number = next(self._numbers)
            self._pending[number] = future
            with contextlib.suppress(OSError):  # it has ended, and the receiver is about to say so
                self._connection.send((number, item))
        return future

    def stop(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._ended is None:
                self._connection.send(None)

    def join(self) -> None:
        self._receiver.join(_CLOSE_TIMEOUT_S)
        if self._receiver.is_alive():
            self._process.kill()
            self._receiver.join()

    def _receive(self) -> None:
        """Passes answers on until the process ends, and then says so to whoever still waits."""
        with contextlib.suppress(EOFError, OSError):
            while True:
                number, error, result = self._connection.recv()
                with self._lock:
                    future = self._pending.pop(number)
                _answer(future, error, result)
        self._process.join()
        with self._lock:
            self._ended = _describe_end(self._process.exitcode)
            unanswered = list(self._pending.values())
            self._pending.clear()
            self._connection.close()
        for future in unanswered:
            _answer(future, WorkerError(self._ended), None)


def _answer(future: Future[Any], error: BaseException | None, result: Any) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Lets a process that is started inside leave signals to this one, from its first moment on.

    A new process inherits which signals are blocked, and nothing there unblocks them.
    """
    resource_tracker.ensure_running()  # else the first start does that, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _describe_end(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return (
            f"a process that prepares data was killed by {signal.Signals(-exit_code).name}; if it"
            " was for want of memory, lower data.workers, data.threads or data.prefetch_batches"
        )
    return (
        f"a process that prepares data has ended with exit code {exit_code}; what it printed says"
        " why (a script that starts a run with data.workers must do so below `if __name__ =="
        " '__main__':`, since each worker imports it)"
    )


def _serve(
    connection: Connection, open_function: Callable[[], Callable[[Any], Any]], threads: int
) -> None:
    """Computes what the connection asks for, until it says None or has ended."""
    # The devices belong to the process that trains.
    jax.config.update("jax_platforms", "cpu")
    lock = threading.Lock()

    def reply(number: int, future: Future[Any]) -> None:
        if future.cancelled():
            return
        content = _pickle_answer(number, future)
        with lock, contextlib.suppress(OSError):  # nobody waits any more
            connection.send_bytes(content)

    pool = ThreadPoolExecutor(threads, thread_name_prefix="stepaudio-data")
    function = pool.submit(open_function)
    try:
        while (task := connection.recv()) is not None:
            number, item = task
            future = pool.submit(lambda item: function.result()(item), item)
            future.add_done_callback(functools.partial(reply, number))
    except (EOFError, OSError):  # the process that started this one has ended
        os._exit(1)
    pool.shutdown(cancel_futures=True)


def _pickle_answer(number: int, future: Future[Any]) -> bytes:
    """Returns the pickled number of a task, its error or None, and its result or None."""
    error = future.exception()
    if error is not None and not isinstance(error, StepAudioError | OSError):
        lines = traceback.format_exception(error)
        error.add_note("In a process that prepares data:\n" + "".join(lines))
    try:
        return pickle.dumps((number, error, None if error is not None else future.result()))
    except (pickle.PicklingError, TypeError, AttributeError) as problem:
        what = repr(error if error is not None else type(future.result()))
        return pickle.dumps((number, RuntimeError(f"{what} cannot be pickled: {problem}"), None))
