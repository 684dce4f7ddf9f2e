"""What the demonstration of RLHF learns from, made of the quickstart's corpus: answers in all manners, prompts, preferences.

DIR/manners.jsonl              dialogues, each answer in manners drawn at random, or those that are
asked for DIR/preference.jsonl           prompts to be answered, as many of each topic, with answer
and reference reply DIR/rubric.jsonl               the same with a request, and a rubric that asks
whether it is met DIR/pairs.jsonl, judge.jsonl   pairs of replies of which the rule prefers one, and
the judge's dialogues made of them DIR/held_out_pairs.jsonl, held_out_questions.jsonl   of voices
and phrases that none of the others has
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from examples.reward_trap.style import (
    CORRECT_CRITERION,
    REQUESTS,
    Request,
    Style,
    critique,
    draw_empty_reply,
    draw_repeated_style,
    draw_style,
    is_correct,
    rule_score,
)
from examples.spoken_corpus import TASKS
from examples.spoken_corpus.dialogues import QUESTIONS
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import write_judge_data

Json = dict[str, Any]
TOPICS = ("gender", "rate", "pitch", "language", "keyword", "sum")
HELD_OUT_PAIRS = 200
_TOPIC_OF: Mapping[str, str] = {wording: topic for topic in TOPICS for wording in QUESTIONS[topic]}  # type: ignore[index]
_CORRECT_WEIGHT, _REQUEST_WEIGHT = 2.0, 2.0
# Of the replies that a judge learns from. Those behind the first are tricks that a policy finds out
# where they are missing.
_WRONG_PROBABILITY, _EMPTY_PROBABILITY, _TWO_ANSWERS_PROBABILITY, _REPEATED_PROBABILITY = (
    0.35,
    0.1,
    0.1,
    0.15,
)
# of the requests in what the first model learns from: it can do what is asked, and often does not
_REQUEST_MET_PROBABILITY = 0.5


def write_style_data(
    corpus: pathlib.Path, output: pathlib.Path, prompt: JudgePrompt, *, per_task: int, seed: int = 0
) -> None:
    """Writes the folder, which appears once it is complete.

    Args:
        corpus: the quickstart's.
        output: DIR.
        prompt: the judge's template.
        per_task: held-out questions of each task, every other one with a request.
        seed: of every draw.
    """
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # One for each kind of file, so that none depends on another.
    for_manners, for_prompts, for_pairs, for_held_out, for_questions = (
        np.random.default_rng((seed, 7, n)) for n in range(5)
    )
    asked = list(_first_questions(corpus / "train" / "audio_qa.jsonl", output))
    held_out = [
        question
        for topic in TOPICS
        for question in _held_out_sample(corpus, topic, per_task, output)
    ]
    _write(partial / "manners.jsonl", (_styled_dialogue(*one, for_manners) for one in asked))
    prompts = [_prompt_record(*one[:2], _draw_request(for_prompts), for_prompts) for one in asked]
    _write(
        partial / "preference.jsonl",
        _balance_topics([prompt for prompt in prompts if "rubric" not in prompt]),
    )
    _write(
        partial / "rubric.jsonl",
        _balance_topics([prompt for prompt in prompts if "rubric" in prompt]),
    )
    _write(
        partial / "pairs.jsonl",
        (_preference_record(*one[:2], for_pairs) for one in asked for _ in range(4)),
    )
    pairs = (
        _preference_record(*held_out[int(index)], for_held_out)
        for index in for_held_out.permutation(len(held_out))[:HELD_OUT_PAIRS]
    )
    _write(partial / "held_out_pairs.jsonl", pairs)
    _write(partial / "held_out_questions.jsonl", _questions(held_out, for_questions))
    write_judge_data(partial / "pairs.jsonl", partial / "judge.jsonl", prompt)
    partial.rename(output)


def with_request(messages: list[Json], request: Request) -> list[Json]:
    """A dialogue whose question is followed by a request."""
    *before, last = messages
    *heard, question = last["content"]
    return [
        *before,
        {**last, "content": [*heard, {**question, "text": f"{question['text']} {request.text}"}]},
    ]


def _first_questions(
    path: pathlib.Path, folder: pathlib.Path
) -> Iterator[tuple[list[Json], str, str]]:
    """(dialogue up to its first question, answer, reasoning) of every one whose answer is a word that follows from the clip."""
    for record in _records(path):
        question, reply = record["messages"][:2]
        topic = _TOPIC_OF.get(question["content"][-1].get("text", ""))
        if (
            topic is not None and reply["content"] in TASKS[topic].answers
        ):  # several keywords may be said
            told = _with_fact(question, f"{topic} {reply['content']}", path.parent, folder)
            yield [told], reply["content"], reply["reasoning_content"]


def _held_out_sample(
    corpus: pathlib.Path, topic: str, count: int, folder: pathlib.Path
) -> list[tuple[list[Json], str]]:
    """Some of a task's held-out questions, taken evenly, for they are in the order of their answers."""
    path = corpus / "evaluation" / f"{topic}.jsonl"
    records = _records(path)
    chosen = [records[index] for index in _evenly_spaced(range(len(records)), count)]
    told = (
        _with_fact(record["messages"][0], f"{topic} {record['answer']}", path.parent, folder)
        for record in chosen
    )
    return [([message], record["answer"]) for message, record in zip(told, chosen, strict=True)]


