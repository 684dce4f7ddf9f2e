"""Questions with verifiable answers, put to a model."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm
from numpy.typing import NDArray

from stepaudio_jax.audio import LengthConvention, load_audio
from stepaudio_jax.data import DataError, Record, read_jsonl
from stepaudio_jax.evaluation.grading import Answer
from stepaudio_jax.generation import LoadedModel, Prompt, Sampling, engine_for, prompt_of, require_room
from stepaudio_jax.text import parse_reply

PathLike = str | os.PathLike[str]


def read_questions(paths: Iterable[PathLike]) -> list[Record]:
    """The records of evaluation files, in order: dialogues that end in a question, each with its `answer`.

    Raises:
        DataError: a file cannot be read or has no record, or a record has no answer; names file and line.
    """
    questions = []
    for path in paths:
        records = list(read_jsonl(path))
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
    temperature: float = 0,
    max_new_tokens: int = 128,
    rows: int = 64,
    threads: int | None = None,
) -> list[Answer]:
    """Answers every question, by default with the most probable tokens.

    Args:
        model: who answers.
        questions: records with an answer; earlier turns of a dialogue are given as they stand in it, without reasoning.
        silenced: every clip is replaced by zeros of its length before the log-mel, so the prompt has the same tokens and no
            sound. Questions without a clip are left out then: nothing of them would change.
        temperature: at which answers are drawn, with the question's place for a seed; 0 for the most probable tokens.
        max_new_tokens: of reasoning and reply; what is longer is cut and malformed.
        rows: questions answered side by side.
        threads: that read clips and prepare prompts; None for as many as there are processors.

    Returns:
        One answer for each question, in order.

    Raises:
        DataError: a question cannot be used, or a clip of it cannot be read; names file and line.
        GenerationError: a question is too long for the model; names file and line.
    """
    if silenced:
        questions = [record for record in questions if any(message.audio for message in record.messages)]
    if not questions:
        return []
    expected = [_expected(record) for record in questions]
    sampling = Sampling(temperature=temperature, top_p=1.0, max_new_tokens=max_new_tokens)
    read = silence if silenced else load_audio

    def prepare(record: Record) -> Prompt:
        prompt = prompt_of(model, record, read=read)
        require_room(model, record, prompt, sampling)
        return prompt

    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        prompts = list(pool.map(prepare, questions))
    engine = engine_for(model, prompts, max_new_tokens, slots=min(rows, len(prompts)))
    completions = tqdm.tqdm(
        engine.generate(prompts, [dataclasses.replace(sampling, seed=place) for place in range(len(prompts))]),
        total=len(prompts),
        desc="answering, audio silenced" if silenced else "answering",
        unit="question",
        disable=None,  # shown where there is a terminal
    )
    answers: dict[int, Answer] = {}
    for index, completion in completions:
        written = parse_reply(completion.tokens, model.tokenizer, ended=completion.finish_reason == "stop")
        answers[index] = Answer(questions[index], expected[index], written)
    return [answers[index] for index in range(len(questions))]


def silence(source: str, /, *, length_convention: LengthConvention) -> NDArray[np.float32]:
    """Zeros [samples] f32, as many as the clip `source` has at 16 kHz.

    Raises:
        AudioError: the clip cannot be read.
    """
    return np.zeros_like(load_audio(source, length_convention=length_convention))


def _expected(record: Record) -> str:
    if record.answer is None:
        raise DataError(f"{record.origin}: has no 'answer'; give the right reply, or leave the record out of the evaluation")
    return record.answer
