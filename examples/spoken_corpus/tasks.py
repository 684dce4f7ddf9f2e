"""The evaluation tasks of the corpus, modelled on the benchmarks of the Step-Audio papers.

Their questions are about held-out speakers and phrases, and each answer is equally frequent.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from examples.spoken_corpus import dialogues
from examples.spoken_corpus.dialogues import Message, Topic
from examples.spoken_corpus.espeak import CorpusError
from examples.spoken_corpus.phrases import (
    ANIMALS,
    COLOURS,
    KEYWORDS,
    SUM_RESULTS,
    Kind,
    Phrase,
    draw_phrase,
)
from examples.spoken_corpus.sessions import ATTRIBUTES, Clip


@dataclasses.dataclass(frozen=True)
class Task:
    """Describes a task of the evaluation.

    Attributes:
        name: the `source` of its records and the name of their file.
        answers: the possible answers, which are equally frequent.
        spoken: whether its questions have audio.
    """

    name: str
    answers: tuple[str, ...]
    spoken: bool = True

    @property
    def chance(self) -> float:
        """Returns the accuracy of guessing."""
        return 1 / len(self.answers)


_SUM_ANSWERS = tuple(str(total) for total in SUM_RESULTS)
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            *(Task(name, answers) for name, answers in ATTRIBUTES.items()),
            Task("keyword", KEYWORDS),
            Task("sum", _SUM_ANSWERS),
            Task("two_turn", COLOURS + ANIMALS),
            Task("text_sum", _SUM_ANSWERS, spoken=False),
        )
    }
)

_ATTRIBUTE_TOPICS: tuple[Topic, ...] = ("gender", "rate", "pitch", "language")
_MIXED_KINDS: tuple[Kind, ...] = ("keyword", "mandarin", "sum", "mandarin", "statement")
# Mixed phrases per question of a task. More are recorded than are needed, since rate and pitch are
# known only after measuring a clip.
_MIXED_PER_QUESTION = 4


@dataclasses.dataclass(frozen=True)
class Question:
    """Holds a record of the evaluation: a dialogue that ends in a question, and the answer."""

    messages: list[Message]
    answer: str


def phrase_groups(per_task: int, rng: np.random.Generator) -> list[list[Phrase]]:
    """Draws what the held-out speakers say.

    Args:
        per_task: the minimum number of questions of each task; more are made where that makes the
            answers equally frequent.
        rng: the source of the random draws.

    Returns:
        A group of phrases for each question of "keyword", "sum" and "two_turn", then groups of one
        phrase of mixed kinds.
    """
    groups = [
        [_draw_held_out("keyword", rng, keyword=keyword)]
        for keyword in KEYWORDS
        for _ in range(_count_per_answer("keyword", per_task))
    ]
    for total in SUM_RESULTS:
        groups += [[_draw_sum(total, rng)] for _ in range(_count_per_answer("sum", per_task))]
    for asked, answers in (("colour", COLOURS), ("animal", ANIMALS)):
        for word in answers:
            for _ in range(_count_per_answer("two_turn", per_task)):
                statement = _draw_held_out("statement", rng, **{asked: word})
                groups.append([statement, _draw_held_out("question", rng, asked=asked)])
    return groups + [
        [_draw_held_out(_MIXED_KINDS[i % len(_MIXED_KINDS)], rng)]
        for i in range(_MIXED_PER_QUESTION * per_task)
    ]


def build_questions(
    recorded: Sequence[Sequence[Clip]], per_task: int, rng: np.random.Generator
) -> dict[str, list[Question]]:
    """Builds the questions of every task.

    Args:
        recorded: the clips of each group of `phrase_groups(per_task, ..)`, in the same order.
        per_task: the argument of `phrase_groups`.
        rng: the source of the random draws.

    Returns:
        Task -> its questions.

    Raises:
        CorpusError: too few clips have some value of an attribute.
    """
    questions: dict[str, list[Question]] = {}
    groups = iter(recorded)

    def next_groups(task: str) -> list[Sequence[Clip]]:
        count = _count_per_answer(task, per_task) * len(TASKS[task].answers)
        return [next(groups) for _ in range(count)]

    for topic in ("keyword", "sum"):
        questions[topic] = [_clip_question(clip, topic, rng) for (clip,) in next_groups(topic)]
    questions["two_turn"] = [
        Question(
            dialogues.two_turn_prompt(statement, question),
            dialogues.two_turn_answer(statement.phrase, question.phrase),
        )
        for statement, question in next_groups("two_turn")
    ]
    mixed = [clip for group in groups for clip in group]
    for topic in _ATTRIBUTE_TOPICS:
        questions[topic] = [
            _clip_question(clip, topic, rng)
            for clip in _balanced_sample(mixed, topic, _count_per_answer(topic, per_task), rng)
        ]
    questions["text_sum"] = _draw_text_sums(_count_per_answer("text_sum", per_task), rng)
    return {name: questions[name] for name in TASKS}


def _count_per_answer(task: str, per_task: int) -> int:
    """Returns the number of questions for each answer of a task."""
    return -(-per_task // len(TASKS[task].answers))


def _clip_question(clip: Clip, topic: Topic, rng: np.random.Generator) -> Question:
    return Question(dialogues.clip_question(clip, topic, rng), dialogues.topic_answer(clip, topic))


def _balanced_sample(
    clips: Sequence[Clip], attribute: str, each: int, rng: np.random.Generator
) -> list[Clip]:
    """Draws `each` clips of every value of an attribute, without replacement."""
    values: dict[str, list[Clip]] = collections.defaultdict(list)
    for index in rng.permutation(len(clips)):
        if attribute in clips[index].attributes:
            values[clips[index].attributes[attribute]].append(clips[index])
    for value in ATTRIBUTES[attribute]:
        if len(values[value]) < each:
            raise CorpusError(
                f"only {len(values[value])} of the {len(clips)} held-out clips have "
                f"{attribute}={value}, and {each} are needed; raise per_task or change the seed"
            )
    return [clip for value in ATTRIBUTES[attribute] for clip in values[value][:each]]


def _draw_text_sums(each: int, rng: np.random.Generator) -> list[Question]:
    """Draws `each` sums in text for every result."""
    by_result: dict[str, list[Question]] = {result: [] for result in _SUM_ANSWERS}
    while any(len(questions) < each for questions in by_result.values()):
        question, _, reply = dialogues.draw_text_sum(rng, held_out=True)
        if len(by_result[reply]) < each:
            by_result[reply].append(Question([{"role": "user", "content": question}], reply))
    return [question for questions in by_result.values() for question in questions]


def _draw_held_out(kind: Kind, rng: np.random.Generator, **fixed: str) -> Phrase:
    """Draws a held-out phrase; `fixed` sets some of its slots."""
    return draw_phrase(kind, rng, held_out=True, fixed=fixed)


def _draw_sum(total: int, rng: np.random.Generator) -> Phrase:
    """Draws a held-out sum with a given result."""
    while True:
        phrase = _draw_held_out("sum", rng)
        if phrase.answer == str(total):
            return phrase
