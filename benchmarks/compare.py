"""Compares the speed of several sides, each in a process of its own, which take turns.

In one process the threads of one library would spin, or hold the cores' caches, while the other is
timed. The machine must be idle otherwise.
"""

import contextlib
import itertools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection

Step = Callable[[], object]
"""One unit of the work that is timed; returns when it is done."""


def compare_speed(
    sides: Mapping[str, Callable[[], Step]],
    *,
    rounds: int,
    steps: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, float]:
    """Returns the median seconds of a step of each side; see `take_turns`."""
    turns = take_turns(sides, rounds=rounds, steps=steps, environments=environments)
    return {name: statistics.median(itertools.chain(*times)) for name, times in turns.items()}


def take_turns(
    sides: Mapping[str, Callable[[], Step]],
    *,
    rounds: int,
    steps: int,
    environments: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, list[list[float]]]:
    """Returns the seconds of each step of each side, turn by turn.

    Args:
        sides: by name, module-level functions that prepare the work. They are called in the process
            that does the work.
        rounds: turns of each side; the side that begins alternates.
        steps: of each turn. Another turn before, in which programs are compiled, is not counted.
        environments: by name, environment variables that a side's process starts with.

    Raises:
        RuntimeError: the process of a side ended.
    """
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    processes = []
    for name, prepare in sides.items():
        connections[name], worker_end = context.Pipe()
        process = context.Process(target=_serve_turns, args=(prepare, worker_end), daemon=True)
        with _environment((environments or {}).get(name, {})):
            process.start()
        worker_end.close()
        processes.append(process)
    turns: dict[str, list[list[float]]] = {name: [] for name in sides}
    try:
        for name in sides:
            _run_turn(name, connections[name], 2)
        for number in range(rounds):
            for name in list(sides)[:: 1 if number % 2 == 0 else -1]:
                turns[name].append(_run_turn(name, connections[name], steps))
    finally:
        for process in processes:
            process.terminate()
    return turns


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run_turn(name: str, connection: Connection, steps: int) -> list[float]:
    """Returns the seconds of each step of a turn."""
    connection.send(steps)
    try:
        return connection.recv()
    except EOFError:
        raise RuntimeError(f"the process of {name} ended; what it printed says why") from None


def _serve_turns(prepare: Callable[[], Step], connection: Connection) -> None:
    """Runs turns of as many steps as the connection asks for; replies with their seconds."""
    step = prepare()
    while True:
        times = []
        for _ in range(connection.recv()):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        connection.send(times)
