"""Answers prepared requests through one engine at a time: what every batch job shares."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from stepaudio_jax.data import Record
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.loaded_model import LoadedModel, build_engine
from stepaudio_jax.generation.outputs import Completion
from stepaudio_jax.generation.prompts import Prompt
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.models import CacheDtype
from stepaudio_jax.text import parse_reply


@dataclasses.dataclass(frozen=True)
class PreparedRequest:
    """A dialogue ready to be answered, or why it cannot be.

    Attributes:
        record: the dialogue.
        prompt: its prompt; None where it cannot be answered.
        samplings: one for each reply; their number may differ between requests.
        failure: why it cannot be answered; "" where it can.
    """

    record: Record | None = None
    prompt: Prompt | None = None
    samplings: tuple[Sampling, ...] = ()
    failure: str = ""


@dataclasses.dataclass(frozen=True)
class AnsweredRequest:
    """The replies to a request, or why there are none.

    Attributes:
        index: of the request.
        request: the request.
        completions: one for each of its samplings; empty where it could not be answered.
    """

    index: int
    request: PreparedRequest
    completions: tuple[Completion, ...] = ()


def answer_requests(
    model: LoadedModel,
    prepare: Callable[[int], PreparedRequest],
    indices: Iterable[int],
    *,
    slots: int,
    cache_dtype: CacheDtype | None = None,
    num_threads: int | None = None,
    on_tokens_per_second: Callable[[float], None] = lambda rate: None,
) -> Iterator[AnsweredRequest]:
    """Answers requests, which are prepared ahead on other threads; yields each when it is done.

    An engine whose slots are too short for the next request is drained and replaced.

    Args:
        model: the model that answers.
        prepare: makes the request of an index; called from several threads.
        indices: of the requests, in the order in which they begin.
        slots: replies written side by side.
        cache_dtype: dtype of the KV cache; None for that of the computation.
        num_threads: threads that prepare; None for one a processor.
        on_tokens_per_second: is told the engine's speed now and then.
    """
    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        requests = _RequestQueue(pool, prepare, collections.deque(indices), depth=2 * slots)
        yield from _answer(
            model,
            requests,
            slots=slots,
            cache_dtype=cache_dtype,
            on_tokens_per_second=on_tokens_per_second,
        )


def describe_reply(model: LoadedModel, completion: Completion) -> dict[str, Any]:
    """Returns a reply as a line of an output has it, JSON-ready."""
    parsed = parse_reply(
        completion.tokens,
        model.tokenizer,
        ended=completion.finish_reason == "stop",
        stop_overlap_bytes=completion.stop_overlap_bytes,
    )
    return {
        "reasoning": parsed.reasoning,
        "reply": parsed.reply,
        "finish_reason": completion.finish_reason,
        "well_formed": parsed.well_formed,
        "problems": list(parsed.problems),
        "completion_tokens": len(completion.tokens),
    }


def sample_seed(seed: int, index: int, sample: int) -> int:
    """Returns the seed of one sample of one dialogue."""
    return int(np.random.SeedSequence([seed, index, sample]).generate_state(1)[0])


class _RequestQueue:
    """Requests in order, prepared ahead on other threads.

    Args:
        pool: the threads.
        prepare: makes the request of an index.
        remaining: the indices to be answered.
        depth: requests that are prepared ahead.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        prepare: Callable[[int], PreparedRequest],
        remaining: "collections.deque[int]",
        *,
        depth: int,
    ):
        self._pool, self._prepare, self._remaining, self._depth = pool, prepare, remaining, depth
        self._futures: collections.deque[tuple[int, Future[PreparedRequest]]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._remaining or self._futures)

    def peek(self) -> tuple[int, PreparedRequest]:
        """Waits for the next request; returns its index and it."""
        self._fill()
        index, future = self._futures[0]
        return index, future.result()

    def peek_all(self) -> list[PreparedRequest]:
        """Waits for all requests that are being prepared, and returns them."""
        self._fill()
        return [future.result() for _, future in self._futures]

    def advance(self) -> None:
        """Drops the next request, so that `peek` returns the one after it."""
        self._futures.popleft()

    def _fill(self) -> None:
        while self._remaining and len(self._futures) < self._depth:
            index = self._remaining.popleft()
            self._futures.append((index, self._pool.submit(self._prepare, index)))


def _answer(
    model: LoadedModel,
    requests: _RequestQueue,
    *,
    slots: int,
    cache_dtype: CacheDtype | None,
    on_tokens_per_second: Callable[[float], None],
) -> Iterator[AnsweredRequest]:
    engine: Engine | None = None
    in_engine: dict[int, tuple[int, int]] = {}  # number of a request in the engine -> index, sample
    answering: dict[int, PreparedRequest] = {}
    completions: dict[int, dict[int, Completion]] = collections.defaultdict(dict)
    while requests or (engine is not None and engine.busy):
        while requests and (engine is None or engine.num_waiting < slots):
            index, request = requests.peek()
            if request.prompt is None:
                yield AnsweredRequest(index, request)
                requests.advance()
                continue
            if engine is None or not engine.fits_slot(request.prompt, request.samplings):
                if engine is not None and engine.busy:
                    break
                engine = None  # its slots and its copy of the weights go before the next ones come
                engine = _engine_for(model, requests.peek_all(), slots, cache_dtype)
            for sample, number in enumerate(engine.submit(request.prompt, request.samplings)):
                in_engine[number] = (index, sample)
            answering[index] = request
            requests.advance()
        if engine is None:
            continue
        for output in engine.step():
            if output.completion is None:
                continue
            index, sample = in_engine.pop(output.request)
            completions[index][sample] = output.completion
            if len(completions[index]) == len(answering[index].samplings):
                by_sample = completions.pop(index)
                in_order = tuple(by_sample[sample] for sample in sorted(by_sample))
                yield AnsweredRequest(index, answering.pop(index), in_order)
        on_tokens_per_second(engine.tokens_per_second)


def _engine_for(
    model: LoadedModel,
    requests: Sequence[PreparedRequest],
    slots: int,
    cache_dtype: CacheDtype | None,
) -> Engine:
    """Builds an engine that is large enough for some requests."""
    prompts = [request.prompt for request in requests if request.prompt is not None]
    longest = max(sampling.max_new_tokens for request in requests for sampling in request.samplings)
    return build_engine(model, prompts, longest, slots=slots, cache_dtype=cache_dtype)
