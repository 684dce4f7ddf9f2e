"""A whole corpus: sessions recorded, dialogues written.

DIR/audio/SESSION/00000.flac ..     what is heard DIR/train/{audio_qa,two_turn,text}.jsonl
DIR/validation/{audio_qa,two_turn,text}.jsonl   the same kinds of dialogue on held-out speakers and
phrases, for a held-out loss DIR/evaluation/TASK.jsonl           questions with their `answer`, see
`tasks` DIR/corpus.json                     how it was made, and what is in it
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
from stepaudio_jax.storage import atomic_directory, check_output_directory

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
"""Training clips, unless asked for otherwise."""

_RECORDS_PER_CLIP = {"two_turn": 0.4, "text": 0.4}  # training records for each training clip
_VALIDATION_RECORDS = 200
_QUESTIONS_PER_CLIP = 3
# probability that "text_arithmetic" is asked of a clip as well: a sum then follows from its
# figures, not from the sound
_ARITHMETIC_PROBABILITY = 0.3


def write_corpus(
    output: str | os.PathLike[str],
    recipe: Recipe,
    *,
    clips: int | None = None,
    per_task: int = 200,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Writes a corpus, which follows from the recipe, the numbers and the seed; the number of threads changes nothing.

    The evaluation follows from `per_task` and the seed only: both recipes have the same.

    Args:
        output: a folder that does not exist yet, or is empty. It appears once it is complete.
        recipe: "base": perception without reasoning, more phrases. "quickstart": reasoned answers
        to the tasks.
        clips: of training; None for `DEFAULT_CLIPS[recipe]`.
        per_task: questions of each task of the evaluation, at least.
        seed: of every draw.
        threads: None for as many as there are processors.

    Returns:
        What `corpus.json` says.

    Raises:
        CorpusError: an argument is out of range, or the output is in use.
        OutputError: the output is there and is not an empty folder, or the folder above it cannot
        be written.

    """
    if recipe not in DEFAULT_CLIPS:
        raise CorpusError(f"recipe={recipe!r} is not one of {', '.join(DEFAULT_CLIPS)}")
    clips = DEFAULT_CLIPS[recipe] if clips is None else clips
    threads = (os.cpu_count() or 1) if threads is None else threads
    for name, value, least in (
        ("clips", clips, 100),
        ("per_task", per_task, 16),
        ("seed", seed, 0),
        ("threads", threads, 1),
    ):
        if value < least:
            raise CorpusError(f"{name}={value} must be at least {least}")
    final = pathlib.Path(output)
    check_output_directory(final)
    with atomic_directory(final) as folder:
        return _write(folder, recipe, clips, per_task, seed, threads)