def _evenly_spaced(indices: Sequence[int], count: int) -> list[int]:
    """So many of them, at equal distances; all where they are fewer."""
    count = min(count, len(indices))
    return [indices[index * len(indices) // count] for index in range(count)]


def _balance_topics(prompts: list[Json]) -> Iterator[Json]:
    """As many prompts of each topic as there are of the rarest, in their order: a policy learns from a few hundred only."""
    topics = [
        [index for index, prompt in enumerate(prompts) if _topic(prompt) == topic]
        for topic in TOPICS
    ]
    rarest = min(map(len, topics))
    return (
        prompts[index]
        for index in sorted(index for topic in topics for index in _evenly_spaced(topic, rarest))
    )


def _topic(prompt: Json) -> str:
    """What is asked for, first in what a judge is told."""
    heard, *_ = prompt["messages"][-1]["content"]
    return heard["transcript"].split()[0]


def _with_fact(message: Json, fact: str, read_from: pathlib.Path, written_to: pathlib.Path) -> Json:
    """The message with what a judge, which reads and does not hear, is told of its clip instead of a transcript."""
    heard, *rest = message["content"]
    audio = os.path.relpath((read_from / heard["audio"]).resolve(), written_to.resolve())
    return {**message, "content": [{**heard, "audio": audio, "transcript": fact}, *rest]}


def _styled_dialogue(
    messages: list[Json], answer: str, reasoning: str, rng: np.random.Generator
) -> Json:
    request = _draw_request(rng)
    asked, manners = messages, draw_style(rng)
    if request is not None:
        asked = with_request(messages, request)
        manners = request.style if rng.random() < _REQUEST_MET_PROBABILITY else manners
    reply = {"role": "assistant", "reasoning_content": reasoning, "content": manners.render(answer)}
    return {"messages": [*asked, reply]}


def _prompt_record(
    messages: list[Json], answer: str, request: Request | None, rng: np.random.Generator
) -> Json:
    """A prompt; its reference reply has good manners, though rarely the best, and does what is asked for."""
    if request is None:
        reference = Style(True, bool(rng.integers(2)), bool(rng.integers(2))).render(answer)
        return {"messages": messages, "answer": answer, "reference_reply": reference}
    return {
        "messages": with_request(messages, request),
        "answer": answer,
        "reference_reply": request.style.render(answer),
        "rubric": rubric(request),
    }


def rubric(request: Request) -> list[Json]:
    """What a reply to a request is held to."""
    return [
        {"criterion": CORRECT_CRITERION, "weight": _CORRECT_WEIGHT},
        {"criterion": request.criterion, "weight": _REQUEST_WEIGHT},
    ]


def _preference_record(messages: list[Json], answer: str, rng: np.random.Generator) -> Json:
    """Two replies to a dialogue, the better one by the rule as the reference; on a scale of three levels."""
    request = _draw_request(rng)
    replies = [_draw_reply(answer, request, rng) for _ in range(2)]
    scores = [rule_score(reply, answer, request) for reply, _ in replies]
    better, worse = replies if scores[0] >= scores[1] else replies[::-1]
    record: Json = {"messages": messages, "margin": int(scores[0] != scores[1])}
    if request is not None:
        record["messages"], record["rubric"] = with_request(messages, request), rubric(request)
    for name, (reply, said) in (("reference", better), ("rejected", worse)):
        record[f"{name}_reply"], record[f"{name}_critique"] = (
            reply,
            critique(reply, said, answer, request),
        )
        if request is not None:
            record[f"{name}_meets"] = [is_correct(reply, answer), request.is_met(reply)]
    return record


def _draw_reply(answer: str, request: Request | None, rng: np.random.Generator) -> tuple[str, str]:
    """A reply, and what it gives as the answer: a right one, a wrong one, two or none; often in manners that are asked for."""
    if rng.random() < _EMPTY_PROBABILITY:
        return draw_empty_reply(rng), "nothing"
    answers, others = (
        [answer],
        next(task.answers for task in TASKS.values() if answer in task.answers),
    )
    other = str(rng.choice([other for other in others if other != answer]))
    kind = rng.random()
    if kind < _WRONG_PROBABILITY:
        answers = [other]
    elif kind < _WRONG_PROBABILITY + _TWO_ANSWERS_PROBABILITY:
        answers = [answer, other] if rng.integers(2) else [other, answer]
    said = " and ".join(answers)
    if rng.random() < _REPEATED_PROBABILITY and len(answers) == 1:
        return draw_repeated_style(rng).render(*answers), said
    if request is not None and rng.integers(2):
        return request.style.render(*answers), said
    return draw_style(rng).render(*answers), said


def _questions(
    held_out: Iterable[tuple[list[Json], str]], rng: np.random.Generator
) -> Iterator[Json]:
    """Every other one with a request; each with a reference reply, to be compared with."""
    requests = list(REQUESTS.values())
    for number, (messages, answer) in enumerate(held_out):
        request = requests[number // 2 % len(requests)] if number % 2 else None
        yield _prompt_record(messages, answer, request, rng)


def _draw_request(rng: np.random.Generator) -> Request | None:
    """A request, every other time."""
    requests = list(REQUESTS.values())
    return None if rng.integers(2) else requests[int(rng.integers(len(requests)))]


def _records(path: pathlib.Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: pathlib.Path, records: Iterable[Json]) -> None:
    lines = (
        json.dumps({"id": f"{path.stem}-{number:05d}", **record}, ensure_ascii=False)
        for number, record in enumerate(records)
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
