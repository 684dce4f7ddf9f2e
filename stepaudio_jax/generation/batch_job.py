"""From a file of dialogues to a file of replies: one line out for each line in, in order."""

import collections
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

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
from stepaudio_jax.data import JsonlFile, Record
from stepaudio_jax.errors import ConfigError, DataError, GenerationError
from stepaudio_jax.generation.engine import Completion, Engine
from stepaudio_jax.generation.journal import Journal, check_output_paths, describe_job
from stepaudio_jax.generation.loaded_model import (
    LoadedModel,
    build_engine,
    build_record_prompt,
    default_dtype,
)
from stepaudio_jax.generation.prompts import Prompt, check_prompt_fits
from stepaudio_jax.generation.sampling import Sampling
from stepaudio_jax.models import CacheDtype
from stepaudio_jax.storage import (
    PathLike,
    expand_home,
    is_finished_output_of,
    read_json_lines,
    truncate_words,
)
from stepaudio_jax.text import parse_reply

# What determines the lines of an output, its job: known before the model is loaded, so that none is done twice.


@dataclasses.dataclass(frozen=True)
class JobSummary:
    """Of a job: dialogues in the file, how many of them could not be answered, and why the first of those."""

    dialogues: int
    failed: int
    first_failure: str


@dataclasses.dataclass(frozen=True)
class _Request:
    """A dialogue ready to be answered, or why it cannot be."""

    record: Record | None = None
    prompt: Prompt | None = None
    samplings: tuple[Sampling, ...] = ()
    failure: str = ""


def answer_file(
    model: LoadedModel,
    input_path: PathLike,
    output_path: PathLike,
    sampling: Sampling,
    *,
    slots: int = 16,
    samples: int = 1,
    cache_dtype: CacheDtype | None = None,
    threads: int | None = None,
) -> JobSummary:
    """Answers every dialogue of a JSONL file.

    A line of the output holds id, prompt_tokens and, for the reply, reasoning, reply, finish_reason
    ("stop", "length", "repetition"), well_formed, problems and completion_tokens; where several
    samples are asked for, these are in a list `samples`. A dialogue that cannot be answered gets a
    line with its id and `error`, which names its file and line.

    A record's own `sampling`, an object, overrides settings of `sampling`. Sample j of dialogue i
    draws from seed (seed, i, j), whatever it is batched with. Finished lines are kept in
    `OUTPUT.partial`: the same call goes on after an interruption, and makes the same file. The
    output appears when it is complete, and replaces what was there.

    Args:
        model: who answers.
        input_path: JSONL of dialogues that end in a user's turn.
        output_path: where replies go.
        sampling: how.
        slots: dialogues answered side by side.
        samples: replies to each dialogue.
        cache_dtype: of the KV cache.
        threads: that read clips and prepare prompts; None for as many as there are processors.

    Raises:
        DataError: the file has no line, or none that can be answered; nothing is written then. Or
            there is a `OUTPUT.partial` of another job, or a damaged one.
        OutputError: the output is the input or a folder, or another job is writing it.
        GenerationError: a setting is out of range.
    """
    if slots <= 0 or samples <= 0:
        raise GenerationError(f"slots={slots} and samples={samples} must be positive")
    input_path, output_path = (expand_home(os.fspath(path)) for path in (input_path, output_path))
    check_output_paths(output_path, input_path)
    file = JsonlFile(input_path)
    if not len(file):
        raise DataError(f"{input_path}: has no records; give at least one dialogue")
    job = _job(
        *(input_path, model.folder, model.config, sampling, model.compute.dtype),
        samples=samples,
        int8_weights=model.int8_weights,
        cache_dtype=cache_dtype,
        history_reasoning=model.history_reasoning,
        history_eot=model.history_eot,
        channel=model.channel,
    )
    journal = Journal(output_path, job, len(file))

    def fail(index: int, failure: str) -> None:
        journal.write(index, {"id": file.record_id(index), "error": truncate_words(failure)})

    with contextlib.closing(journal), ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting = collections.deque(index for index in range(len(file)) if index not in journal)
        ahead = _PreparedRequests(
            pool,
            lambda index: _prepare(model, file, index, sampling, samples),
            waiting,
            depth=2 * slots,
        )
        with tqdm.tqdm(total=len(file), initial=len(journal), unit="dialogue", disable=None) as bar:
            _answer(model, ahead, journal, fail, bar, slots=slots, cache_dtype=cache_dtype)
        failed = journal.errors()
        if len(failed) == len(file):
            journal.discard()
            raise DataError(failed[0])
        journal.finish()
    return JobSummary(len(file), len(failed), failed[0] if failed else "")


def finished_generation(
    folder: PathLike,
    input_path: PathLike,
    output_path: PathLike,
    sampling: Sampling,
    dtype: FloatDtype | None = None,
    *,
    samples: int = 1,
    int8_weights: bool = False,
    cache_dtype: CacheDtype | None = None,
    history_reasoning: bool = False,
    history_eot: bool = True,
    channel: AudioChannel = DataConfig.channel,
) -> JobSummary | None:
    """Returns the outcome of a job that is finished already, its output being there; None where it is still to be done.

    The model of `folder` is not loaded. Arguments are those of `load_model` and `answer_file`.

    Raises:
        OutputError: the output is there, and not of this job.
    """
    folder, input_path, output_path = (
        expand_home(os.fspath(path)) for path in (folder, input_path, output_path)
    )
    if not pathlib.Path(output_path).exists():
        return None
    job = _job(
        *(
            input_path,
            folder,
            hub.read_model_config(os.fspath(folder)),
            sampling,
            default_dtype(dtype),
        ),
        samples=samples,
        int8_weights=int8_weights,
        cache_dtype=cache_dtype,
        history_reasoning=history_reasoning,
        history_eot=history_eot,
        channel=channel,
    )
    if not is_finished_output_of(output_path, job):
        return None
    lines = [line.value for line in read_json_lines(output_path)]
    failures = [line["error"] for line in lines if "error" in line]
    return JobSummary(len(lines), len(failures), failures[0] if failures else "")


