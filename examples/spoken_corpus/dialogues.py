"""Clips -> dialogues, in the JSON form that `stepaudio_jax.data` reads.

Questions and answers are short, for a small model spells them out byte by byte. A reasoned answer
first names what was heard.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from examples.spoken_corpus import phrases as words
from examples.spoken_corpus.phrases import SUM_RESULTS, Phrase, draw_phrase, number
from examples.spoken_corpus.sessions import ATTRIBUTES, Clip

Message = dict[str, Any]
Topic = Literal[
    "description",
    "words",
    "gender",
    "rate",
    "pitch",
    "language",
    "keyword",
    "number",
    "digit",
    "colour",
    "animal",
    "sum",
    "text_arithmetic",
]

QUESTIONS: Mapping[Topic, tuple[str, ...]] = {
    "description": (
        "What do you hear?",
        "Describe what you hear.",
        "What is in this clip?",
        "Tell me what you hear.",
    ),
    "words": (
        "What is said?",
        "Write down the words.",
        "Which words are said?",
        "What are the words?",
    ),
    "gender": (
        "Is the speaker female or male?",
        "A female or a male voice?",
        "What is the speaker's gender?",
    ),
    "rate": (
        "How fast is the speech?",
        "Is it slow, normal or fast?",
        "What is the speaking rate?",
    ),
    "pitch": ("How high is the voice?", "Is the pitch low, medium or high?", "What is the pitch?"),
    "language": ("Which language is it?", "Is it English or Mandarin?", "What language is spoken?"),
    "keyword": ("Which keyword is said?", "What is the keyword?", "Name the keyword."),
    "number": ("Which numbers are said?", "What numbers do you hear?", "Name the numbers."),
    "digit": ("Which numbers, in figures?", "What numbers? Write figures.", "Name the figures."),
    "colour": ("Which colours are said?", "What colours do you hear?", "Name the colours."),
    "animal": ("Which animals are said?", "What animals do you hear?", "Name the animals."),
    "sum": ("What is the sum?", "What is the result?", "Give the answer."),
}
_SUMS_IN_FIGURES = (
    "What is {a} plus {b}?",
    "{a}+{b}=?",
    "Add {a} and {b}.",
    "How much is {a}+{b}?",
    "Sum of {a} and {b}?",
)
_MADE_UP_SUMS = ("Make up a sum.", "Write any sum.", "Say some sum.")
_NUMBERS_IN_WORDS = ("Write {said} in figures.", "In figures: {said}.", "{said}. Which figures?")
_BETWEEN_NUMBERS = (", ", " and ")
_REASONING_TEMPLATES: Mapping[Topic, str] = {
    "gender": "I hear a {answer} voice.",
    "rate": "I hear {answer} speech.",
    "pitch": "I hear a {answer} voice.",
    "language": "I hear {answer}.",
    **dict.fromkeys(("keyword", "number", "colour", "animal"), "I hear {answer}."),
}
WORD_LISTS: Mapping[Topic, tuple[str, ...]] = {
    "keyword": words.KEYWORDS,
    "number": words.DIGITS,
    "digit": words.DIGITS,
    "colour": words.COLOURS,
    "animal": words.ANIMALS,
}
"""Topics whose answer is every word of a list that is said, in order; "digit" has them in figures."""

ACKNOWLEDGEMENT = "Okay."
"""The reply to a statement: it gives nothing of it away."""


def clip_topics(clip: Clip) -> tuple[Topic, ...]:
    """What can be asked about a clip."""
    about: list[Topic] = ["words"]
    if len(clip.attributes) == len(ATTRIBUTES):
        about.append("description")
    known: tuple[Topic, ...] = ("gender", "rate", "pitch", "language")
    about += [name for name in known if name in clip.attributes]
    about += [topic for topic in WORD_LISTS if find_listed_words(clip.phrase, topic)]
    if clip.phrase.kind == "sum":
        about.append("sum")
    return tuple(about)


def topic_answer(clip: Clip, topic: Topic) -> str:
    """The right reply to a question about a clip."""
    match topic:
        case "words":
            return clip.phrase.text
        case "description":
            return f"{', '.join(clip.attributes[name] for name in ATTRIBUTES)}: {clip.phrase.text}"
        case "keyword" | "number" | "colour" | "animal":
            return ", ".join(find_listed_words(clip.phrase, topic))
        case "digit":
            return _in_figures(find_listed_words(clip.phrase, topic))
        case "sum":
            return clip.phrase.answer
        case _:
            return clip.attributes[topic]


def find_listed_words(phrase: Phrase, topic: Topic) -> list[str]:
    """The words of a phrase that a topic of `WORD_LISTS` asks for."""
    return [word for word in phrase.transcript.split() if word in WORD_LISTS[topic]]


def clip_dialogue(
    clip: Clip, asked: Sequence[Topic], rng: np.random.Generator, *, with_reasoning: bool
) -> list[Message]:
    """A dialogue in which the clip is heard once and each question about it is a turn.

    Args:
        clip: what is heard.
        asked: of `clip_topics(clip)`, in order; "text_arithmetic" besides: sums or numbers that
        have nothing to do with the clip.
        rng: chooses the wording of the questions.
        with_reasoning: whether an answer follows a reasoning. "description" and "words" have none:
            their answer is what was heard; "text_arithmetic" always has one.
    """
    messages = []
    reasoning: str | None
    for place, topic in enumerate(asked):
        if topic == "text_arithmetic":
            question, reasoning, reply = _draw_arithmetic(rng)
        else:
            question, reply = _draw_question(topic, rng), topic_answer(clip, topic)
            reasoning = _reasoning(clip.phrase, topic, reply) if with_reasoning else None
        messages += [_user(question, clip if place == 0 else None), _assistant(reply, reasoning)]
    return messages


def clip_question(clip: Clip, topic: Topic, rng: np.random.Generator) -> list[Message]:
    """A clip and a question about it, not yet answered."""
    return [_user(_draw_question(topic, rng), clip)]


def two_turn_prompt(statement: Clip, question: Clip) -> list[Message]:
    """A spoken statement, then a spoken question about it, not yet answered: the answer is a word of the first clip."""
    return [_user("", statement), _assistant(ACKNOWLEDGEMENT, None), _user("", question)]


def two_turn_answer(statement: Phrase, question: Phrase) -> str:
    """The colour or the animal that the statement named."""
    return statement.slots[question.slots["asked"]]


def two_turn_dialogue(statement: Clip, question: Clip) -> list[Message]:
    """`two_turn_prompt` with both its answers, each after a reasoning. The first turn's is not in the prompt of the second."""
    heard, _, asked = two_turn_prompt(statement, question)
    recalled = _recall_answer(statement.phrase, question.phrase, names_both=False)
    return [
        heard,
        _assistant(ACKNOWLEDGEMENT, _statement_reasoning(statement.phrase)),
        asked,
        recalled,
    ]


