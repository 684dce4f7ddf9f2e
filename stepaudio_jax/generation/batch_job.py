"""Answers a file of dialogues: one line of the output for each line of the input, in order."""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import tqdm

from stepaudio_jax import hub
from stepaudio_jax.config import (
    AudioChannel,
    DataConfig,
    FloatDtype,
    ModelConfig,
    RepetitionDetectionConfig,
    build,
)
from stepaudio_jax.data import Record, Source, open_source
from stepaudio_jax.errors import ConfigError, DataError, GenerationError
from stepaudio_jax.generation.engine import Engine
from stepaudio_jax.generation.journal import Journal, check_output_paths, describe_job
from stepaudio_jax.generation.loaded_model import (
    LoadedModel,
    build_engine,
    build_record_prompt,
    default_dtype,
)
from stepaudio_jax.generation.long_recordings import SplitDialogues
from stepaudio_jax.generation.outputs import Completion
from stepaudio_jax.generation.prompts import Prompt, check_prompt_fits
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.models import CacheDtype
from stepaudio_jax.storage import (
    PathLike,
    expand_home,
    is_finished_output_of,
    read_json_lines,
    to_path,
    truncate_words,
)
from stepaudio_jax.text import parse_reply

OnTooLong = Literal["error", "split"]


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """The outcome of a job.

    Attributes:
        dialogues: number of dialogues in the file.
        failed: how many of them could not be answered.
        first_failure: why the first of those could not; empty if there is none.
    """

    dialogues: int
    failed: int
    first_failure: str


def answer_file(
    model: LoadedModel,
    input_path: PathLike,
    output_path: PathLike,
    sampling: Sampling,
    *,
    slots: int = 16,
    num_samples: int = 1,
    cache_dtype: CacheDtype | None = None,
    num_threads: int | None = None,
    on_too_long: OnTooLong = "error",
) -> JobSummary:
    """Answers every dialogue of a source.

    A line of the output holds id, prompt_tokens and, for the reply, reasoning, reply, finish_reason
    ("stop", "length", "repetition"), well_formed, problems and completion_tokens; where several
    samples are requested, these are in a list `samples`. A dialogue that cannot be answered gets a
    line with its id and `error`, which names its file and line.

    A record's own `sampling`, an object, overrides settings of `sampling`. Sample j of dialogue i
    draws from seed (seed, i, j), whatever it is batched with. Finished lines are kept in
    `OUTPUT.partial`: the same call resumes after an interruption, and makes the same file. The
    output appears when it is complete, and replaces what was there.

    Args:
        model: the model that answers.
        input_path: source of dialogues that end in a user's turn.
        output_path: the file of the replies.
        sampling: how a dialogue is answered.
        slots: dialogues answered side by side.
        num_samples: replies to each dialogue.
        cache_dtype: dtype of the KV cache; None for that of the computation.
        num_threads: threads that read clips and prepare prompts; None for one a processor.
        on_too_long: what becomes of a dialogue whose recording does not fit the model: "error"
            writes its `error`; "split" answers each part of it (see `SplitDialogues`), with a line
            that has `start_s` and `end_s`.

    Raises:
        DataError: the file has no line, or none that can be answered (nothing is written then); or
            there is an `OUTPUT.partial` of another job, or a damaged one.
        OutputError: the output is the input or a folder, or another job is writing it.
        GenerationError: a setting is out of range.
    """
    if slots <= 0 or num_samples <= 0:
        raise GenerationError(f"slots={slots} and num_samples={num_samples} must be positive")
    input_path, output_path = (expand_home(os.fspath(path)) for path in (input_path, output_path))
    check_output_paths(output_path, input_path)
    source = open_source(input_path)
    file: Source | SplitDialogues = source
    if not len(file):
        raise DataError(f"{input_path}: has no records; give at least one dialogue")
    job = _job(
        *(input_path, model.folder, model.config, sampling, model.compute.dtype),
        num_samples=num_samples,
        int8_weights=model.int8_weights,
        cache_dtype=cache_dtype,
        history_reasoning=model.history_reasoning,
        history_eot=model.history_eot,
        channel=model.channel,
        on_too_long=on_too_long,
    )
    if on_too_long == "split":

        def new_tokens(record: Record) -> int:
            return _record_sampling(record, sampling).max_new_tokens

        file = SplitDialogues(model, source, new_tokens, num_threads)
    journal = Journal(output_path, job, len(file))
    remaining = collections.deque(index for index in range(len(file)) if index not in journal)

    def prepare(index: int) -> _Request:
        return _prepare(model, file, index, sampling, num_samples)

    with contextlib.closing(journal), ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        requests = _PreparedRequests(pool, prepare, remaining, depth=2 * slots)
        with tqdm.tqdm(total=len(file), initial=len(journal), unit="dialogue", disable=None) as bar:
            for index, line in _answer(model, requests, bar, slots=slots, cache_dtype=cache_dtype):
                if "error" in line:
                    line = {"id": file.record_id(index), "error": truncate_words(line["error"])}
                if isinstance(file, SplitDialogues) and (part := file.part(index)) is not None:
                    line |= {"start_s": part.start_s, "end_s": part.end_s}
                journal.write(index, line)
                bar.update()
        failures = journal.errors()
        if len(failures) == len(file):
            journal.discard()
            raise DataError(failures[0])
        journal.finish()
    return JobSummary(len(file), len(failures), failures[0] if failures else "")


