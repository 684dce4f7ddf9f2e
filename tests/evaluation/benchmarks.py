"""Benchmark results made by hand: a task on real clips, its verdicts, and folders of results."""

import dataclasses
import pathlib

import numpy as np
import soundfile

from stepaudio_jax.data import Record
from stepaudio_jax.evaluation.metrics import default_metrics
from stepaudio_jax.evaluation.results import (
    BenchmarkResults,
    FailedItem,
    JudgeExchange,
    ModelIdentity,
    Reply,
    TaskResults,
    make_samples,
)
from stepaudio_jax.evaluation.results_files import write_results
from stepaudio_jax.evaluation.task import Item, Judged, ReplyScore, ScoredItem, Strict, Task
from stepaudio_jax.text import AudioPart, Message, TextPart

CORRECT = ReplyScore(strict=Strict("correct", "B"), official="correct")
WRONG = ReplyScore(strict=Strict("wrong", "A"), official="wrong")
UNPARSED = ReplyScore(strict=Strict("unparsed"), official="dropped")


class Tones(Task):
    """A task by rules; its items say which group they are in."""

    name, version, title = "tones", "1", "Which tone is higher"
    table_column = "MMAU"

    def items(self, folder):
        return []


class Judging(Tones):
    """A task whose headline is the share of replies that meet all criteria."""

    name, title, table_column = "judging", "All criteria met", "Audio MC"
    judge, headline = "required", ("judge", "APR")

    def headline_part(self, reply, data):
        return float(reply is not None and reply.judged.score == 1), 1.0


def scored(number, *replies, cluster="", error="", **groups):
    name = f"item-{number}"
    return ScoredItem(name, groups, cluster or name, tuple(replies), error)


def judged(score, reason="", **details):
    return ReplyScore(judged=Judged(score, details, reason))


def item(number, clip=None, *, task="tones", question="Which is higher?", **groups):
    """A question about `clip`, where there is one."""
    parts = (TextPart(question),)
    if clip is not None:
        parts = (AudioPart(str(clip), transcript="beep, boop"), *parts)
    record = Record(f"item-{number}", (Message("user", parts),), task, f"{task}.jsonl:{number}")
    return Item(record.id, record, {"answer": "B", "number": number}, groups)


def model(name="our-model"):
    return ModelIdentity(name, "folder", "f" * 64, {"dtype": "bfloat16"})


def task_results(task, all_scored, metrics=None, **changes):
    fields = {
        "name": task.name,
        "version": task.version,
        "title": task.title,
        "table_column": task.table_column,
        "headline": task.headline,
        "sampling": {"temperature": 0.7, "max_new_tokens": 32000},
        "data_folder": "/data/tones",
        "data_hash": "d" * 64,
        "prompt_hashes": {"user": "a" * 64},
        "items": len(all_scored),
        "items_total": len(all_scored),
        "limit": None,
        "samples": max((len(i.replies) for i in all_scored), default=1) or 1,
        "errors": tuple(FailedItem(i.id, i.error) for i in all_scored if i.error),
        "metrics": tuple(metrics or default_metrics(all_scored, scoring=task.headline[0])),
    }
    return TaskResults(**{**fields, **changes})


def benchmark_results(*tasks, mode="sound", name="our-model"):
    return BenchmarkResults(
        model=model(name),
        mode=mode,
        tasks=tuple(tasks),
        created="2026-11-30T12:00:00Z",
        program="stepaudio_jax 0.1.0",
    )


def write_folder(folder, outcomes, *, mode="sound", name="our-model", clips=(), **changes):
    """A folder of results of `Tones`, whose items have these outcomes, in order.

    Args:
        outcomes: a ReplyScore, a tuple of them for several samples, or a string: why it has none.
        clips: of the items, taken in turn.
        changes: of the TaskResults.
    """
    task, all_scored, samples = Tones(), [], []
    for number, outcome in enumerate(outcomes):
        clip = clips[number % len(clips)] if clips else None
        question = item(number, clip, level="easy" if number % 2 else "hard")
        replies = () if isinstance(outcome, str) else outcome
        replies = (replies,) if isinstance(replies, ReplyScore) else replies
        scored_item = ScoredItem(
            question.id,
            question.groups,
            question.cluster,
            replies,
            outcome if isinstance(outcome, str) else "",
            question.data,
        )
        texts = [
            Reply(f"I hear it: {score.strict.answer}.", "First low, then high.", "stop",
                  (JudgeExchange("Is it right?", "CORRECT"),))
            for score in replies
        ]  # fmt: skip
        all_scored.append(scored_item)
        samples += make_samples(task, question, scored_item, texts)
    results = benchmark_results(task_results(task, all_scored, **changes), mode=mode, name=name)
    write_results(folder, results, samples)
    return pathlib.Path(folder)


def write_tone(path, hertz=440.0, seconds=0.5, rate=16_000):
    """A real WAV of a sine."""
    times = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hertz * times).astype(np.float32), rate)
    return path


def renamed(samples, **changes):
    return [dataclasses.replace(sample, **changes) for sample in samples]
