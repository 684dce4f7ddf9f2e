"""What a server counts, for Prometheus: requests, tokens, waiting, caches, compiled programs."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stepaudio_jax.generation import Engine
from stepaudio_jax.serving.engine_thread import EngineThread

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "stepaudio"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class Metrics:
    """Counts what a server does.

    Args:
        thread: the engines' thread.
        engines: of each model, by name.
    """

    def __init__(self, thread: EngineThread, engines: Mapping[str, Engine]):
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(thread, engines))
        options: dict[str, Any] = {"registry": self._registry, "namespace": _PREFIX}
        self.requests = Counter(
            "requests",
            "Requests by model and status; 499: the client went away",
            ["model", "status"],
            **options,
        )
        self.prompt_tokens = Counter(
            "prompt_tokens", "Tokens of prompts, sound included", ["model"], **options
        )
        self.audio_tokens = Counter(
            "audio_tokens", "Tokens of prompts that stand for sound", ["model"], **options
        )
        self.audio_seconds = Counter("audio_seconds", "Seconds of sound", ["model"], **options)
        self.completion_tokens = Counter(
            "completion_tokens", "Tokens of replies, reasoning included", ["model"], **options
        )
        self.time_to_first_token = Histogram(
            "time_to_first_token_seconds",
            "From the arrival of a request to its first token",
            ["model"],
            buckets=_SECONDS,
            **options,
        )
        self.time_between_tokens = Histogram(
            "time_between_tokens_seconds",
            "From a piece of a reply to its next one, for each token of that",
            ["model"],
            buckets=_GAP_SECONDS,
            **options,
        )
        self.request_seconds = Histogram(
            "request_seconds", "Duration of requests", ["model"], buckets=_SECONDS, **options
        )

    def render(self) -> bytes:
        """Returns all figures in Prometheus' text form."""
        return generate_latest(self._registry)


@dataclasses.dataclass
class RequestCount:
    """What is known of a request, to count it once when it has ended.

    Attributes:
        requests: counts by model and status.
        model: which answers; "" until it is known.
        status: what its client was told, as an HTTP status.
        is_streamed: whether the route has ended before the answer: the stream counts it then.
    """

    requests: Counter
    model: str = ""
    status: int = 500
    is_streamed: bool = False

    def add(self) -> None:
        """Counts the request."""
        self.requests.labels(self.model, str(self.status)).inc()


class CompileCounter:
    """Counts the programs that this process compiles, from now on."""

    def __init__(self) -> None:
        from jax import monitoring

        self.count = 0
        monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **details: str | int) -> None:
        del duration_secs, details
        self.count += event == _COMPILE_EVENT


class _EngineCollector(Collector):
    """Reads the figures that the engines keep, when they are asked for."""

    def __init__(self, thread: EngineThread, engines: Mapping[str, Engine]):
        self._thread, self._engines = thread, engines
        self._compiled = CompileCounter()

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            f"{_PREFIX}_waiting_replies", "Replies without a slot", self._thread.num_waiting
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}_ready", "Whether requests are answered", self._thread.state == "ready"
        )
        yield GaugeMetricFamily(
            f"{_PREFIX}_compiled_programs",
            "Programs compiled by this process; constant once it is ready",
            self._compiled.count,
        )
        gauges = {
            "slots": ("Slots", lambda engine: engine.num_slots),
            "busy_slots": ("Slots in use", lambda engine: engine.num_slots - engine.free_slots),
            "prefix_cache_bytes": (
                "Keys and values that are kept of prompts' beginnings",
                lambda engine: engine.chunked_prefill.blocks.num_bytes,
            ),
            "audio_cache_bytes": (
                "Encoded sound that is kept",
                lambda engine: engine.chunked_prefill.features.num_bytes,
            ),
        }
        counters = {
            "prefix_cache_queries": (
                "Tokens of prompts that were looked up",
                lambda engine: engine.chunked_prefill.prompt_tokens,
            ),
            "prefix_cache_hits": (
                "Tokens of prompts whose keys and values were kept",
                lambda engine: engine.chunked_prefill.reused_tokens,
            ),
            "audio_cache_hits": (
                "Chunks of sound that were encoded before",
                lambda engine: engine.chunked_prefill.features.hits,
            ),
            "audio_cache_misses": (
                "Chunks of sound that had to be encoded",
                lambda engine: engine.chunked_prefill.features.misses,
            ),
        }
        for family, entries in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, read) in entries.items():
                metric = family(f"{_PREFIX}_{name}", text, labels=["model"])
                for model, engine in self._engines.items():
                    metric.add_metric([model], read(engine))
                yield metric
