"""A fair contest: each contestant in a process of its own, taking turns on an otherwise idle machine.

In one process the threads of one library spin, or hold the cores' caches, while the other is timed.
"""

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection

Step = Callable[[], object]
"""One unit of the work that is timed; returns when it is done."""


def compare_speed(
    contestants: Mapping[str, Callable[[], Step]],
    *,
    rounds: int,
    steps: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, float]:
    """Median seconds of a step of each contestant.

    Args:
        contestants: by name, module-level functions that prepare the work, in the process where it
        will be done.
        environments: variables that the process of a contestant begins with, where its own programs
        begin so too.
        rounds: turns of each; who begins alternates.
        steps: of each turn. The first turn of all, in which programs are compiled, is not counted.

    Raises:
        RuntimeError: a contestant's process ended.
    """
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    processes = []
    for name, prepare in contestants.items():
        lines[name], theirs = context.Pipe()
        process = context.Process(target=_take_turns, args=(prepare, theirs), daemon=True)
        with _environment((environments or {}).get(name, {})):
            process.start()
        theirs.close()
        processes.append(process)
    times: dict[str, list[float]] = {name: [] for name in contestants}
    try:
        for name in contestants:
            _turn(name, lines[name], 2)
        for turn in range(rounds):
            for name in list(contestants)[:: 1 if turn % 2 == 0 else -1]:
                times[name] += _turn(name, lines[name], steps)
    finally:
        for process in processes:
            process.terminate()
    return {name: statistics.median(taken) for name, taken in times.items()}


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _turn(name: str, line: Connection, steps: int) -> list[float]:
    line.send(steps)
    try:
        return line.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} ended; what it printed says why") from None


def _take_turns(prepare: Callable[[], Step], line: Connection) -> None:
    step = prepare()
    while True:
        times = []
        for _ in range(line.recv()):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        line.send(times)
