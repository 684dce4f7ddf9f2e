"""Clips -> dialogues, in the JSON form that `stepaudio_jax.data` reads.

Questions and answers are short, for a small model spells them out byte by byte. A reasoned answer first names what was heard.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from stepaudio_jax.corpus import words
from stepaudio_jax.corpus.phrases import SUMS, Phrase, draw, number
from stepaudio_jax.corpus.recording import ATTRIBUTES, Clip

Message = dict[str, Any]
Topic = Literal[
    "hear", "words", "gender", "rate", "pitch", "language", "keyword", "number", "digit", "colour", "animal", "sum", "figures"
]

QUESTIONS: Mapping[Topic, tuple[str, ...]] = {
    "hear": ("What do you hear?", "Describe what you hear.", "What is in this clip?", "Tell me what you hear."),
    "words": ("What is said?", "Write down the words.", "Which words are said?", "What are the words?"),
    "gender": ("Is the speaker female or male?", "A female or a male voice?", "What is the speaker's gender?"),
    "rate": ("How fast is the speech?", "Is it slow, normal or fast?", "What is the speaking rate?"),
    "pitch": ("How high is the voice?", "Is the pitch low, medium or high?", "What is the pitch?"),
    "language": ("Which language is it?", "Is it English or Mandarin?", "What language is spoken?"),
    "keyword": ("Which keyword is said?", "What is the keyword?", "Name the keyword."),
    "number": ("Which numbers are said?", "What numbers do you hear?", "Name the numbers."),
    "digit": ("Which numbers, in figures?", "What numbers? Write figures.", "Name the figures."),
    "colour": ("Which colours are said?", "What colours do you hear?", "Name the colours."),
    "animal": ("Which animals are said?", "What animals do you hear?", "Name the animals."),
    "sum": ("What is the sum?", "What is the result?", "Give the answer."),
}
_SUMS_IN_FIGURES = ("What is {a} plus {b}?", "{a}+{b}=?", "Add {a} and {b}.", "How much is {a}+{b}?", "Sum of {a} and {b}?")
_MADE_UP_SUMS = ("Make up a sum.", "Write any sum.", "Say some sum.")
_NUMBERS_IN_WORDS = ("Write {said} in figures.", "In figures: {said}.", "{said}. Which figures?")
_BETWEEN_NUMBERS = (", ", " and ")
_HEARD: Mapping[Topic, str] = {
    "gender": "I hear a {answer} voice.",
    "rate": "I hear {answer} speech.",
    "pitch": "I hear a {answer} voice.",
    "language": "I hear {answer}.",
    **dict.fromkeys(("keyword", "number", "colour", "animal"), "I hear {answer}."),
}
SPOTTED: Mapping[Topic, tuple[str, ...]] = {
    "keyword": words.KEYWORDS,
    "number": words.DIGITS,
    "digit": words.DIGITS,
    "colour": words.COLOURS,
    "animal": words.ANIMALS,
}
"""Topics whose answer is every word of a list that is said, in order; "digit" has them in figures."""

ACKNOWLEDGEMENT = "Okay."
"""The reply to a statement: it gives nothing of it away."""


def topics(clip: Clip) -> tuple[Topic, ...]:
    """What can be asked about a clip."""
    about: list[Topic] = ["words"]
    if len(clip.attributes) == len(ATTRIBUTES):
        about.append("hear")
    known: tuple[Topic, ...] = ("gender", "rate", "pitch", "language")
    about += [name for name in known if name in clip.attributes]
    about += [topic for topic in SPOTTED if spotted(clip.phrase, topic)]
    if clip.phrase.kind == "sum":
        about.append("sum")
    return tuple(about)


def answer(clip: Clip, topic: Topic) -> str:
    """The right reply to a question about a clip."""
    match topic:
        case "words":
            return clip.phrase.text
        case "hear":
            return f"{', '.join(clip.attributes[name] for name in ATTRIBUTES)}: {clip.phrase.text}"
        case "keyword" | "number" | "colour" | "animal":
            return ", ".join(spotted(clip.phrase, topic))
        case "digit":
            return _in_figures(spotted(clip.phrase, topic))
        case "sum":
            return clip.phrase.answer
        case _:
            return clip.attributes[topic]


def spotted(phrase: Phrase, topic: Topic) -> list[str]:
    """The words of a phrase that a topic of `SPOTTED` asks for."""
    return [word for word in phrase.transcript.split() if word in SPOTTED[topic]]


def about_clip(clip: Clip, asked: Sequence[Topic], rng: np.random.Generator, *, reasoned: bool) -> list[Message]:
    """A dialogue in which the clip is heard once and each question about it is a turn.

    Args:
        clip: what is heard.
        asked: of `topics(clip)`, in order; "figures" besides: sums or numbers that have nothing to do with the clip.
        rng: chooses the wording of the questions.
        reasoned: whether an answer follows a reasoning. "hear" and "words" have none: their answer is what was heard;
            "figures" always has one.
    """
    messages = []
    reasoning: str | None
    for place, topic in enumerate(asked):
        if topic == "figures":
            question, reasoning, reply = _figures(rng)
        else:
            question, reply = _question(topic, rng), answer(clip, topic)
            reasoning = _reasoning(clip.phrase, topic, reply) if reasoned else None
        messages += [_user(question, clip if place == 0 else None), _assistant(reply, reasoning)]
    return messages


def question_about(clip: Clip, topic: Topic, rng: np.random.Generator) -> list[Message]:
    """A clip and a question about it, not yet answered."""
    return [_user(_question(topic, rng), clip)]


def two_turns(statement: Clip, question: Clip) -> list[Message]:
    """A spoken statement, then a spoken question about it, not yet answered: the answer is a word of the first clip."""
    return [_user("", statement), _assistant(ACKNOWLEDGEMENT, None), _user("", question)]


def two_turn_answer(statement: Phrase, question: Phrase) -> str:
    """The colour or the animal that the statement named."""
    return statement.slots[question.slots["asked"]]


def answered_two_turns(statement: Clip, question: Clip) -> list[Message]:
    """`two_turns` with both its answers, each after a reasoning. The first turn's is not in the prompt of the second."""
    heard, _, asked = two_turns(statement, question)
    recalled = _recalled(statement.phrase, question.phrase, in_full=False)
    return [heard, _assistant(ACKNOWLEDGEMENT, _stated(statement.phrase)), asked, recalled]


