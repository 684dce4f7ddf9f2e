"""Throughput and means of the steps since the last log line."""

import contextlib
import time
from collections.abc import Iterator

import jax

from stepaudio_jax.training.step import Metrics

_COUNTS = ("tokens", "learnt_tokens", "audio_seconds", "skipped_steps")


class Meter:
    """Collects the metrics of steps without waiting for them; `figures` waits once and starts anew."""

    def __init__(self) -> None:
        self.history: list[dict[str, float]] = []  # every metric of the steps of the last `figures`
        self._restart()

    def _restart(self) -> None:
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()
        self._waited = 0.0
        self._saved = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the time inside as waiting for a checkpoint."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._saved += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the throughput."""
        jax.block_until_ready(self._metrics)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, metrics: Metrics) -> None:
        """Takes one step's metrics, still being computed."""
        self._metrics.append(metrics)

    def figures(self) -> dict[str, float]:
        """Of the steps since the last call.

        Means of metrics over the steps that changed something; how many were skipped; tokens, audio seconds and steps a second;
        the shares of time that data and checkpoints took.
        """
        steps = [{name: float(value) for name, value in step.items()} for step in jax.device_get(self._metrics)]
        elapsed = time.perf_counter() - self._start
        taken = [step for step in steps if not step["skipped_steps"]] or steps
        figures = {name: sum(step[name] for step in taken) / len(taken) for name in taken[0] if name not in _COUNTS}
        figures |= {
            "skipped_steps": sum(step["skipped_steps"] for step in steps),
            "tokens_per_second": sum(step["tokens"] for step in steps) / elapsed,
            "audio_seconds_per_second": sum(step["audio_seconds"] for step in steps) / elapsed,
            "steps_per_second": len(steps) / elapsed,
            "data_wait_share": self._waited / elapsed,
            "checkpoint_wait_share": self._saved / elapsed,
        }
        self.history = steps
        self._restart()
        return figures
