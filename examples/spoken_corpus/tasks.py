"""The evaluation: tasks in the image of the paper's benchmarks, on held-out speakers and phrases, each answer equally often."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from examples.spoken_corpus import dialogues
from examples.spoken_corpus import phrases as words
from examples.spoken_corpus.dialogues import Message, Topic
from examples.spoken_corpus.espeak import CorpusError
from examples.spoken_corpus.phrases import SUM_RESULTS, Kind, Phrase, draw_phrase
from examples.spoken_corpus.sessions import ATTRIBUTES, Clip


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of the evaluation.

    Attributes:
        name: the `source` of its records, and their file's name.
        answers: every answer it can have, each equally often: a guess is right once in
        `len(answers)`.
        spoken: whether it has sound.
    """

    name: str
    answers: tuple[str, ...]
    spoken: bool = True

    @property
    def chance(self) -> float:
        """How often a guess is right."""
        return 1 / len(self.answers)


_SUM_ANSWERS = tuple(str(total) for total in SUM_RESULTS)
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            *(Task(name, answers) for name, answers in ATTRIBUTES.items()),
            Task("keyword", words.KEYWORDS),
            Task("sum", _SUM_ANSWERS),
            Task("two_turn", words.COLOURS + words.ANIMALS),
            Task("text_sum", _SUM_ANSWERS, spoken=False),
        )
    }
)

_ATTRIBUTE_TOPICS: tuple[Topic, ...] = ("gender", "rate", "pitch", "language")
_MIXED_KINDS: tuple[Kind, ...] = ("keyword", "mandarin", "sum", "mandarin", "statement")
# mixed phrase_groups for each one that a task needs, for rate and pitch are known only once a clip
# has been measured
_MIXED_PER_QUESTION = 4


@dataclasses.dataclass(frozen=True)
class Question:
    """A record of the evaluation: a dialogue that ends in a question, and the right answer."""

    messages: list[Message]
    answer: str


def phrase_groups(per_task: int, rng: np.random.Generator) -> list[list[Phrase]]:
    """What the held-out speakers say: for each question of "keyword", "sum" and "two_turn" a group, then a mixture.

    Args:
        per_task: questions of each task, at least; as many more as make each answer equally
        frequent.
        rng: where the draws come from.
    """
    said = [
        [_phrase("keyword", rng, keyword=keyword)]
        for keyword in words.KEYWORDS
        for _ in range(_count_per_answer("keyword", per_task))
    ]
    for total in SUM_RESULTS:
        said += [[_sum(total, rng)] for _ in range(_count_per_answer("sum", per_task))]
    for asked, answers in (("colour", words.COLOURS), ("animal", words.ANIMALS)):
        for word in answers:
            for _ in range(_count_per_answer("two_turn", per_task)):
                said.append(
                    [
                        _phrase("statement", rng, **{asked: word}),
                        _phrase("question", rng, asked=asked),
                    ]
                )
    return said + [
        [_phrase(_MIXED_KINDS[i % len(_MIXED_KINDS)], rng)]
        for i in range(_MIXED_PER_QUESTION * per_task)
    ]


def build_questions(
    recorded: Sequence[Sequence[Clip]], per_task: int, rng: np.random.Generator
) -> dict[str, list[Question]]:
    """The records of every task.

    Args:
        recorded: the clips of each of `phrase_groups(per_task, ..)`, in their order.
        per_task: as for `phrase_groups`.
        rng: where the draws come from.

    Raises:
        CorpusError: the clips of some class are too few.
    """
    made: dict[str, list[Question]] = {}
    ahead = iter(recorded)
    for topic in ("keyword", "sum"):
        clips = [
            next(ahead)[0]
            for _ in range(_count_per_answer(topic, per_task) * len(TASKS[topic].answers))
        ]
        made[topic] = [_clip_question(clip, topic, rng) for clip in clips]
    pairs = [
        next(ahead)
        for _ in range(_count_per_answer("two_turn", per_task) * len(TASKS["two_turn"].answers))
    ]
    made["two_turn"] = [
        Question(
            dialogues.two_turn_prompt(*pair),
            dialogues.two_turn_answer(pair[0].phrase, pair[1].phrase),
        )
        for pair in pairs
    ]
    mixed = [clip for group in ahead for clip in group]
    for topic in _ATTRIBUTE_TOPICS:
        made[topic] = [
            _clip_question(clip, topic, rng)
            for clip in _balanced_sample(mixed, topic, _count_per_answer(topic, per_task), rng)
        ]
    made["text_sum"] = _draw_text_sums(_count_per_answer("text_sum", per_task), rng)
    return {name: made[name] for name in TASKS}


def _count_per_answer(task: str, per_task: int) -> int:
    """Questions for each answer of a task."""
    return -(-per_task // len(TASKS[task].answers))


def _clip_question(clip: Clip, topic: Topic, rng: np.random.Generator) -> Question:
    return Question(dialogues.clip_question(clip, topic, rng), dialogues.topic_answer(clip, topic))


def _balanced_sample(
    clips: Sequence[Clip], attribute: str, each: int, rng: np.random.Generator
) -> list[Clip]:
    """`each` clips of every value of an attribute, drawn without replacement."""
    values: dict[str, list[Clip]] = collections.defaultdict(list)
    for index in rng.permutation(len(clips)):
        if attribute in clips[index].attributes:
            values[clips[index].attributes[attribute]].append(clips[index])
    for value in ATTRIBUTES[attribute]:
        if len(values[value]) < each:
            raise CorpusError(
                f"of the {len(clips)} held-out clips only {len(values[value])} have {attribute}={value}, and {each} are needed;"
                " ask for more questions a task, or another seed"
            )
    return [clip for value in ATTRIBUTES[attribute] for clip in values[value][:each]]


def _draw_text_sums(each: int, rng: np.random.Generator) -> list[Question]:
    made: dict[str, list[Question]] = {total: [] for total in _SUM_ANSWERS}
    while any(len(asked) < each for asked in made.values()):
        question, _, reply = dialogues.draw_text_sum(rng, held_out=True)
        if len(made[reply]) < each:
            made[reply].append(Question([{"role": "user", "content": question}], reply))
    return [question for asked in made.values() for question in asked]


def _phrase(kind: Kind, rng: np.random.Generator, **fixed: str) -> Phrase:
    return draw_phrase(kind, rng, held_out=True, fixed=fixed)


def _sum(total: int, rng: np.random.Generator) -> Phrase:
    while True:
        phrase = _phrase("sum", rng)
        if phrase.answer == str(total):
            return phrase
