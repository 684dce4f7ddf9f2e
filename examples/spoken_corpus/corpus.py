"""Writes a corpus: records the sessions and builds the dialogues.

A corpus folder holds:

* `audio/SESSION/00000.flac`, ..: the clips;
* `train/{audio_qa,two_turn,text}.jsonl`: training dialogues;
* `validation/{audio_qa,two_turn,text}.jsonl`: the same kinds of dialogues on held-out speakers and
  phrases, for a held-out loss;
* `evaluation/TASK.jsonl`: questions with their `answer`, see `tasks`;
* `corpus.json`: the arguments, and statistics.
"""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from examples.spoken_corpus import dialogues, tasks
from examples.spoken_corpus.dialogues import WORD_LISTS, Message, Topic
from examples.spoken_corpus.espeak import CorpusError
from examples.spoken_corpus.phrases import Kind
from examples.spoken_corpus.sessions import (
    ATTRIBUTES,
    Clip,
    Session,
    evaluation_sessions,
    record,
    training_sessions,
)
from stepaudio_jax.storage import PathLike, atomic_directory, check_output_directory

Recipe = Literal["base", "quickstart"]

_KIND_SHARES: Mapping[Recipe, Mapping[Kind, float]] = MappingProxyType(
    {
        "base": {
            "keyword": 0.15,
            "sum": 0.13,
            "statement": 0.12,
            "question": 0.05,
            "random": 0.38,
            "mandarin": 0.09,
            "random_mandarin": 0.08,
        },
        "quickstart": {
            "keyword": 0.25,
            "sum": 0.27,
            "statement": 0.15,
            "question": 0.07,
            "random": 0.12,
            "mandarin": 0.11,
            "random_mandarin": 0.03,
        },
    }
)
DEFAULT_CLIPS: Mapping[Recipe, int] = MappingProxyType({"base": 60_000, "quickstart": 5_000})
"""Recipe -> the default number of training clips."""

_RECORDS_PER_CLIP = {"two_turn": 0.4, "text": 0.4}
_VALIDATION_RECORDS = 200
_QUESTIONS_PER_CLIP = 3
# Probability of a "text_arithmetic" question in a dialogue about a clip. It teaches that a sum
# follows from its figures, not from the audio.
_ARITHMETIC_PROBABILITY = 0.3


