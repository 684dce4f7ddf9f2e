"""Shows an evaluation in HTML: the table of tasks with their intervals, and examples to hear."""

import base64
import io
from collections.abc import Iterable, Sequence

import soundfile

from stepaudio_jax.audio import SAMPLE_RATE, load_audio
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.evaluation.grading import Answer, Results, TaskScore, tabulate
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.text import AudioPart, Message

_MAX_PLAYED_SECONDS = 20  # 0.85 MB in the page
_MAX_UNFOLDED_CHARS = 400


def select_examples(
    answers: Iterable[Answer], *, per_task: int = 3, wrong_per_task: int = 1
) -> list[Answer]:
    """Selects some answers of each task, in order.

    Args:
        answers: an evaluation's answers.
        per_task: how many, spread evenly from first to last, right or wrong.
        wrong_per_task: how many of the first wrong answers besides.
    """
    tasks: dict[str, list[Answer]] = {}
    for answer in answers:
        tasks.setdefault(answer.question.source, []).append(answer)
    selected = []
    for task_answers in tasks.values():
        count = min(per_task, len(task_answers))
        indices = {index * len(task_answers) // count for index in range(count)}
        wrong = [
            index
            for index, answer in enumerate(task_answers)
            if not answer.correct and index not in indices
        ]
        indices.update(wrong[:wrong_per_task])
        selected += [task_answers[index] for index in sorted(indices)]
    return selected


def example_card(
    answer: Answer, number: int, *, channel: AudioChannel = DataConfig.channel
) -> Html:
    """Returns a card with the dialogue, a player for each clip, and the expected and given answer.

    Args:
        answer: one of an evaluation's answers.
        number: of the example on the page, from 1.
        channel: which channel of a multichannel clip the model was given and the player plays.

    Raises:
        AudioError: a clip cannot be read.
    """
    verdict = "right" if answer.correct else "wrong"
    facts = [
        element("dt", "Expected"),
        element("dd", _text(answer.expected)),
        element("dt", "Reasoning"),
        element("dd", _text(answer.parsed.reasoning)),
        element("dt", "Reply"),
        element("dd", _text(answer.parsed.reply)),
    ]
    if answer.parsed.problems:
        facts += [
            element("dt", "Malformed"),
            element("dd", ", ".join(answer.parsed.problems).replace("_", " ")),
        ]
    heading = f"example-{number}"
    return element(
        "article",
        element(
            "h4",
            element("span", answer.question.source, class_="task"),
            " ",
            element("span", answer.question.id, class_="muted"),
            element(
                "span", f"{'✓' if answer.correct else '✗'} {verdict}", class_=f"verdict {verdict}"
            ),
            id=heading,
        ),
        *_dialogue(answer.question.messages, number, channel),
        element("dl", *facts),
        class_=f"example {verdict}",
        aria_labelledby=heading,
    )


def _dialogue(messages: Sequence[Message], number: int, channel: AudioChannel) -> list[Html]:
    turns, clips = [], 0
    for message in messages:
        parts = []
        for part in message.parts:
            if isinstance(part, AudioPart):
                clips += 1
                parts.append(_player(part, f"Clip {clips} of example {number}", channel))
            else:
                parts.append(_text(part.text))
        turns.append(
            element(
                "div",
                element("span", message.role, class_="role"),
                *parts,
                class_=f"turn {message.role}",
            )
        )
    return turns


def _player(part: AudioPart, label: str, channel: AudioChannel) -> Html:
    """Returns a player of the clip as the model gets it: mono, 16 kHz."""
    # Of the two length conventions "vllm" accepts the shortest clips.
    waveform = load_audio(part.path, length_convention="vllm", channel=channel)
    duration_s = len(waveform) / SAMPLE_RATE
    if duration_s > _MAX_PLAYED_SECONDS:
        return element(
            "p",
            f"A clip of {duration_s:.1f} s, too long for this page: {part.path}",
            class_="muted",
        )
    wav = io.BytesIO()
    soundfile.write(wav, waveform, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    source = "data:audio/wav;base64," + base64.b64encode(wav.getvalue()).decode()
    said = (
        element("p", "Said: ", _text(part.transcript), class_="transcript")
        if part.transcript
        else None
    )
    return element(
        "div",
        element("audio", src=source, controls=True, preload="metadata", aria_label=label),
        said,
    )


def _text(text: str) -> Html:
    """Returns a text unchanged, marked off from the page's own words; a long one is folded."""
    if not text.strip():
        return element("span", "(empty)", class_="muted")
    content = element("span", text, class_="written", dir="auto")
    if len(text) <= _MAX_UNFOLDED_CHARS:
        return content
    return element(
        "details", element("summary", f"{text[:80]} .. ({len(text)} characters)"), content
    )


_WIDTH, _HEIGHT, _MARGIN = 180, 20, 6


def results_table(results: Results) -> Html:
    """Returns the table of an evaluation, a picture of each interval, and notes."""
    table = tabulate(results)
    header = element(
        "tr",
        *(element("th", cell, scope="col") for cell in table.header),
        element("th", "0 to 100 %", scope="col", class_="picture"),
    )
    rows = []
    for (task, *values), score in zip(table.rows, results.after.values(), strict=True):
        silenced = (results.silenced or {}).get(score.task)
        cells = [element("td", value) for value in values]
        picture = element("td", _picture(score, silenced), class_="picture")
        rows.append(element("tr", element("th", task, scope="row"), *cells, picture))
    ring = ", the ring after with the audio silenced" if results.silenced is not None else ""
    explanation = (
        f"In the picture the dot is after, the bar its 95 % interval, the tick chance{ring}."
    )
    body = element("table", element("thead", header), element("tbody", *rows), class_="results")
    notes = (element("p", note, class_="muted") for note in (explanation, *table.notes))
    return joined(
        element(
            "div", body, class_="scroll", tabindex=0, role="region", aria_label="Results by task"
        ),
        *notes,
    )


def _picture(score: TaskScore, silenced: TaskScore | None) -> Html:
    """Draws accuracy, interval, chance and accuracy without audio on a line from 0 to 1.

    The cells beside it have the same numbers, so it is hidden from screen readers.
    """
    middle = _HEIGHT / 2
    ring = None
    if silenced is not None:
        ring = element("circle", cx=_place(silenced.accuracy), cy=middle, r=3.6, class_="ring")
    return element(
        "svg",
        element("line", x1=_place(0), x2=_place(1), y1=middle, y2=middle, class_="grid"),
        element(
            "line",
            x1=_place(score.chance),
            x2=_place(score.chance),
            y1=3,
            y2=_HEIGHT - 3,
            class_="chance",
        ),
        element(
            "line",
            x1=_place(score.interval.low),
            x2=_place(score.interval.high),
            y1=middle,
            y2=middle,
            class_="interval",
        ),
        ring,
        element("circle", cx=_place(score.accuracy), cy=middle, r=3.6, class_="dot"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        width=_WIDTH,
        height=_HEIGHT,
        aria_hidden="true",
    )


def _place(share: float) -> float:
    return round(_MARGIN + share * (_WIDTH - 2 * _MARGIN), 1)
