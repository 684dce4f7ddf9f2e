"""Makes the data of the reward trap from the quickstart's corpus.

The folder holds:

* `style.jsonl`: dialogues whose answers have a random style, or the requested one;
* `preference.jsonl`: prompts with answer and reference reply, equally many of each topic;
* `rubric.jsonl`: the same with a request, and a rubric that checks it;
* `pairs.jsonl`, `judge.jsonl`: pairs of replies of which the rule prefers one, and the judge's
  training dialogues made of them;
* `held_out_pairs.jsonl`, `held_out_questions.jsonl`: on voices and phrases that none of the others
  has.
"""

import json
import os
import pathlib
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
from examples.spoken_corpus.dialogues import QUESTIONS, Topic
from stepaudio_jax.judge.prompt import JudgePrompt
from stepaudio_jax.judge.training import write_judge_data
from stepaudio_jax.storage import Path, atomic_directory

Json = dict[str, Any]
TOPICS: tuple[Topic, ...] = ("gender", "rate", "pitch", "language", "keyword", "sum")
HELD_OUT_PAIRS = 200
_PAIRS_PER_QUESTION = 4
_TOPIC_OF_QUESTION: Mapping[str, str] = {
    wording: topic for topic in TOPICS for wording in QUESTIONS[topic]
}
_CORRECT_WEIGHT, _REQUEST_WEIGHT = 2.0, 2.0
# Shares of the replies that the judge is trained on. A policy discovers the last three as exploits
# if the judge has never seen them.
_WRONG_PROBABILITY = 0.35
_EMPTY_PROBABILITY = 0.1
_TWO_ANSWERS_PROBABILITY = 0.1
_REPEATED_PROBABILITY = 0.15
# The share of requests that the start model's training replies meet: it learns that it can meet
# them, and often does not.
_REQUEST_MET_PROBABILITY = 0.5


def write_style_data(
    corpus: pathlib.Path, output: pathlib.Path, prompt: JudgePrompt, *, per_task: int, seed: int = 0
) -> None:
    """Writes the data; the folder appears when it is complete.

    Args:
        corpus: the quickstart's corpus.
        output: the folder to write.
        prompt: the judge's template.
        per_task: held-out questions of each task; every other one has a request.
        seed: the seed of all draws.
    """
    # One generator for each kind of file, so that no file depends on another.
    style_rng, prompt_rng, pair_rng, held_out_rng, question_rng = (
        np.random.default_rng((seed, 7, n)) for n in range(5)
    )
    training = list(_first_questions(corpus / "train" / "audio_qa.jsonl", output))
    held_out = [
        question
        for topic in TOPICS
        for question in _held_out_sample(corpus, topic, per_task, output)
    ]
    prompts = [
        _prompt_record(messages, answer, _draw_request(prompt_rng), prompt_rng)
        for messages, answer, _ in training
    ]
    held_out_order = held_out_rng.permutation(len(held_out))
    files: dict[str, Iterable[Json]] = {
        "style": (_styled_dialogue(*question, style_rng) for question in training),
        "preference": _balance_topics([prompt for prompt in prompts if "rubric" not in prompt]),
        "rubric": _balance_topics([prompt for prompt in prompts if "rubric" in prompt]),
        "pairs": (
            _preference_record(messages, answer, pair_rng)
            for messages, answer, _ in training
            for _ in range(_PAIRS_PER_QUESTION)
        ),
        "held_out_pairs": (
            _preference_record(*held_out[int(index)], held_out_rng)
            for index in held_out_order[:HELD_OUT_PAIRS]
        ),
        "held_out_questions": _evaluation_records(held_out, question_rng),
    }
    with atomic_directory(output) as folder:
        for name, records in files.items():
            _write_jsonl(folder / f"{name}.jsonl", records)
        write_judge_data(folder / "pairs.jsonl", folder / "judge.jsonl", prompt)


def with_request(messages: list[Json], request: Request) -> list[Json]:
    """Returns a dialogue with a request appended to its last question."""
    *before, last = messages
    *audio, question = last["content"]
    question = {**question, "text": f"{question['text']} {request.text}"}
    return [*before, {**last, "content": [*audio, question]}]


def _first_questions(
    path: pathlib.Path, folder: pathlib.Path
) -> Iterator[tuple[list[Json], str, str]]:
    """Yields the first question of every training dialogue on one of `TOPICS`.

    Yields:
        (dialogue up to the question, answer, reasoning).
    """
    for record in _read_jsonl(path):
        question, reply = record["messages"][:2]
        topic = _TOPIC_OF_QUESTION.get(question["content"][-1].get("text", ""))
        # A clip may have several keywords; then the reply is not one of the task's answers.
        if topic is not None and reply["content"] in TASKS[topic].answers:
            message = _with_fact(question, f"{topic} {reply['content']}", path.parent, folder)
            yield [message], reply["content"], reply["reasoning_content"]


def _held_out_sample(
    corpus: pathlib.Path, topic: str, count: int, folder: pathlib.Path
) -> list[tuple[list[Json], str]]:
    """Returns (dialogue, answer) of some of a task's held-out questions.

    They are evenly spaced in the file, which is sorted by answer.
    """
    path = corpus / "evaluation" / f"{topic}.jsonl"
    records = _read_jsonl(path)
    sample = []
    for index in _evenly_spaced(range(len(records)), count):
        record = records[index]
        fact = f"{topic} {record['answer']}"
        message = _with_fact(record["messages"][0], fact, path.parent, folder)
        sample.append(([message], record["answer"]))
    return sample