def recall_dialogue(first: Clip, second: Clip, *, asks_first: bool) -> list[Message]:
    """Two clips in two turns, then the words of one of them."""
    return [
        _user("", first),
        {**_assistant(ACKNOWLEDGEMENT, None), "loss": False},
        _user("What was said first?" if asks_first else "What is said now?", second),
        _assistant((first if asks_first else second).phrase.text, None),
    ]


def draw_text_sum(rng: np.random.Generator, *, held_out: bool) -> tuple[str, str, str]:
    """A sum in figures: (question, reasoning, reply).

    Any one-digit operands with a sum in `SUM_RESULTS`; a fifth of the pairs of wording and first
    operand are held out.
    """
    while True:
        first, total = _operands(rng)
        wording = int(rng.integers(len(_SUMS_IN_FIGURES)))
        if ((wording + first) % len(_SUMS_IN_FIGURES) == 0) == held_out:
            question = _SUMS_IN_FIGURES[wording].format(a=first, b=total - first)
            return question, f"{first}+{total - first}={total}.", str(total)


def draw_text_dialogue(
    rng: np.random.Generator, *, held_out: bool, names_both: bool
) -> list[Message]:
    """A dialogue without sound: sums or numbers, a keyword in a sentence, or a statement and a question about it.

    Args:
        rng: where the draws come from.
        held_out: the split.
        names_both: whether the reasoning about a statement names both its colour and its animal,
            not what is asked for alone.
    """
    form = rng.integers(6)
    if form == 0:
        question, reasoning, reply = draw_text_sum(rng, held_out=held_out)
        return [_user(question), _assistant(reply, reasoning)]
    if form == 1:
        phrase = draw_phrase("sum", rng, held_out=held_out)
        return [_user(phrase.text), _assistant(phrase.answer, _sum_in_figures(phrase))]
    if form == 2:
        phrase = draw_phrase("keyword", rng, held_out=held_out)
        keyword = phrase.slots["keyword"]
        return [
            _user(f"{_draw_question('keyword', rng)} {phrase.text}"),
            _assistant(keyword, f"I read {keyword}."),
        ]
    if form < 5:
        question, reasoning, reply = _draw_made_up_sums(rng) if form == 3 else _draw_numbers(rng)
        return [_user(question), _assistant(reply, reasoning)]
    statement, question_ = (
        draw_phrase("statement", rng, held_out=held_out),
        draw_phrase("question", rng, held_out=held_out),
    )
    return [
        _user(statement.text),
        {**_assistant(ACKNOWLEDGEMENT, None), "loss": False},
        _user(question_.text),
        _recall_answer(statement, question_, names_both=names_both),
    ]


