"""What the demonstration of RLHF learns from, made of the quickstart's corpus: answers in all manners, prompts, preferences.

DIR/manners.jsonl              dialogues, each answer in manners drawn at random, or those that are asked for
DIR/preference.jsonl           prompts to be answered, as many of each topic, with answer and reference reply
DIR/rubric.jsonl               the same with a request, and a rubric that asks whether it is met
DIR/pairs.jsonl, judge.jsonl   pairs of replies of which the rule prefers one, and the judge's dialogues made of them
DIR/held_out_pairs.jsonl, held_out_questions.jsonl   of voices and phrases that none of the others has
"""

import json
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stepaudio_jax.corpus import TASKS
from stepaudio_jax.corpus.dialogues import QUESTIONS
from stepaudio_jax.quickstart.manners import (
    REQUESTS,
    RIGHT_CRITERION,
    Manners,
    Request,
    critique,
    draw_manners,
    is_right,
    no_answer,
    overdone,
    worth,
)
from stepaudio_jax.rl.judge_prompt import JudgePrompt
from stepaudio_jax.rl.judge_training import write_judge_data

Json = dict[str, Any]
TOPICS = ("gender", "rate", "pitch", "language", "keyword", "sum")
HELD_OUT_PAIRS = 200
_TOPIC_OF: Mapping[str, str] = {wording: topic for topic in TOPICS for wording in QUESTIONS[topic]}  # type: ignore[index]
_RIGHT_WEIGHT, _REQUEST_WEIGHT = 2.0, 2.0
# Of the replies that a judge learns from. Those behind the first are tricks that a policy finds out where they are missing.
_WRONG, _NO_ANSWER, _TWO_ANSWERS, _OVERDONE = 0.35, 0.1, 0.1, 0.15
_OBEYED = 0.5  # of the requests in what the first model learns from: it can do what is asked, and often does not


