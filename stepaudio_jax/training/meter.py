"""Throughput and means of the steps since the last log line."""

import contextlib
import time
from collections.abc import Iterator

import jax

from stepaudio_jax.training.step import Metrics

_COUNTS = ("tokens", "learnt_tokens", "audio_seconds")


class Meter:
    """Collects the metrics of steps without waiting for them; `figures` waits once and starts anew."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

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
        """Means over the steps since the last call; tokens, audio seconds and steps a second; the share of time data took."""
        steps = jax.device_get(self._metrics)
        elapsed = time.perf_counter() - self._start
        figures = {name: sum(float(step[name]) for step in steps) / len(steps) for name in steps[0] if name not in _COUNTS}
        figures |= {
            "tokens_per_second": sum(float(step["tokens"]) for step in steps) / elapsed,
            "audio_seconds_per_second": sum(float(step["audio_seconds"]) for step in steps) / elapsed,
            "steps_per_second": len(steps) / elapsed,
            "data_wait_share": self._waited / elapsed,
        }
        self._restart()
        return figures
