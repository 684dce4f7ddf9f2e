"""Shows one reply: its prompt with clips to play, its verdicts, and the judge's words."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from stepaudio_jax.errors import AudioError
from stepaudio_jax.evaluation.results import JudgeExchange, Sample
from stepaudio_jax.reports.clips import ClipPlayer
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.reports.page import MAX_CHARS, facts, folded, muted, written
from stepaudio_jax.storage import truncate
from stepaudio_jax.text import AudioPart

_MAX_DETAILS_CHARS = 1_500


def has_full_score(sample: Sample) -> bool:
    """Returns whether a reply adds all that it can to the task's headline figure."""
    return sample.headline is not None and sample.headline[0] >= sample.headline[1]


def sample_card(sample: Sample, number: int, player: ClipPlayer, *, silenced: bool = False) -> Html:
    """Returns a card with the prompt, its clips, the reply, every verdict and the judge's words.

    Args:
        sample: with a reply.
        number: of the card on the page, from 1.
        player: embeds its clips; one that cannot be read is named with the reason.
        silenced: whether the model was given silence in place of the sound.
    """
    heading = f"example-{number}"
    is_full = has_full_score(sample)
    mark, word = ("✓", "right") if is_full else ("✗", "loses points")
    if sample.headline is None:
        mark, word = "–", "not counted"
    values: dict[str, str | Html] = {}
    if sample.reasoning:
        values["Reasoning"] = written(sample.reasoning, max_chars=MAX_CHARS)
    values["Reply"] = written(sample.reply, max_chars=MAX_CHARS)
    if sample.finish_reason not in (None, "stop"):
        values["Ended by"] = sample.finish_reason or ""
    values |= _verdicts(sample)
    return element(
        "article",
        element(
            "h4",
            element("span", sample.task, class_="task"),
            " ",
            element("span", truncate(sample.id), class_="muted"),
            element("span", f"{mark} {word}", class_=f"verdict {'right' if is_full else 'wrong'}"),
            id=heading,
        ),
        muted("The model was given silence of this length.") if silenced else None,
        *_dialogue(sample, number, player),
        facts(values),
        _row(sample),
        *(_exchange(e, index) for index, e in enumerate(sample.judge, 1)),
        class_="example" if is_full else "example wrong",
        aria_labelledby=heading,
    )


def _row(sample: Sample) -> Html | None:
    """Returns the benchmark's own row, which holds the right answer, folded."""
    if not sample.data:
        return None
    row = json.dumps(sample.data, indent=1, ensure_ascii=False)
    return folded("The benchmark's row", element("pre", truncate(row, MAX_CHARS)))


def _verdicts(sample: Sample) -> dict[str, str | Html]:
    scores = sample.scores
    values: dict[str, str | Html] = {}
    if scores.strict is not None:
        strict = scores.strict
        score = "" if strict.score is None else f" ({100 * strict.score:.1f})"
        read = joined("; read as ", written(strict.answer)) if strict.answer else None
        values["Strict"] = joined(f"{strict.outcome}{score}", read)
    if scores.official is not None:
        values["Official"] = scores.official
    if scores.judged is not None:
        judged = scores.judged
        values["Judge"] = (
            f"no verdict: {judged.reason}" if judged.score is None else f"{100 * judged.score:.1f}"
        )
        if judged.details:
            details = json.dumps(judged.details, indent=1, ensure_ascii=False)
            values["Details"] = written(details, max_chars=_MAX_DETAILS_CHARS)
    return values


def _exchange(exchange: JudgeExchange, number: int) -> Html:
    asked = [
        element("p", element("span", label, class_="role"), written(text, max_chars=MAX_CHARS))
        for label, text in (("system", exchange.system), ("question", exchange.query))
        if text
    ]
    answer = (
        element("p", "No answer.", class_="muted")
        if exchange.answer is None
        else element(
            "p",
            element("span", "answer", class_="role"),
            written(exchange.answer, max_chars=MAX_CHARS),
        )
    )
    return folded(f"What the judge was asked and said ({number})", *asked, answer)


def _dialogue(sample: Sample, number: int, player: ClipPlayer) -> list[Html]:
    turns, clips = [], 0
    for message in sample.messages:
        parts: list[Html] = []
        for part in _parts(message):
            if isinstance(part, AudioPart):
                clips += 1
                parts.append(_clip(part, f"Clip {clips} of example {number}", player))
            else:
                parts.append(written(part, max_chars=MAX_CHARS))
        role = str(message.get("role", ""))
        turns.append(
            element(
                "div",
                element("span", role, class_="role"),
                *parts,
                class_="turn assistant" if role == "assistant" else "turn",
            )
        )
    return turns


def _parts(message: Mapping[str, Any]) -> Iterable[str | AudioPart]:
    """Yields the texts and clips of a message in the form of data records."""
    content = message.get("content")
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if "audio" in part:
                yield AudioPart(
                    part["audio"],
                    transcript=part.get("transcript"),
                    start_s=part.get("start_s", 0.0),
                    end_s=part.get("end_s"),
                )
            else:
                yield str(part.get("text", ""))


def _clip(part: AudioPart, label: str, player: ClipPlayer) -> Html:
    try:
        return player.play(part, label)
    except AudioError as error:
        return muted(f"A clip that cannot be played: {error}")