def _write(
    folder: pathlib.Path, recipe: Recipe, clips: int, per_task: int, seed: int, threads: int
) -> dict[str, Any]:
    rng = np.random.default_rng((seed, 4))
    phrase_groups = tasks.phrase_groups(per_task, rng)
    training = training_sessions(clips, _KIND_SHARES[recipe], seed)
    heard, held_out = _record_all(
        training, evaluation_sessions(phrase_groups, seed), folder, threads
    )
    by_group: dict[int, list[Clip]] = collections.defaultdict(list)
    for clip in (clip for session in held_out for clip in session):
        by_group[clip.group].append(clip)
    questions = tasks.build_questions(
        [by_group[number] for number in range(len(phrase_groups))], per_task, rng
    )
    records = {
        f"evaluation/{name}": [
            {
                "id": f"{name}-{index:05d}",
                "messages": question.messages,
                "answer": question.answer,
                "source": name,
            }
            for index, question in enumerate(asked)
        ]
        for name, asked in questions.items()
    }
    for split, sessions, number in (("train", heard, 5), ("validation", held_out, 6)):
        for name, spoken in _dialogues(
            sessions, recipe, split == "validation", np.random.default_rng((seed, number))
        ).items():
            records[f"{split}/{name}"] = [
                {"id": f"{split}-{name}-{index:05d}", "messages": messages}
                for index, messages in enumerate(spoken)
            ]
    for name, lines in records.items():
        _write_jsonl(folder / f"{name}.jsonl", lines)
    facts = {
        "recipe": recipe,
        "clips": clips,
        "per_task": per_task,
        "seed": seed,
        "records": {name: len(lines) for name, lines in records.items()},
        "train": _statistics(heard),
        "held_out": _statistics(held_out),
    }
    (folder / "corpus.json").write_text(
        json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return facts


def _record_all(
    training: Sequence[Session], evaluation: Sequence[Session], folder: pathlib.Path, threads: int
) -> tuple[list[list[Clip]], list[list[Clip]]]:
    """The clips of each session, longest sessions first at work."""
    sessions = [*training, *evaluation]
    with ThreadPoolExecutor(threads) as pool:
        work = {
            session.name: pool.submit(record, session, folder)
            for session in sorted(sessions, key=lambda session: -len(session.lines))
        }
        try:
            done = [work[session.name].result() for session in sessions]
        except BaseException:  # Ctrl-C among them: what has not begun is not waited for
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return done[: len(training)], done[len(training) :]


def _dialogues(
    sessions: Sequence[Sequence[Clip]], recipe: Recipe, held_out: bool, rng: np.random.Generator
) -> dict[str, list[list[Message]]]:
    """Dialogues with their answers, by file."""
    clips = [clip for session in sessions for clip in session]
    heard = [
        dialogues.clip_dialogue(
            clip, _choose_topics(clip, recipe, rng), rng, with_reasoning=recipe == "quickstart"
        )
        for clip in clips
    ]
    two_turn = _two_clip_dialogues(
        sessions, recipe, int(_RECORDS_PER_CLIP["two_turn"] * len(clips)), rng
    )
    names_both = recipe == "base"  # it learns to write down whatever there is
    texts = range(int(_RECORDS_PER_CLIP["text"] * len(clips)))
    text = [
        dialogues.draw_text_dialogue(rng, held_out=held_out, names_both=names_both) for _ in texts
    ]
    made = {"audio_qa": heard, "two_turn": two_turn, "text": text}
    if held_out:
        made = {
            name: [every[i] for i in rng.permutation(len(every))[:_VALIDATION_RECORDS]]
            for name, every in made.items()
        }
    return made


def _choose_topics(clip: Clip, recipe: Recipe, rng: np.random.Generator) -> list[Topic]:
    """What is asked about a clip: what the recipe is after, and some of its attributes, in any order."""
    about = dialogues.clip_topics(clip)
    asked: list[Topic] = []
    if recipe == "base":
        asked = ["description" if "description" in about and rng.integers(2) else "words"]
    elif "sum" in about:
        asked = ["sum"]
    elif clip.phrase.kind in ("random", "random_mandarin"):
        asked = ["words"]  # so that what the base has learnt stays
    lists = [topic for topic in about if topic in WORD_LISTS]
    if lists:
        asked.append(lists[rng.integers(len(lists))])
    known = [topic for topic in about if topic in ATTRIBUTES]
    asked += [known[i] for i in rng.permutation(len(known))[: _QUESTIONS_PER_CLIP - len(asked)]]
    if rng.random() < _ARITHMETIC_PROBABILITY:
        asked.append("text_arithmetic")
    return [asked[i] for i in rng.permutation(len(asked))]


def _two_clip_dialogues(
    sessions: Sequence[Sequence[Clip]], recipe: Recipe, count: int, rng: np.random.Generator
) -> list[list[Message]]:
    """Dialogues of two clips of one session: a statement and a question about it, or, for "base", any two."""
    partners: list[tuple[Clip, Sequence[Clip]]] = []
    for session in sessions:
        firsts = [clip for clip in session if recipe == "base" or clip.phrase.kind == "statement"]
        seconds = [clip for clip in session if recipe == "base" or clip.phrase.kind == "question"]
        if len(seconds) > (recipe == "base"):  # besides the first one itself
            partners += [(first, seconds) for first in firsts]
    if not partners:
        raise CorpusError("no speaker says a statement and a question; ask for more clips")
    made: list[list[Message]] = []
    while len(made) < count:
        first, others = partners[rng.integers(len(partners))]
        second = others[int(rng.integers(len(others)))]
        if recipe == "quickstart":
            made.append(dialogues.two_turn_dialogue(first, second))
        elif first is not second:
            made.append(dialogues.recall_dialogue(first, second, asks_first=bool(rng.integers(2))))
    return made


def _statistics(sessions: Iterable[Sequence[Clip]]) -> dict[str, Any]:
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
        for record_ in records:
            file.write(json.dumps(record_, ensure_ascii=False) + "\n")
