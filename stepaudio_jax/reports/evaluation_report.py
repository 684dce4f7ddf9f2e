"""Shows an evaluation in HTML: the table of tasks with their intervals, and examples to hear."""

from collections.abc import Iterable, Sequence

from stepaudio_jax.config import AudioChannel, DataConfig
from stepaudio_jax.evaluation.grading import Answer, Results, tabulate
from stepaudio_jax.reports.clips import ClipPlayer
from stepaudio_jax.reports.html import Html, element, joined
from stepaudio_jax.reports.interval_picture import interval_picture
from stepaudio_jax.reports.page import scrolling, written
from stepaudio_jax.text import AudioPart, Message


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
        element("dd", written(answer.expected)),
        element("dt", "Reasoning"),
        element("dd", written(answer.parsed.reasoning)),
        element("dt", "Reply"),
        element("dd", written(answer.parsed.reply)),
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
        *_dialogue(answer.question.messages, number, ClipPlayer(channel)),
        element("dl", *facts),
        class_=f"example {verdict}",
        aria_labelledby=heading,
    )


def _dialogue(messages: Sequence[Message], number: int, player: ClipPlayer) -> list[Html]:
    turns, clips = [], 0
    for message in messages:
        parts = []
        for part in message.parts:
            if isinstance(part, AudioPart):
                clips += 1
                parts.append(player.play(part, f"Clip {clips} of example {number}"))
            else:
                parts.append(written(part.text))
        turns.append(
            element(
                "div",
                element("span", message.role, class_="role"),
                *parts,
                class_=f"turn {message.role}",
            )
        )
    return turns


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
        ring = None if silenced is None else silenced.accuracy
        drawn = interval_picture(score.accuracy, score.interval, ticks=(score.chance,), ring=ring)
        picture = element("td", drawn, class_="picture")
        rows.append(element("tr", element("th", task, scope="row"), *cells, picture))
    silence = ", the ring after with the audio silenced" if results.silenced is not None else ""
    explanation = (
        f"In the picture the dot is after, the bar its 95 % interval, the tick chance{silence}."
    )
    body = element("table", element("thead", header), element("tbody", *rows), class_="results")
    notes = (element("p", note, class_="muted") for note in (explanation, *table.notes))
    return joined(scrolling(body, "Results by task"), *notes)