def write_manners_data(
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
    for_manners, for_prompts, for_pairs, for_held_out, for_questions = (np.random.default_rng((seed, 7, n)) for n in range(5))
    asked = list(_first_questions(corpus / "train" / "heard.jsonl", output))
    held_out = [question for topic in TOPICS for question in _spread(corpus, topic, per_task, output)]
    _write(partial / "manners.jsonl", (_in_some_manners(*one, for_manners) for one in asked))
    prompts = [_to_be_answered(*one[:2], _maybe(for_prompts), for_prompts) for one in asked]
    _write(partial / "preference.jsonl", _each_topic_as_often([prompt for prompt in prompts if "rubric" not in prompt]))
    _write(partial / "rubric.jsonl", _each_topic_as_often([prompt for prompt in prompts if "rubric" in prompt]))
    _write(partial / "pairs.jsonl", (_preference(*one[:2], for_pairs) for one in asked for _ in range(4)))
    pairs = (
        _preference(*held_out[int(index)], for_held_out) for index in for_held_out.permutation(len(held_out))[:HELD_OUT_PAIRS]
    )
    _write(partial / "held_out_pairs.jsonl", pairs)
    _write(partial / "held_out_questions.jsonl", _questions(held_out, for_questions))
    write_judge_data(partial / "pairs.jsonl", partial / "judge.jsonl", prompt)
    partial.rename(output)


def requested(messages: list[Json], request: Request) -> list[Json]:
    """A dialogue whose question is followed by a request."""
    *before, last = messages
    *heard, question = last["content"]
    return [*before, {**last, "content": [*heard, {**question, "text": f"{question['text']} {request.text}"}]}]


def _first_questions(path: pathlib.Path, folder: pathlib.Path) -> Iterator[tuple[list[Json], str, str]]:
    """(dialogue up to its first question, answer, reasoning) of every one whose answer is a word that follows from the clip."""
    for record in _records(path):
        question, reply = record["messages"][:2]
        topic = _TOPIC_OF.get(question["content"][-1].get("text", ""))
        if topic is not None and reply["content"] in TASKS[topic].answers:  # several keywords may be said
            told = _told(question, f"{topic} {reply['content']}", path.parent, folder)
            yield [told], reply["content"], reply["reasoning_content"]


def _spread(corpus: pathlib.Path, topic: str, count: int, folder: pathlib.Path) -> list[tuple[list[Json], str]]:
    """Some of a task's held-out questions, taken evenly, for they are in the order of their answers."""
    path = corpus / "evaluation" / f"{topic}.jsonl"
    records = _records(path)
    chosen = [records[index] for index in _evenly(range(len(records)), count)]
    told = (_told(record["messages"][0], f"{topic} {record['answer']}", path.parent, folder) for record in chosen)
    return [([message], record["answer"]) for message, record in zip(told, chosen, strict=True)]


def _evenly(indices: Sequence[int], count: int) -> list[int]:
    """So many of them, at equal distances; all where they are fewer."""
    count = min(count, len(indices))
    return [indices[index * len(indices) // count] for index in range(count)]


def _each_topic_as_often(prompts: list[Json]) -> Iterator[Json]:
    """As many prompts of each topic as there are of the rarest, in their order: a policy learns from a few hundred only."""
    topics = [[index for index, prompt in enumerate(prompts) if _topic(prompt) == topic] for topic in TOPICS]
    rarest = min(map(len, topics))
    return (prompts[index] for index in sorted(index for topic in topics for index in _evenly(topic, rarest)))


def _topic(prompt: Json) -> str:
    """What is asked for, first in what a judge is told."""
    heard, *_ = prompt["messages"][-1]["content"]
    return heard["transcript"].split()[0]


def _told(message: Json, fact: str, read_from: pathlib.Path, written_to: pathlib.Path) -> Json:
    """The message with what a judge, which reads and does not hear, is told of its clip instead of a transcript."""
    heard, *rest = message["content"]
    audio = os.path.relpath((read_from / heard["audio"]).resolve(), written_to.resolve())
    return {**message, "content": [{**heard, "audio": audio, "transcript": fact}, *rest]}


def _in_some_manners(messages: list[Json], answer: str, reasoning: str, rng: np.random.Generator) -> Json:
    request = _maybe(rng)
    asked, manners = messages, draw_manners(rng)
    if request is not None:
        asked = requested(messages, request)
        manners = request.manners if rng.random() < _OBEYED else manners
    reply = {"role": "assistant", "reasoning_content": reasoning, "content": manners.word(answer)}
    return {"messages": [*asked, reply]}


def _to_be_answered(messages: list[Json], answer: str, request: Request | None, rng: np.random.Generator) -> Json:
    """A prompt; its reference reply has good manners, though rarely the best, and does what is asked for."""
    if request is None:
        reference = Manners(True, bool(rng.integers(2)), bool(rng.integers(2))).word(answer)
        return {"messages": messages, "answer": answer, "reference_reply": reference}
    return {
        "messages": requested(messages, request),
        "answer": answer,
        "reference_reply": request.manners.word(answer),
        "rubric": rubric(request),
    }


def rubric(request: Request) -> list[Json]:
    """What a reply to a request is held to."""
    return [
        {"criterion": RIGHT_CRITERION, "weight": _RIGHT_WEIGHT},
        {"criterion": request.criterion, "weight": _REQUEST_WEIGHT},
    ]


def _preference(messages: list[Json], answer: str, rng: np.random.Generator) -> Json:
    """Two replies to a dialogue, the better one by the rule as the reference; on a scale of three levels."""
    request = _maybe(rng)
    replies = [_some_reply(answer, request, rng) for _ in range(2)]
    worths = [worth(reply, answer, request) for reply, _ in replies]
    better, worse = replies if worths[0] >= worths[1] else replies[::-1]
    record: Json = {"messages": messages, "margin": int(worths[0] != worths[1])}
    if request is not None:
        record["messages"], record["rubric"] = requested(messages, request), rubric(request)
    for name, (reply, said) in (("reference", better), ("rejected", worse)):
        record[f"{name}_reply"], record[f"{name}_critique"] = reply, critique(reply, said, answer, request)
        if request is not None:
            record[f"{name}_meets"] = [is_right(reply, answer), request.is_met(reply)]
    return record


def _some_reply(answer: str, request: Request | None, rng: np.random.Generator) -> tuple[str, str]:
    """A reply, and what it gives as the answer: a right one, a wrong one, two or none; often in manners that are asked for."""
    if rng.random() < _NO_ANSWER:
        return no_answer(rng), "nothing"
    answers, others = [answer], next(task.answers for task in TASKS.values() if answer in task.answers)
    other = str(rng.choice([other for other in others if other != answer]))
    kind = rng.random()
    if kind < _WRONG:
        answers = [other]
    elif kind < _WRONG + _TWO_ANSWERS:
        answers = [answer, other] if rng.integers(2) else [other, answer]
    said = " and ".join(answers)
    if rng.random() < _OVERDONE and len(answers) == 1:
        return overdone(rng).word(*answers), said
    if request is not None and rng.integers(2):
        return request.manners.word(*answers), said
    return draw_manners(rng).word(*answers), said


def _questions(held_out: Iterable[tuple[list[Json], str]], rng: np.random.Generator) -> Iterator[Json]:
    """Every other one with a request; each with a reference reply, to be compared with."""
    requests = list(REQUESTS.values())
    for number, (messages, answer) in enumerate(held_out):
        request = requests[number // 2 % len(requests)] if number % 2 else None
        yield _to_be_answered(messages, answer, request, rng)


def _maybe(rng: np.random.Generator) -> Request | None:
    """A request, every other time."""
    requests = list(REQUESTS.values())
    return None if rng.integers(2) else requests[int(rng.integers(len(requests)))]


def _records(path: pathlib.Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: pathlib.Path, records: Iterable[Json]) -> None:
    lines = (
        json.dumps({"id": f"{path.stem}-{number:05d}", **record}, ensure_ascii=False) for number, record in enumerate(records)
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