def _job(
    input_path: PathLike,
    folder: PathLike,
    config: ModelConfig,
    sampling: Sampling,
    dtype: FloatDtype,
    **settings: Any,
) -> dict[str, Any]:
    return describe_job(
        "generate", input_path, folder, config, dtype=dtype, sampling=repr(sampling), **settings
    )


class _PreparedRequests:
    """Requests in the order of the file, prepared on other threads some way ahead."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        prepare: Callable[[int], _Request],
        waiting: "collections.deque[int]",
        *,
        depth: int,
    ):
        self._pool, self._prepare, self._waiting, self._depth = pool, prepare, waiting, depth
        self._futures: collections.deque[tuple[int, Future[_Request]]] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._waiting or self._futures)

    def peek(self) -> tuple[int, _Request]:
        """The next one, waited for."""
        self._fill()
        index, future = self._futures[0]
        return index, future.result()

    def window(self) -> list[_Request]:
        """All that are being prepared, waited for."""
        self._fill()
        return [future.result() for _, future in self._futures]

    def advance(self) -> None:
        """Goes on to the one after it."""
        self._futures.popleft()

    def _fill(self) -> None:
        while self._waiting and len(self._futures) < self._depth:
            index = self._waiting.popleft()
            self._futures.append((index, self._pool.submit(self._prepare, index)))


def _answer(
    model: LoadedModel,
    ahead: _PreparedRequests,
    journal: Journal,
    fail: Callable[[int, str], None],
    bar: Any,
    *,
    slots: int,
    cache_dtype: CacheDtype | None,
) -> None:
    """Feeds the engine and writes what comes out of it. An engine whose slots are too short is drained and replaced."""
    engine: Engine | None = None
    places: dict[int, tuple[int, int]] = {}  # number of a request -> dialogue, sample
    asked: dict[int, _Request] = {}
    replies: dict[int, dict[int, Completion]] = collections.defaultdict(dict)
    while ahead or (engine is not None and engine.busy):
        while ahead and (engine is None or engine.waiting < slots):
            index, request = ahead.peek()
            if request.prompt is None:
                fail(index, request.failure)
                bar.update()
                ahead.advance()
                continue
            if engine is None or not engine.fits_slot(request.prompt, request.samplings):
                if engine is not None and engine.busy:
                    break
                fitting = [one for one in ahead.window() if one.prompt is not None]
                prompts = [one.prompt for one in fitting if one.prompt is not None]
                longest = max(
                    sampling.max_new_tokens for one in fitting for sampling in one.samplings
                )
                engine = None  # its slots and its copy of the weights go before those of the next
                engine = build_engine(model, prompts, longest, slots=slots, cache_dtype=cache_dtype)
            for sample, number in enumerate(engine.submit(request.prompt, request.samplings)):
                places[number] = (index, sample)
            asked[index] = request
            ahead.advance()
        if engine is None:
            continue
        for output in engine.step():
            if output.completion is None:
                continue
            index, sample = places.pop(output.request)
            replies[index][sample] = output.completion
            if len(replies[index]) == len(asked[index].samplings):
                done = replies.pop(index)
                journal.write(
                    index, _line(model, asked.pop(index), [done[sample] for sample in sorted(done)])
                )
                bar.update()
        bar.set_postfix_str(f"{engine.tokens_per_second:.0f} tokens/s", refresh=False)


def _prepare(
    model: LoadedModel, file: JsonlFile, index: int, sampling: Sampling, samples: int
) -> _Request:
    try:
        record = file[index]
        own = _record_sampling(record, sampling)
        prompt = build_record_prompt(model, record)
        check_prompt_fits(prompt, model.config, new_tokens=own.max_new_tokens)
    except GenerationError as error:
        return _Request(failure=f"{file.origin(index)}: {error}")
    except DataError as error:
        return _Request(failure=str(error))
    seeds = (_seed(own.seed, index, sample) for sample in range(samples))
    return _Request(record, prompt, tuple(dataclasses.replace(own, seed=seed) for seed in seeds))


def _record_sampling(record: Record, sampling: Sampling) -> Sampling:
    """The settings with the record's own put in."""
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


def _line(model: LoadedModel, request: _Request, completions: list[Completion]) -> dict[str, Any]:
    assert request.record is not None
    assert request.prompt is not None
    head = {"id": request.record.id, "prompt_tokens": request.prompt.length}
    replies = [_reply(model, completion) for completion in completions]
    return head | (replies[0] if len(replies) == 1 else {"samples": replies})


def _reply(model: LoadedModel, completion: Completion) -> dict[str, Any]:
    ended = completion.finish_reason == "stop"
    parsed = parse_reply(
        completion.tokens,
        model.tokenizer,
        ended=ended,
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