def finished_generation(
    folder: PathLike,
    input_path: PathLike,
    output_path: PathLike,
    sampling: Sampling,
    dtype: FloatDtype | None = None,
    *,
    num_samples: int = 1,
    int8_weights: bool = False,
    cache_dtype: CacheDtype | None = None,
    history_reasoning: bool = False,
    history_eot: bool = True,
    channel: AudioChannel = DataConfig.channel,
    on_too_long: OnTooLong = "error",
) -> JobSummary | None:
    """Returns the outcome of a job whose output is there already; None if it is still to be done.

    The model is not loaded. Arguments are those of `load_model` and `answer_file`.

    Raises:
        OutputError: an output is there, and not of this job.
    """
    folder, input_path, output_path = (
        expand_home(os.fspath(path)) for path in (folder, input_path, output_path)
    )
    if not to_path(output_path).exists():
        return None
    job = _job(
        *(input_path, folder, hub.read_model_config(folder), sampling, default_dtype(dtype)),
        num_samples=num_samples,
        int8_weights=int8_weights,
        cache_dtype=cache_dtype,
        history_reasoning=history_reasoning,
        history_eot=history_eot,
        channel=channel,
        on_too_long=on_too_long,
    )
    if not is_finished_output_of(output_path, job):
        return None
    lines = [line.value for line in read_json_lines(output_path)]
    failures = [line["error"] for line in lines if "error" in line]
    return JobSummary(len(lines), len(failures), failures[0] if failures else "")


@dataclasses.dataclass(frozen=True)
class _Request:
    """A dialogue ready to be answered, or why it cannot be."""

    record: Record | None = None
    prompt: Prompt | None = None
    samplings: tuple[Sampling, ...] = ()
    failure: str = ""