def recalled_words(first: Clip, second: Clip, *, asked_first: bool) -> list[Message]:
    """Two clips in two turns, then the words of one of them."""
    return [
        _user("", first),
        {**_assistant(ACKNOWLEDGEMENT, None), "loss": False},
        _user("What was said first?" if asked_first else "What is said now?", second),
        _assistant((first if asked_first else second).phrase.text, None),
    ]


def text_sum(rng: np.random.Generator, *, held_out: bool) -> tuple[str, str, str]:
    """A sum in figures: (question, reasoning, reply).

    Any one-digit operands with a sum in `SUMS`; a fifth of the pairs of wording and first operand are held out.
    """
    while True:
        first, total = _operands(rng)
        wording = int(rng.integers(len(_SUMS_IN_FIGURES)))
        if ((wording + first) % len(_SUMS_IN_FIGURES) == 0) == held_out:
            question = _SUMS_IN_FIGURES[wording].format(a=first, b=total - first)
            return question, f"{first}+{total - first}={total}.", str(total)


def text_dialogue(rng: np.random.Generator, *, held_out: bool, in_full: bool) -> list[Message]:
    """A dialogue without sound: sums or numbers, a keyword in a sentence, or a statement and a question about it.

    Args:
        rng: where the draws come from.
        held_out: the split.
        in_full: whether the reasoning about a statement names both its colour and its animal, not what is asked for alone.
    """
    form = rng.integers(6)
    if form == 0:
        question, reasoning, reply = text_sum(rng, held_out=held_out)
        return [_user(question), _assistant(reply, reasoning)]
    if form == 1:
        phrase = draw("sum", rng, held_out=held_out)
        return [_user(phrase.text), _assistant(phrase.answer, _sum_in_figures(phrase))]
    if form == 2:
        phrase = draw("keyword", rng, held_out=held_out)
        keyword = phrase.slots["keyword"]
        return [_user(f"{_question('keyword', rng)} {phrase.text}"), _assistant(keyword, f"I read {keyword}.")]
    if form < 5:
        question, reasoning, reply = _made_up_sums(rng) if form == 3 else _numbers(rng)
        return [_user(question), _assistant(reply, reasoning)]
    statement, question_ = draw("statement", rng, held_out=held_out), draw("question", rng, held_out=held_out)
    return [
        _user(statement.text),
        {**_assistant(ACKNOWLEDGEMENT, None), "loss": False},
        _user(question_.text),
        _recalled(statement, question_, in_full=in_full),
    ]