def _operands(rng: np.random.Generator) -> tuple[int, int]:
    """The first of two one-digit operands, and their sum, each sum in `SUM_RESULTS` equally often."""
    total = SUM_RESULTS[rng.integers(len(SUM_RESULTS))]
    return int(rng.integers(max(1, total - 9), min(9, total - 1) + 1)), total


def _draw_arithmetic(rng: np.random.Generator) -> tuple[str, str, str]:
    """(question, reasoning, reply): a sum in figures, sums to make up, or numbers to write in figures."""
    form = rng.integers(3)
    return (
        draw_text_sum(rng, held_out=False)
        if form == 0
        else _draw_made_up_sums(rng)
        if form == 1
        else _draw_numbers(rng)
    )


def _draw_made_up_sums(rng: np.random.Generator) -> tuple[str, str, str]:
    """As `draw_text_sum`, but nothing tells the operands beforehand: what they come to follows from the figures alone."""
    sums = [_operands(rng) for _ in range(rng.integers(1, 4))]
    reasoning = " ".join(f"{first}+{total - first}={total}." for first, total in sums)
    return _draw_wording(_MADE_UP_SUMS, rng), reasoning, str(sums[-1][1])


def _draw_numbers(rng: np.random.Generator) -> tuple[str, str, str]:
    """Some digits in words, to be written in figures: those follow from the words, whichever words stand together."""
    digits = [words.DIGITS[i] for i in rng.integers(len(words.DIGITS), size=rng.integers(2, 5))]
    said = _draw_wording(_BETWEEN_NUMBERS, rng).join(digits)
    return (
        _draw_wording(_NUMBERS_IN_WORDS, rng).format(said=said),
        f"I read {said}.",
        _in_figures(digits),
    )


def _in_figures(digits: Sequence[str]) -> str:
    return ", ".join(str(number(digit)) for digit in digits)


def _reasoning(phrase: Phrase, topic: Topic, reply: str) -> str | None:
    if topic == "sum":
        return f"I hear {phrase.slots['a']} and {phrase.slots['b']}. {_sum_in_figures(phrase)}"
    if topic == "digit":
        return _REASONING_TEMPLATES["number"].format(
            answer=", ".join(find_listed_words(phrase, topic))
        )
    return (
        _REASONING_TEMPLATES[topic].format(answer=reply) if topic in _REASONING_TEMPLATES else None
    )


def _sum_in_figures(phrase: Phrase) -> str:
    return f"{number(phrase.slots['a'])}+{number(phrase.slots['b'])}={phrase.answer}."


def _statement_reasoning(statement: Phrase) -> str:
    return f"I hear a {statement.slots['colour']} {statement.slots['animal']}."


def _recall_answer(statement: Phrase, question: Phrase, *, names_both: bool) -> Message:
    """What the statement named of the two, after a reasoning.

    After one in full, a small model learns the reply to each pair by heart, and replies to a pair
    that it has not met with anything; of what is asked for alone, every word is met.
    """
    asked, reply = question.slots["asked"], two_turn_answer(statement, question)
    if names_both:
        return _assistant(
            reply,
            f"It was a {statement.slots['colour']} {statement.slots['animal']}. They ask the {asked}.",
        )
    return _assistant(reply, f"They ask the {asked}. It was {reply}.")


def _draw_question(topic: Topic, rng: np.random.Generator) -> str:
    return _draw_wording(QUESTIONS[topic], rng)


def _draw_wording(wordings: Sequence[str], rng: np.random.Generator) -> str:
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