class _PreparedRequests:
    """Requests in the order of the file, prepared ahead on other threads.

    Args:
        pool: the threads.
        prepare: makes the request of a line of the file.
        remaining: the lines to be answered.
        depth: requests that are prepared ahead.
    """

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        prepare: Callable[[int], _Request],
        remaining: "collections.deque[int]",
        *,
        depth: int,
    ):
        self._pool, self._prepare, self._remaining, self._depth = pool, prepare, remaining, depth
        self._futures: collections.deque[tuple[int, Future[_Request]]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._remaining or self._futures)

    def peek(self) -> tuple[int, _Request]:
        """Waits for the next request; returns its line and it."""
        self._fill()
        index, future = self._futures[0]
        return index, future.result()

    def peek_all(self) -> list[_Request]:
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
    requests: _PreparedRequests,
    bar: Any,
    *,
    slots: int,
    cache_dtype: CacheDtype | None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Answers requests; yields (line of the file, its line of the output), or an `error` line.

    An engine whose slots are too short for the next request is drained and replaced.
    """
    engine: Engine | None = None
    in_engine: dict[int, tuple[int, int]] = {}  # number of a request -> line, sample
    answering: dict[int, _Request] = {}
    completions: dict[int, dict[int, Completion]] = collections.defaultdict(dict)
    while requests or (engine is not None and engine.busy):
        while requests and (engine is None or engine.waiting < slots):
            index, request = requests.peek()
            if request.prompt is None:
                yield index, {"error": request.failure}
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
                in_order = [by_sample[sample] for sample in sorted(by_sample)]
                yield index, _output_line(model, answering.pop(index), in_order)
        bar.set_postfix_str(f"{engine.tokens_per_second:.0f} tokens/s", refresh=False)


def _engine_for(
    model: LoadedModel,
    requests: Sequence[_Request],
    slots: int,
    cache_dtype: CacheDtype | None,
) -> Engine:
    """Builds an engine that is large enough for some requests."""
    prompts = [request.prompt for request in requests if request.prompt is not None]
    longest = max(sampling.max_new_tokens for request in requests for sampling in request.samplings)
    return build_engine(model, prompts, longest, slots=slots, cache_dtype=cache_dtype)


def _prepare(
    model: LoadedModel,
    file: Source | SplitDialogues,
    index: int,
    sampling: Sampling,
    num_samples: int,
) -> _Request:
    """Reads a line of the file and builds its prompt; a mistake in it becomes a failure."""
    try:
        record = file[index]
        record_sampling = _record_sampling(record, sampling)
        prompt = build_record_prompt(model, record)
        check_prompt_fits(prompt, model.config, new_tokens=record_sampling.max_new_tokens)
    except GenerationError as error:
        return _Request(failure=f"{file.origin(index)}: {error}")
    except DataError as error:
        return _Request(failure=str(error))
    seeds = (_seed(record_sampling.seed, index, sample) for sample in range(num_samples))
    samplings = tuple(dataclasses.replace(record_sampling, seed=seed) for seed in seeds)
    return _Request(record, prompt, samplings)


def _record_sampling(record: Record, sampling: Sampling) -> Sampling:
    """Returns the settings with those of the record put in."""
    known = {field.name for field in dataclasses.fields(Sampling)}
    for name in record.sampling:
        if name not in known:
            raise GenerationError(
                f"'sampling' has the unknown key {name!r} (allowed: {', '.join(sorted(known))})"
            )
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in record.sampling.items()
    }
    detection = values.get("repetition_detection")
    if isinstance(detection, dict):
        try:
            values["repetition_detection"] = build(
                RepetitionDetectionConfig, detection, "repetition_detection"
            )
        except ConfigError as error:
            raise GenerationError(str(error)) from None
    return dataclasses.replace(sampling, **values)


def _output_line(
    model: LoadedModel, request: _Request, completions: list[Completion]
) -> dict[str, Any]:
    assert request.record is not None
    assert request.prompt is not None
    line = {"id": request.record.id, "prompt_tokens": request.prompt.length}
    replies = [_reply(model, completion) for completion in completions]
    return line | (replies[0] if len(replies) == 1 else {"samples": replies})


def _reply(model: LoadedModel, completion: Completion) -> dict[str, Any]:
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


def _seed(seed: int, index: int, sample: int) -> int:
    return int(np.random.SeedSequence([seed, index, sample]).generate_state(1)[0])


def _job(
    input_path: PathLike,
    folder: PathLike,
    config: ModelConfig,
    sampling: Sampling,
    dtype: FloatDtype,
    **settings: Any,
) -> dict[str, Any]:
    """Returns what determines the output of a job: known before the model is loaded."""
    if settings["on_too_long"] == "error":
        del settings["on_too_long"]  # jobs from before there was a choice have none
    return describe_job(
        "generate", input_path, folder, config, dtype=dtype, sampling=repr(sampling), **settings
    )
