"""The table of an evaluation in HTML, each task with a picture of its interval."""

import base64
import io
from collections.abc import Iterable, Sequence

import soundfile

from stepaudio_jax.audio import SAMPLE_RATE, load_audio
from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.evaluation.grading import Answer, Results, TaskScore, tabulate
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.text import AudioPart, Message

# Examples of an evaluation to look at and to listen to.

_MAX_PLAYED_SECONDS = 20  # 0.85 MB in the page
_MAX_UNFOLDED_CHARS = 400  # characters of a text that is not folded


def select_examples(
    answers: Iterable[Answer], *, per_task: int = 3, wrong_per_task: int = 1
) -> list[Answer]:
    """Some answers of each task, in order.

    Args:
        answers: of an evaluation.
        per_task: chosen evenly from first to last, right or wrong, so that they show the model as
        it is.
        wrong_per_task: the first wrong ones beside those, so that its mistakes can be studied.
    """
    tasks: dict[str, list[Answer]] = {}
    for answer in answers:
        tasks.setdefault(answer.question.source, []).append(answer)
    chosen = []
    for of_task in tasks.values():
        count = min(per_task, len(of_task))
        indices = {index * len(of_task) // count for index in range(count)}
        wrong = [
            index
            for index, answer in enumerate(of_task)
            if not answer.correct and index not in indices
        ]
        chosen += [of_task[index] for index in sorted(indices.union(wrong[:wrong_per_task]))]
    return chosen


def example_card(
    answer: Answer, number: int, *, channel: AudioChannel = DataConfig.channel
) -> Html:
    """One example: its dialogue with players for its clips, what was expected, thought and answered, right or wrong.

    Args:
        answer: of an evaluation.
        number: of the example on the page, from 1.
        channel: what the model heard of a clip with several channels, and the player plays.

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
    """Returns a player of the clip as the model hears it: one channel at 16 kHz."""
    # Of the two conventions, "vllm" is the one that lets the shortest clips pass.
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
    """A text as it stands, its beginning and end told from the page's; a long one is folded."""
    if not text.strip():
        return element("span", "(empty)", class_="muted")
    whole = element("span", text, class_="written", dir="auto")
    if len(text) <= _MAX_UNFOLDED_CHARS:
        return whole
    return element("details", element("summary", f"{text[:80]} .. ({len(text)} characters)"), whole)


_WIDTH, _HEIGHT, _MARGIN = 180, 20, 6


def results_table(results: Results) -> Html:
    """The table with its notes."""
    table = tabulate(results)
    header = element(
        "tr",
        *(element("th", cell, scope="col") for cell in table.header),
        element("th", "0 to 100 %", scope="col", class_="picture"),
    )
    rows = []
    for (task, *figures), score in zip(table.rows, results.after.values(), strict=True):
        silenced = (results.silenced or {}).get(score.task)
        cells = [element("td", figure) for figure in figures]
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
    """Where accuracy, interval, chance and silenced accuracy lie; the cells beside it say the same in figures."""
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
