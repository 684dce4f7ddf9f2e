"""Answers a file of dialogues: one line of the output for each line of the input, in order."""

import contextlib
import dataclasses
import os
from typing import Any, Literal

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
from stepaudio_jax.generation.journal import Journal, check_output_paths, describe_job
from stepaudio_jax.generation.loaded_model import (
    LoadedModel,
    build_record_prompt,
    default_dtype,
)
from stepaudio_jax.generation.long_recordings import SplitDialogues
from stepaudio_jax.generation.prepared_requests import (
    AnsweredRequest,
    PreparedRequest,
    answer_requests,
    describe_reply,
    sample_seed,
)
from stepaudio_jax.generation.prompts import check_prompt_fits
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
from stepaudio_jax.text import AudioPart

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

    def prepare(index: int) -> PreparedRequest:
        return _prepare(model, file, index, sampling, num_samples)

    with contextlib.closing(journal):
        with tqdm.tqdm(total=len(file), initial=len(journal), unit="dialogue", disable=None) as bar:
            for answered in answer_requests(
                model,
                prepare,
                [index for index in range(len(file)) if index not in journal],
                slots=slots,
                cache_dtype=cache_dtype,
                num_threads=num_threads,
                on_tokens_per_second=lambda rate: bar.set_postfix_str(
                    f"{rate:.0f} tokens/s", refresh=False
                ),
            ):
                line = _output_line(model, answered)
                if "error" in line:
                    line["id"] = file.record_id(answered.index)
                if isinstance(file, SplitDialogues):
                    line |= _part_times(file.part(answered.index))
                journal.write(answered.index, line)
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


def _prepare(
    model: LoadedModel,
    file: Source | SplitDialogues,
    index: int,
    sampling: Sampling,
    num_samples: int,
) -> PreparedRequest:
    """Reads a line of the file and builds its prompt; a mistake in it becomes a failure."""
    try:
        record = file[index]
        record_sampling = _record_sampling(record, sampling)
        prompt = build_record_prompt(model, record)
        check_prompt_fits(prompt, model.config, new_tokens=record_sampling.max_new_tokens)
    except GenerationError as error:
        return PreparedRequest(failure=f"{file.origin(index)}: {error}")
    except DataError as error:
        return PreparedRequest(failure=str(error))
    seeds = (sample_seed(record_sampling.seed, index, sample) for sample in range(num_samples))
    samplings = tuple(dataclasses.replace(record_sampling, seed=seed) for seed in seeds)
    return PreparedRequest(record, prompt, samplings)


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


def _output_line(model: LoadedModel, answered: AnsweredRequest) -> dict[str, Any]:
    record, prompt = answered.request.record, answered.request.prompt
    if record is None or prompt is None:
        return {"id": "", "error": truncate_words(answered.request.failure)}
    line = {"id": record.id, "prompt_tokens": prompt.length}
    replies = [describe_reply(model, completion) for completion in answered.completions]
    return line | (replies[0] if len(replies) == 1 else {"samples": replies})


def _part_times(part: AudioPart | None) -> dict[str, Any]:
    return {} if part is None else {"start_s": part.start_s, "end_s": part.end_s}


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