def _operands(rng: np.random.Generator) -> tuple[int, int]:
    """The first of two one-digit operands, and their sum, each sum in `SUMS` equally often."""
    total = SUMS[rng.integers(len(SUMS))]
    return int(rng.integers(max(1, total - 9), min(9, total - 1) + 1)), total


def _figures(rng: np.random.Generator) -> tuple[str, str, str]:
    """(question, reasoning, reply): a sum in figures, sums to make up, or numbers to write in figures."""
    form = rng.integers(3)
    return text_sum(rng, held_out=False) if form == 0 else _made_up_sums(rng) if form == 1 else _numbers(rng)


def _made_up_sums(rng: np.random.Generator) -> tuple[str, str, str]:
    """As `text_sum`, but nothing tells the operands beforehand: what they come to follows from the figures alone."""
    sums = [_operands(rng) for _ in range(rng.integers(1, 4))]
    reasoning = " ".join(f"{first}+{total - first}={total}." for first, total in sums)
    return _wording(_MADE_UP_SUMS, rng), reasoning, str(sums[-1][1])


def _numbers(rng: np.random.Generator) -> tuple[str, str, str]:
    """Some digits in words, to be written in figures: those follow from the words, whichever words stand together."""
    digits = [words.DIGITS[i] for i in rng.integers(len(words.DIGITS), size=rng.integers(2, 5))]
    said = _wording(_BETWEEN_NUMBERS, rng).join(digits)
    return _wording(_NUMBERS_IN_WORDS, rng).format(said=said), f"I read {said}.", _in_figures(digits)


def _in_figures(digits: Sequence[str]) -> str:
    return ", ".join(str(number(digit)) for digit in digits)


def _reasoning(phrase: Phrase, topic: Topic, reply: str) -> str | None:
    if topic == "sum":
        return f"I hear {phrase.slots['a']} and {phrase.slots['b']}. {_sum_in_figures(phrase)}"
    if topic == "digit":
        return _HEARD["number"].format(answer=", ".join(spotted(phrase, topic)))
    return _HEARD[topic].format(answer=reply) if topic in _HEARD else None


def _sum_in_figures(phrase: Phrase) -> str:
    return f"{number(phrase.slots['a'])}+{number(phrase.slots['b'])}={phrase.answer}."


def _stated(statement: Phrase) -> str:
    return f"I hear a {statement.slots['colour']} {statement.slots['animal']}."


def _recalled(statement: Phrase, question: Phrase, *, in_full: bool) -> Message:
    """What the statement named of the two, after a reasoning.

    After one in full, a small model learns the reply to each pair by heart, and replies to a pair that it has not met with
    anything; of what is asked for alone, every word is met.
    """
    asked, reply = question.slots["asked"], two_turn_answer(statement, question)
    if in_full:
        return _assistant(reply, f"It was a {statement.slots['colour']} {statement.slots['animal']}. They ask the {asked}.")
    return _assistant(reply, f"They ask the {asked}. It was {reply}.")


def _question(topic: Topic, rng: np.random.Generator) -> str:
    return _wording(QUESTIONS[topic], rng)


def _wording(wordings: Sequence[str], rng: np.random.Generator) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _user(text: str = "", clip: Clip | None = None) -> Message:
    if clip is None:
        return {"role": "user", "content": text}
    heard = {
        "type": "audio",
        "audio": f"../{clip.path}",
        "transcript": clip.phrase.transcript,
        "attributes": dict(clip.attributes),
    }
    return {"role": "user", "content": [heard, {"type": "text", "text": text}] if text else [heard]}


def _assistant(reply: str, reasoning: str | None) -> Message:
    if reasoning is None:
        return {"role": "assistant", "content": reply}
    return {"role": "assistant", "reasoning_content": reasoning, "content": reply}