def _evenly_spaced(indices: Sequence[int], count: int) -> list[int]:
    """Returns `count` evenly spaced indices, or all if there are fewer."""
    count = min(count, len(indices))
    return [indices[index * len(indices) // count] for index in range(count)]


def _balance_topics(prompts: list[Json]) -> Iterator[Json]:
    """Yields equally many prompts of each topic, in their order.

    The stage uses only a few hundred prompts, so the rarest topic limits the others.
    """
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
    """Returns the topic of a prompt: the first word of the fact that the judge is told."""
    audio, *_ = prompt["messages"][-1]["content"]
    return audio["transcript"].split()[0]


def _with_fact(message: Json, fact: str, read_from: pathlib.Path, written_to: pathlib.Path) -> Json:
    """Replaces the transcript of a message's clip by a fact for the judge, which only reads text.

    Args:
        message: the message of a user that begins with a clip.
        fact: topic and answer.
        read_from: the folder that the clip's path is relative to.
        written_to: the folder that it will be relative to.
    """
    audio, *rest = message["content"]
    path = os.path.relpath((read_from / audio["audio"]).resolve(), written_to.resolve())
    return {**message, "content": [{**audio, "audio": path, "transcript": fact}, *rest]}


def _styled_dialogue(
    messages: list[Json], answer: str, reasoning: str, rng: np.random.Generator
) -> Json:
    """Draws a training dialogue of the start model."""
    request = _draw_request(rng)
    style = draw_style(rng)
    if request is not None:
        messages = with_request(messages, request)
        style = request.style if rng.random() < _REQUEST_MET_PROBABILITY else style
    reply = {"role": "assistant", "reasoning_content": reasoning, "content": style.render(answer)}
    return {"messages": [*messages, reply]}


def _prompt_record(
    messages: list[Json], answer: str, request: Request | None, rng: np.random.Generator
) -> Json:
    """Builds a prompt with its answer, reference reply and, with a request, its rubric.

    The reference reply meets the request; without one its style is good and rarely the best.
    """
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
    """Returns the rubric of replies to a request."""
    return [
        {"criterion": CORRECT_CRITERION, "weight": _CORRECT_WEIGHT},
        {"criterion": request.criterion, "weight": _REQUEST_WEIGHT},
    ]


def _preference_record(messages: list[Json], answer: str, rng: np.random.Generator) -> Json:
    """Draws two replies to a question; the one that the rule prefers is the reference.

    The margin is 1, or 0 if both score the same.
    """
    request = _draw_request(rng)
    replies = [_draw_reply(answer, request, rng) for _ in range(2)]
    scores = [rule_score(reply, answer, request) for reply, _ in replies]
    better, worse = replies if scores[0] >= scores[1] else replies[::-1]
    record: Json = {"messages": messages, "margin": int(scores[0] != scores[1])}
    if request is not None:
        record["messages"], record["rubric"] = with_request(messages, request), rubric(request)
    for name, (reply, claimed) in (("reference", better), ("rejected", worse)):
        record[f"{name}_reply"], record[f"{name}_critique"] = (
            reply,
            critique(reply, claimed, answer, request),
        )
        if request is not None:
            record[f"{name}_meets"] = [is_correct(reply, answer), request.is_met(reply)]
    return record


def _draw_reply(answer: str, request: Request | None, rng: np.random.Generator) -> tuple[str, str]:
    """Draws a reply to a question, with a correct answer, a wrong one, two or none.

    Returns:
        (reply, the answers that it gives).
    """
    if rng.random() < _EMPTY_PROBABILITY:
        return draw_empty_reply(rng), "nothing"
    answers = [answer]
    allowed = next(task.answers for task in TASKS.values() if answer in task.answers)
    other = str(rng.choice([value for value in allowed if value != answer]))
    kind = rng.random()
    if kind < _WRONG_PROBABILITY:
        answers = [other]
    elif kind < _WRONG_PROBABILITY + _TWO_ANSWERS_PROBABILITY:
        answers = [answer, other] if rng.integers(2) else [other, answer]
    claimed = " and ".join(answers)
    if rng.random() < _REPEATED_PROBABILITY and len(answers) == 1:
        return draw_repeated_style(rng).render(*answers), claimed
    if request is not None and rng.integers(2):
        return request.style.render(*answers), claimed
    return draw_style(rng).render(*answers), claimed


def _evaluation_records(
    held_out: Iterable[tuple[list[Json], str]], rng: np.random.Generator
) -> Iterator[Json]:
    """Yields the held-out questions with their reference replies; every other has a request."""
    requests = list(REQUESTS.values())
    for number, (messages, answer) in enumerate(held_out):
        request = requests[number // 2 % len(requests)] if number % 2 else None
        yield _prompt_record(messages, answer, request, rng)


def _draw_request(rng: np.random.Generator) -> Request | None:
    """Draws a request with probability 0.5."""
    requests = list(REQUESTS.values())
    return None if rng.integers(2) else requests[int(rng.integers(len(requests)))]


def _read_jsonl(path: pathlib.Path) -> list[Json]:
    """Reads the records of a file as they are written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write_jsonl(path: Path, records: Iterable[Json]) -> None:
    """Writes records, each with an id made of the file's name and its number."""
    lines = (
        json.dumps({"id": f"{path.stem}-{number:05d}", **record}, ensure_ascii=False)
        for number, record in enumerate(records)
    )
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
