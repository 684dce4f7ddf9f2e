"""Asks a model questions that have verifiable answers."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import tqdm

from stepaudio_jax.data import Record, read_records
from stepaudio_jax.data.clips import load_silence
from stepaudio_jax.errors import DataError
from stepaudio_jax.evaluation.grading import Answer
from stepaudio_jax.generation import (
    AudioReader,
    LoadedModel,
    Prompt,
    Sampling,
    build_engine,
    build_record_prompt,
    check_record_fits,
)
from stepaudio_jax.storage import PathLike
from stepaudio_jax.text import parse_reply


def read_questions(paths: Iterable[PathLike]) -> list[Record]:
    """Reads the records of evaluation files, in order: dialogues that end in a question.

    Raises:
        DataError: a file cannot be read or has no record, or a record has no `answer`; names file
            and line.
    """
    questions = []
    for path in paths:
        records = list(read_records(path))
        if not records:
            raise DataError(f"{os.fspath(path)}: has no records; give at least one question")
        for record in records:
            _expected(record)
        questions += records
    return questions


def answer_questions(
    model: LoadedModel,
    questions: Sequence[Record],
    *,
    silenced: bool = False,
    max_new_tokens: int = 128,
    slots: int = 64,
    num_threads: int | None = None,
) -> list[Answer]:
    """Answers every question greedily.

    Args:
        silenced: replace every clip by zeros of its length before the log-mel, so that the prompt
            has the same tokens and no sound. Questions without a clip are then left out.
        model, questions, max_new_tokens, slots, num_threads: see `answer_at_temperatures`.

    Returns:
        One answer for each question, in order.

    Raises:
        DataError, GenerationError: see `answer_at_temperatures`.
    """
    if silenced:
        questions = [
            record for record in questions if any(message.audio for message in record.messages)
        ]
    read = load_silence if silenced else model.read_clip
    (answers,) = answer_at_temperatures(
        (0.0,),
        model,
        questions,
        read=read,
        max_new_tokens=max_new_tokens,
        slots=slots,
        num_threads=num_threads,
    )
    return answers


def answer_at_temperatures(
    temperatures: Sequence[float],
    model: LoadedModel,
    questions: Sequence[Record],
    *,
    read: AudioReader | None = None,
    max_new_tokens: int = 128,
    slots: int = 64,
    num_threads: int | None = None,
) -> list[list[Answer]]:
    """Answers every question at each of several temperatures, encoding each prompt once.

    Args:
        temperatures: sampling temperatures; 0 is greedy. The seed is the index of the question.
        model: the model.
        questions: records with an `answer`; earlier turns of a dialogue are given without their
            reasoning.
        read: returns the samples of a clip; None reads it as the model is set to.
        max_new_tokens: most tokens of reasoning and reply; a longer answer is malformed.
        slots: the number of questions answered at a time.
        num_threads: threads that read clips and prepare prompts; None for one a processor.

    Returns:
        For each temperature, the answers to the questions, in order.

    Raises:
        DataError: a question cannot be used, or a clip of it cannot be read; names file and line.
        GenerationError: a question is too long for the model; names file and line.
    """
    if not questions:
        return [[] for _ in temperatures]
    expected = [_expected(record) for record in questions]
    samplings = [
        Sampling(temperature=temperature, top_p=1.0, max_new_tokens=max_new_tokens)
        for temperature in temperatures
    ]

    def prepare(record: Record) -> Prompt:
        prompt = build_record_prompt(model, record, read=read)
        check_record_fits(model, record, prompt, samplings[0])
        return prompt

    with ThreadPoolExecutor(num_threads or os.cpu_count()) as pool:
        prompts = list(pool.map(prepare, questions))
    engine = build_engine(
        model, prompts, max_new_tokens, slots=min(slots, len(prompts) * len(samplings))
    )
    keys: dict[int, tuple[int, int]] = {}  # request -> (index of temperature, of question)
    for index, prompt in enumerate(prompts):
        seeded = [dataclasses.replace(sampling, seed=index) for sampling in samplings]
        for temperature_index, request in enumerate(engine.submit(prompt, seeded)):
            keys[request] = (temperature_index, index)
    answers: dict[tuple[int, int], Answer] = {}
    description = "answering, audio silenced" if read is load_silence else "answering"
    # disable=None shows the bar on terminals only.
    with tqdm.tqdm(total=len(keys), desc=description, unit="answer", disable=None) as bar:
        for output in engine.run():
            if (completion := output.completion) is None:
                continue
            key = keys[output.request]
            parsed = parse_reply(
                completion.tokens, model.tokenizer, ended=completion.finish_reason == "stop"
            )
            answers[key] = Answer(questions[key[1]], expected[key[1]], parsed)
            bar.update()
    return [
        [answers[temperature_index, index] for index in range(len(questions))]
        for temperature_index in range(len(samplings))
    ]


def _expected(record: Record) -> str:
    if record.answer is None:
        raise DataError(
            f"{record.origin}: has no 'answer'; give the right reply, or leave the record out of "
            "the evaluation"
        )
    return record.answer