def write_corpus(
    output: PathLike,
    recipe: Recipe,
    *,
    clips: int | None = None,
    per_task: int = 200,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Writes a corpus.

    The corpus depends on the recipe, the numbers and the seed, not on the number of threads. The
    evaluation depends on `per_task` and the seed only, so both recipes have the same one.

    Args:
        output: a folder that does not exist yet, or is empty. It appears when it is complete.
        recipe: "base" for perception without reasoning and with more phrases, "quickstart" for
            answers to the tasks with reasoning.
        clips: the number of training clips; None for `DEFAULT_CLIPS[recipe]`.
        per_task: the minimum number of questions of each task of the evaluation.
        seed: the seed of all draws.
        threads: None for the number of processors.

    Returns:
        The content of `corpus.json`.

    Raises:
        CorpusError: an argument is out of range, or espeak-ng is not installed.
        OutputError: the output exists and is not an empty folder, or its parent is not writable.
    """
    if recipe not in DEFAULT_CLIPS:
        raise CorpusError(f"recipe={recipe!r} is not one of {', '.join(DEFAULT_CLIPS)}")
    clips = DEFAULT_CLIPS[recipe] if clips is None else clips
    threads = (os.cpu_count() or 1) if threads is None else threads
    for name, value, minimum in (
        ("clips", clips, 100),
        ("per_task", per_task, 16),
        ("seed", seed, 0),
        ("threads", threads, 1),
    ):
        if value < minimum:
            raise CorpusError(f"{name}={value} must be at least {minimum}")
    check_output_directory(pathlib.Path(output))
    with atomic_directory(pathlib.Path(output)) as folder:
        return _write(pathlib.Path(folder), recipe, clips, per_task, seed, threads)


def ensure_corpus(folder: pathlib.Path, recipe: Recipe) -> None:
    """Writes a corpus with the default arguments, unless the folder exists already.

    Raises:
        CorpusError: the folder exists and is not a corpus of this version.
    """
    if not folder.exists():
        write_corpus(folder, recipe)
    elif not (folder / "train" / "audio_qa.jsonl").exists():
        raise CorpusError(
            f"{folder} has no train/audio_qa.jsonl: an older version wrote it, or it is not a "
            "corpus; remove it to have it written again"
        )


def _write(
    folder: pathlib.Path, recipe: Recipe, clips: int, per_task: int, seed: int, threads: int
) -> dict[str, Any]:
    """Writes a corpus into a folder; returns the content of `corpus.json`."""
    rng = np.random.default_rng((seed, 4))
    phrase_groups = tasks.phrase_groups(per_task, rng)
    training = training_sessions(clips, _KIND_SHARES[recipe], seed)
    evaluation = evaluation_sessions(phrase_groups, seed)
    trained, held_out = _record_all(training, evaluation, folder, threads)
    by_group: dict[int, list[Clip]] = collections.defaultdict(list)
    for clip in (clip for session in held_out for clip in session):
        by_group[clip.group].append(clip)
    groups = [by_group[number] for number in range(len(phrase_groups))]
    tasks_questions = tasks.build_questions(groups, per_task, rng)
    records = {
        f"evaluation/{name}": [
            {
                "id": f"{name}-{index:05d}",
                "messages": question.messages,
                "answer": question.answer,
                "source": name,
            }
            for index, question in enumerate(questions)
        ]
        for name, questions in tasks_questions.items()
    }
    for split, sessions, number in (("train", trained, 5), ("validation", held_out, 6)):
        dialogue_rng = np.random.default_rng((seed, number))
        files = _build_dialogues(sessions, recipe, split == "validation", dialogue_rng)
        for name, split_dialogues in files.items():
            records[f"{split}/{name}"] = [
                {"id": f"{split}-{name}-{index:05d}", "messages": messages}
                for index, messages in enumerate(split_dialogues)
            ]
    for name, lines in records.items():
        _write_jsonl(folder / f"{name}.jsonl", lines)
    facts = {
        "recipe": recipe,
        "clips": clips,
        "per_task": per_task,
        "seed": seed,
        "records": {name: len(lines) for name, lines in records.items()},
        "train": _statistics(trained),
        "held_out": _statistics(held_out),
    }
    (folder / "corpus.json").write_text(
        json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return facts


def _record_all(
    training: Sequence[Session], evaluation: Sequence[Session], folder: pathlib.Path, threads: int
) -> tuple[list[list[Clip]], list[list[Clip]]]:
    """Records all sessions on threads, the longest first.

    Returns:
        (clips of each training session, clips of each evaluation session).
    """
    sessions = [*training, *evaluation]
    with ThreadPoolExecutor(threads) as pool:
        futures = {
            session.name: pool.submit(record, session, folder)
            for session in sorted(sessions, key=lambda session: -len(session.lines))
        }
        try:
            clips = [futures[session.name].result() for session in sessions]
        except BaseException:  # also Ctrl-C: do not wait for the sessions that have not begun
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return clips[: len(training)], clips[len(training) :]


def _build_dialogues(
    sessions: Sequence[Sequence[Clip]], recipe: Recipe, held_out: bool, rng: np.random.Generator
) -> dict[str, list[list[Message]]]:
    """Builds the answered dialogues of a split: file name -> dialogues."""
    clips = [clip for session in sessions for clip in session]
    audio_qa = [
        dialogues.clip_dialogue(
            clip, _choose_topics(clip, recipe, rng), rng, with_reasoning=recipe == "quickstart"
        )
        for clip in clips
    ]
    num_two_turn, num_text = (
        int(_RECORDS_PER_CLIP[name] * len(clips)) for name in ("two_turn", "text")
    )
    two_turn = _two_clip_dialogues(sessions, recipe, num_two_turn, rng)
    names_both = recipe == "base"  # the base model learns to write down everything it perceives
    text = [
        dialogues.draw_text_dialogue(rng, held_out=held_out, names_both=names_both)
        for _ in range(num_text)
    ]
    files = {"audio_qa": audio_qa, "two_turn": two_turn, "text": text}
    if held_out:
        files = {
            name: [every[i] for i in rng.permutation(len(every))[:_VALIDATION_RECORDS]]
            for name, every in files.items()
        }
    return files


def _choose_topics(clip: Clip, recipe: Recipe, rng: np.random.Generator) -> list[Topic]:
    """Draws the topics of the questions about a clip, in random order."""
    available = dialogues.clip_topics(clip)
    topics: list[Topic] = []
    if recipe == "base":
        topics = ["description" if "description" in available and rng.integers(2) else "words"]
    elif "sum" in available:
        topics = ["sum"]
    elif clip.phrase.kind in ("random", "random_mandarin"):
        topics = ["words"]  # keeps what the base model has learned
    lists = [topic for topic in available if topic in WORD_LISTS]
    if lists:
        topics.append(lists[rng.integers(len(lists))])
    attributes = [topic for topic in available if topic in ATTRIBUTES]
    remaining = _QUESTIONS_PER_CLIP - len(topics)
    topics += [attributes[i] for i in rng.permutation(len(attributes))[:remaining]]
    if rng.random() < _ARITHMETIC_PROBABILITY:
        topics.append("text_arithmetic")
    return [topics[i] for i in rng.permutation(len(topics))]


def _two_clip_dialogues(
    sessions: Sequence[Sequence[Clip]], recipe: Recipe, count: int, rng: np.random.Generator
) -> list[list[Message]]:
    """Draws `count` dialogues of two clips of one session.

    The clips are a statement and a question about it; with the recipe "base", any two clips.
    """
    partners: list[tuple[Clip, Sequence[Clip]]] = []
    for session in sessions:
        firsts = [clip for clip in session if recipe == "base" or clip.phrase.kind == "statement"]
        seconds = [clip for clip in session if recipe == "base" or clip.phrase.kind == "question"]
        if len(seconds) > (recipe == "base"):  # for "base" the first clip is one of them
            partners += [(first, seconds) for first in firsts]
    if not partners:
        raise CorpusError("no speaker says a statement and a question; ask for more clips")
    two_clip: list[list[Message]] = []
    while len(two_clip) < count:
        first, others = partners[rng.integers(len(partners))]
        second = others[int(rng.integers(len(others)))]
        if recipe == "quickstart":
            two_clip.append(dialogues.two_turn_dialogue(first, second))
        elif first is not second:
            two_clip.append(
                dialogues.recall_dialogue(first, second, asks_first=bool(rng.integers(2)))
            )
    return two_clip


def _statistics(sessions: Iterable[Sequence[Clip]]) -> dict[str, Any]:
    """Computes the statistics of a split for `corpus.json`."""
    clips = [clip for session in sessions for clip in session]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for clip in clips:
        counts["kind"][clip.phrase.kind] += 1
        for name in ATTRIBUTES:
            counts[name][clip.attributes.get(name, "between")] += 1
    return {
        "clips": len(clips),
        "speakers": sorted({clip.speaker.variant for clip in clips}),
        "voices": len({clip.speaker.name for clip in clips}),
        "phrases": len({clip.phrase.transcript for clip in clips}),
        "speech_s": {
            str(quantile): round(float(np.quantile([clip.speech_s for clip in clips], quantile)), 2)
            for quantile in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
        },
        **{name: dict(sorted(count.items())) for name, count in counts.items()},
    }


def _write_jsonl(path: pathlib.Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for line in records:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
