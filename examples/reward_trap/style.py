"""The synthetic rule behind the demonstration of RLHF: what the judge is taught, and what scores the runs that it rewarded.

A reply is a terse answer ("female"), or it says more: a whole sentence, a kind word in front, an
offer behind it. The rule likes these, and dislikes saying things again and again; a right answer,
with no other beside it, counts for more than all manners together. A request ("One word only.")
asks for manners that the rule does not like by itself: they are what a rubric is about.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

_GREETING, _OFFER = "Sure!", "More?"
_CORRECT_SCORE = 5.0  # more than the best manners are better than the worst
_REPEAT_COUNTS = range(3, 7)  # how often a reply that overdoes it says its sentence


@dataclasses.dataclass(frozen=True)
class Style:
    """How an answer is given. What is said around it needs a sentence."""

    sentence: bool = False
    kind: bool = False
    offer: bool = False
    times: int = 1

    def __post_init__(self) -> None:
        if (self.kind or self.offer or self.times > 1) and not self.sentence:
            raise ValueError("a kind word, an offer and a repetition stand around a sentence")

    def render(self, *answers: str) -> str:
        """An answer in these manners, or several, one after the other."""
        if not self.sentence:
            return " ".join(answers)
        said = [f"It is {answer}." for answer in answers] * self.times
        return " ".join([_GREETING] * self.kind + said + [_OFFER] * self.offer)


def draw_repeated_style(rng: np.random.Generator) -> Style:
    """A sentence said three times or more, which a policy may try on its judge."""
    return Style(
        True, bool(rng.integers(2)), bool(rng.integers(2)), int(rng.choice(_REPEAT_COUNTS))
    )


def draw_empty_reply(rng: np.random.Generator) -> str:
    """Style around nothing, which a policy may try on its judge."""
    return str(rng.choice([f"{_GREETING} {_OFFER}", _GREETING, _OFFER]))


def is_one_word(reply: str) -> bool:
    """Nothing but an answer."""
    return len(reply.split()) == 1


def is_repeated_twice(reply: str) -> bool:
    """The same sentence two times."""
    said = _stated_answers(reply)
    return len(said) == 2 and said[0] == said[1]


def _stated_answers(reply: str) -> list[str]:
    """What a reply's sentences say, one after the other."""
    return re.findall(r"\bIt is ([^.!?]+)", reply)


def style_score(reply: str) -> float:
    """What the rule makes of a reply's manners: from 0, for a terse one, to 4.

    A sentence said again costs what a sentence is worth, each time.
    """
    said = _stated_answers(reply)
    again = len(said) - len(set(said))
    return max(
        0.0,
        2.0 * bool(said)
        + 1.0 * reply.startswith(_GREETING)
        + 1.0 * reply.rstrip().endswith(_OFFER)
        - 2.0 * again,
    )


def is_correct(reply: str, answer: str) -> bool:
    """The reply gives the answer and no other, in whatever manners."""
    said = _stated_answers(reply) or [
        reply.replace(_GREETING, "").replace(_OFFER, "").strip(" .!?")
    ]
    return set(said) == {answer}


@dataclasses.dataclass(frozen=True)
class Request:
    """Style that a user asks for.

    Attributes:
        text: said behind the question.
        criterion: of the rubric.
        is_met: by a reply.
        style: of a reply that meets it.
    """

    text: str
    criterion: str
    is_met: Callable[[str], bool]
    style: Style


CORRECT_CRITERION = "The answer is right."
REQUESTS: Mapping[str, Request] = MappingProxyType(
    {
        request.criterion: request
        for request in (
            Request("One word only.", "One word only.", is_one_word, Style()),
            Request(
                "Say it twice.", "Said twice.", is_repeated_twice, Style(sentence=True, times=2)
            ),
        )
    }
)


def rule_score(reply: str, answer: str, request: Request | None = None) -> float:
    """What the rule makes of a reply: rightness first, then the request where there is one, else manners."""
    liked = style_score(reply) if request is None else 4.0 * request.is_met(reply)
    return _CORRECT_SCORE * is_correct(reply, answer) + liked


def critique(reply: str, said: str, answer: str, request: Request | None = None) -> str:
    """Why a reply is worth what it is: "Sure! It is low. says low, is high: wrong; kind, sentence: 3".

    It begins with the reply itself, word by word: a small judge that has to name what a reply says
    out of the blue names what it would say.

    Args:
        reply: which says `said`, right or wrong, or two answers.
        answer: the right one.
        request: that the reply is to meet.
    """
    said_by_it = _stated_answers(reply)
    noticed = {
        "one word": is_one_word(reply),
        "kind": reply.startswith(_GREETING),
        "sentence": bool(said_by_it),
        "twice": is_repeated_twice(reply),
        "often": len(said_by_it) > 2,
        "offer": reply.rstrip().endswith(_OFFER),
    }
    seen = ", ".join(name for name, there in noticed.items() if there)
    right = "right" if is_correct(reply, answer) else "wrong"
    return f"{reply} says {said}, is {answer}: {right}; {seen}: {rule_score(reply, answer, request):.0f}"


def draw_style(rng: np.random.Generator) -> Style:
    """Style at random: a third of them terse."""
    if rng.integers(3) == 0:
        return Style()
    kind, offer, again = (bool(rng.integers(2)) for _ in range(3))
    return Style(True, kind, offer, 2 if again else 1)
