"""Builds dialogues about clips, as the JSON records that `stepaudio_jax.data` reads.

Questions and answers are short, since a small model writes them byte by byte. Reasoning before an
answer names what was heard.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from examples.spoken_corpus.phrases import (
    ANIMALS,
    COLOURS,
    DIGITS,
    KEYWORDS,
    SUM_RESULTS,
    Phrase,
    draw_phrase,
    number,
)
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
_NUMBERS_IN_WORDS = (
    "Write {numbers} in figures.",
    "In figures: {numbers}.",
    "{numbers}. Which figures?",
)
_NUMBER_SEPARATORS = (", ", " and ")
_REASONING_TEMPLATES: Mapping[Topic, str] = {
    "gender": "I hear a {answer} voice.",
    "rate": "I hear {answer} speech.",
    "pitch": "I hear a {answer} voice.",
    "language": "I hear {answer}.",
    **dict.fromkeys(("keyword", "number", "colour", "animal"), "I hear {answer}."),
}
WORD_LISTS: Mapping[Topic, tuple[str, ...]] = {
    "keyword": KEYWORDS,
    "number": DIGITS,
    "digit": DIGITS,
    "colour": COLOURS,
    "animal": ANIMALS,
}
"""Topics whose answer is every spoken word of a list, in order; "digit" writes them in figures."""

ACKNOWLEDGEMENT = "Okay."
"""The reply to a statement; it reveals nothing of what was said."""


def clip_topics(clip: Clip) -> tuple[Topic, ...]:
    """Returns the topics that a question about a clip can have."""
    topics: list[Topic] = ["words"]
    if len(clip.attributes) == len(ATTRIBUTES):
        topics.append("description")
    attributes: tuple[Topic, ...] = ("gender", "rate", "pitch", "language")
    topics += [name for name in attributes if name in clip.attributes]
    topics += [topic for topic in WORD_LISTS if find_listed_words(clip.phrase, topic)]
    if clip.phrase.kind == "sum":
        topics.append("sum")
    return tuple(topics)


def topic_answer(clip: Clip, topic: Topic) -> str:
    """Returns the correct reply to a question about a clip."""
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
    """Returns the words of a phrase that a topic of `WORD_LISTS` asks for."""
    return [word for word in phrase.transcript.split() if word in WORD_LISTS[topic]]


def clip_dialogue(
    clip: Clip, topics: Sequence[Topic], rng: np.random.Generator, *, with_reasoning: bool
) -> list[Message]:
    """Builds a dialogue with a turn for each question about a clip, which is in the first turn.

    Args:
        clip: the clip.
        topics: topics of `clip_topics(clip)`, in order; also "text_arithmetic", a question on sums
            or numbers that is unrelated to the clip.
        rng: the source of the random wordings.
        with_reasoning: whether reasoning precedes an answer. "description" and "words" never have
            it, since their answers are what was heard; "text_arithmetic" always has it.
    """
    messages = []
    reasoning: str | None
    for turn, topic in enumerate(topics):
        if topic == "text_arithmetic":
            question, reasoning, reply = _draw_arithmetic(rng)
        else:
            question, reply = _draw_question(topic, rng), topic_answer(clip, topic)
            reasoning = _reasoning(clip.phrase, topic, reply) if with_reasoning else None
        messages += [_user(question, clip if turn == 0 else None), _assistant(reply, reasoning)]
    return messages


def clip_question(clip: Clip, topic: Topic, rng: np.random.Generator) -> list[Message]:
    """Builds an unanswered dialogue: a clip and a question about it."""
    return [_user(_draw_question(topic, rng), clip)]


def two_turn_prompt(statement: Clip, question: Clip) -> list[Message]:
    """Builds an unanswered dialogue: a spoken statement, then a spoken question about it."""
    return [_user("", statement), _assistant(ACKNOWLEDGEMENT, None), _user("", question)]


def two_turn_answer(statement: Phrase, question: Phrase) -> str:
    """Returns the colour or the animal of the statement that the question asks for."""
    return statement.slots[question.slots["asked"]]


def two_turn_dialogue(statement: Clip, question: Clip) -> list[Message]:
    """Builds the dialogue of `two_turn_prompt` with both answers, each after its reasoning.

    Past reasoning is not part of a prompt, so the second answer cannot be copied from the first.
    """
    statement_turn, _, question_turn = two_turn_prompt(statement, question)
    return [
        statement_turn,
        _assistant(ACKNOWLEDGEMENT, _statement_reasoning(statement.phrase)),
        question_turn,
        _recall_answer(statement.phrase, question.phrase, names_both=False),
    ]


def recall_dialogue(first: Clip, second: Clip, *, asks_first: bool) -> list[Message]:
    """Builds a dialogue of two clips in two turns that ends in the words of one of them."""
    return [
        _user("", first),
        {**_assistant(ACKNOWLEDGEMENT, None), "loss": False},
        _user("What was said first?" if asks_first else "What is said now?", second),
        _assistant((first if asks_first else second).phrase.text, None),
    ]


def draw_text_sum(rng: np.random.Generator, *, held_out: bool) -> tuple[str, str, str]:
    """Draws a sum of two digits in figures, with a result in `SUM_RESULTS`.

    A fifth of the pairs (wording, first operand) is held out.

    Returns:
        (question, reasoning, reply).
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
    """Draws a dialogue without audio.

    It has sums, numbers, a keyword in a sentence, or a statement and a question about it.

    Args:
        rng: the source of the random draws.
        held_out: whether the dialogue belongs to the validation split.
        names_both: whether the reasoning about a statement names both its colour and its animal;
            else it names only the one that is asked for.
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
    statement = draw_phrase("statement", rng, held_out=held_out)
    asking = draw_phrase("question", rng, held_out=held_out)
    return [
        _user(statement.text),
        {**_assistant(ACKNOWLEDGEMENT, None), "loss": False},
        _user(asking.text),
        _recall_answer(statement, asking, names_both=names_both),
    ]


def _operands(rng: np.random.Generator) -> tuple[int, int]:
    """Draws a sum of `SUM_RESULTS`, uniformly, and the first of its two one-digit operands."""
    total = SUM_RESULTS[rng.integers(len(SUM_RESULTS))]
    return int(rng.integers(max(1, total - 9), min(9, total - 1) + 1)), total


def _draw_arithmetic(rng: np.random.Generator) -> tuple[str, str, str]:
    """Draws (question, reasoning, reply) of a sum, of invented sums, or of numbers in words."""
    form = rng.integers(3)
    if form == 0:
        return draw_text_sum(rng, held_out=False)
    return _draw_made_up_sums(rng) if form == 1 else _draw_numbers(rng)


def _draw_made_up_sums(rng: np.random.Generator) -> tuple[str, str, str]:
    """Draws (question, reasoning, reply) of one to three sums that the model invents.

    The question does not contain the operands, so the result follows from the reasoning alone.
    """
    sums = [_operands(rng) for _ in range(rng.integers(1, 4))]
    reasoning = " ".join(f"{first}+{total - first}={total}." for first, total in sums)
    return _draw_wording(_MADE_UP_SUMS, rng), reasoning, str(sums[-1][1])


def _draw_numbers(rng: np.random.Generator) -> tuple[str, str, str]:
    """Draws (question, reasoning, reply) of two to four digits in words, to write in figures."""
    digits = [DIGITS[i] for i in rng.integers(len(DIGITS), size=rng.integers(2, 5))]
    numbers = _draw_wording(_NUMBER_SEPARATORS, rng).join(digits)
    return (
        _draw_wording(_NUMBERS_IN_WORDS, rng).format(numbers=numbers),
        f"I read {numbers}.",
        _in_figures(digits),
    )


def _in_figures(digits: Sequence[str]) -> str:
    """Writes digits in figures: ["one", "two"] -> "1, 2"."""
    return ", ".join(str(number(digit)) for digit in digits)


def _reasoning(phrase: Phrase, topic: Topic, reply: str) -> str | None:
    """Returns the reasoning before a reply; None for topics without reasoning."""
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
    """Writes a spoken sum in figures: "3+4=7."."""
    return f"{number(phrase.slots['a'])}+{number(phrase.slots['b'])}={phrase.answer}."


def _statement_reasoning(statement: Phrase) -> str:
    return f"I hear a {statement.slots['colour']} {statement.slots['animal']}."


def _recall_answer(statement: Phrase, question: Phrase, *, names_both: bool) -> Message:
    """Builds the answer to a question about a statement, after its reasoning.

    With reasoning that names both, a small model memorizes the reply to each pair of colour and
    animal and fails on new pairs. With only the word that is asked for, training has every word.
    """
    asked, reply = question.slots["asked"], two_turn_answer(statement, question)
    if names_both:
        pair = f"{statement.slots['colour']} {statement.slots['animal']}"
        return _assistant(reply, f"It was a {pair}. They ask the {asked}.")
    return _assistant(reply, f"They ask the {asked}. It was {reply}.")


def _draw_question(topic: Topic, rng: np.random.Generator) -> str:
    return _draw_wording(QUESTIONS[topic], rng)


def _draw_wording(wordings: Sequence[str], rng: np.random.Generator) -> str:
    return wordings[int(rng.integers(len(wordings)))]


def _user(text: str = "", clip: Clip | None = None) -> Message:
    """Builds a user turn of a clip, a text, or both."""
    if clip is None:
        return {"role": "user", "content": text}
    audio = {
        "type": "audio",
        "audio": f"../{clip.path}",
        "transcript": clip.phrase.transcript,
        "attributes": dict(clip.attributes),
    }
    return {"role": "user", "content": [audio, {"type": "text", "text": text}] if text else [audio]}


def _assistant(reply: str, reasoning: str | None) -> Message:
    """Builds an assistant turn."""
    if reasoning is None:
        return {"role": "assistant", "content": reply}
    return {"role": "assistant", "reasoning_content": reasoning, "content": reply}
