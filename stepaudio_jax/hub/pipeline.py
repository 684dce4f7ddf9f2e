"""Preparing blocks in threads while earlier ones are written."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Called with the bytes written so far and the bytes there will be.
ProgressCallback = Callable[[int, int], None]


def ordered_parallel_map(
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    *,
    threads: int = 2,
    max_pending: int = 3,
) -> Iterator[ResultT]:
    """`map(function, items)`, computed in threads at most `max_pending` items early, so that memory stays bounded."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        due: collections.deque[concurrent.futures.Future[ResultT]] = collections.deque()
        try:
            for item in items:
                due.append(pool.submit(function, item))
                if len(due) > max_pending:
                    yield due.popleft().result()
            while due:
                yield due.popleft().result()
        finally:
            for future in due:
                future.cancel()
