"""Throughput and means of the steps since the last log line."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from stepaudio_jax.training.step import Metrics

_UNCHANGED = (
    "skipped_steps",
    "zero_gradient_steps",
)  # 1 in the metrics of a step that changed nothing, and why
_COUNTS = ("tokens", "loss_tokens", "audio_seconds", *_UNCHANGED)


class ThroughputMeter:
    """Collects the metrics of steps without waiting for them; `figures` waits once and starts anew.

    Args:
        flops_per_step: of the whole job, by formula.
        peak_flops: of one device; None where it is not known, and nothing is said of utilisation
            then.
    """

    def __init__(self, flops_per_step: float, peak_flops: float | None) -> None:
        self.history: list[dict[str, float]] = []  # every metric of the steps of the last `figures`
        self._flops_per_step, self._peak_flops = flops_per_step, peak_flops
        self._watch = ThreadPoolExecutor(1, thread_name_prefix="stepaudio-meter")
        self._computed: Future[float] | None = None  # when the last step was
        self._born = time.perf_counter()
        self._useful = 0.0  # seconds of steps that count, so far
        self._compiled = 0.0
        self._restart()

    def _restart(self) -> None:
        self._metrics: list[Metrics] = []
        self._start = time.perf_counter()
        self._waited = 0.0
        self._saved = 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside in which no step was being computed as waiting for data."""
        start = time.perf_counter()
        yield
        if self._computed is None or self._computed.done():
            idle_since = start if self._computed is None else max(start, self._computed.result())
            self._waited += time.perf_counter() - idle_since

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """Leaves the first call of a step, which compiles it, out of the throughput."""
        start = time.perf_counter()
        yield
        self._compiled += time.perf_counter() - start
        self._start += time.perf_counter() - start

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
        self._computed = self._watch.submit(_when_computed, metrics)

    def summary(self) -> dict[str, float]:
        """Of the steps since the last call.

        Means of metrics over the steps that changed something; how many were skipped, and how many
        had nothing to learn; tokens, audio seconds and steps a second, in all and a device; the
        shares of time that data and checkpoints took. `model_flops_utilization` is the share of the
        devices' peak. `goodput` is the share of this process's time, since the stage began, that
        went into steps that changed something: the rest is compilation, evaluation, checkpoints and
        waiting for data.
        """
        steps = [
            {name: float(value) for name, value in step.items()}
            for step in jax.device_get(self._metrics)
        ]
        now = time.perf_counter()
        elapsed, devices = now - self._start, jax.device_count()
        unchanged = {name: sum(step[name] for step in steps) for name in _UNCHANGED}
        taken = [step for step in steps if not any(step[name] for name in _UNCHANGED)] or steps
        self._useful += (elapsed - self._waited - self._saved) * (
            1 - sum(unchanged.values()) / len(steps)
        )
        figures = {
            name: sum(step[name] for step in taken) / len(taken)
            for name in taken[0]
            if name not in _COUNTS
        }
        for name in ("tokens", "audio_seconds"):
            rate = sum(step[name] for step in steps) / elapsed
            figures |= {f"{name}_per_second": rate, f"{name}_per_second_per_device": rate / devices}
        figures |= {
            **unchanged,
            "steps_per_second": len(steps) / elapsed,
            "data_wait_fraction": self._waited / elapsed,
            "checkpoint_wait_fraction": self._saved / elapsed,
            "compile_seconds": self._compiled,
            "goodput": self._useful / (now - self._born),
        }
        if self._peak_flops is not None:
            figures["model_flops_utilization"] = (
                self._flops_per_step * len(steps) / elapsed / (devices * self._peak_flops)
            )
        memory = jax.local_devices()[0].memory_stats()
        if memory and "peak_bytes_in_use" in memory:
            figures["device_memory_peak_bytes"] = memory["peak_bytes_in_use"]
        self.history = steps
        self._restart()
        return figures


def _when_computed(metrics: Metrics) -> float:
    """Waits for a step, on a thread of its own: `time.perf_counter()` then."""
    jax.block_until_ready(metrics)
    return time.perf_counter()
