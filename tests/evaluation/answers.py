"""Answers made by hand."""

from stepaudio_jax.data import Record
from stepaudio_jax.evaluation import Answer
from stepaudio_jax.text import AudioPart, Message, ParsedReply, TextPart


def answer(
    expected,
    reply,
    *,
    task="pitch",
    problems=(),
    reasoning="I hear it.",
    clip=None,
    question="Which?",
    number=0,
):
    """One answer to a question of `task`, about `clip` where one is given."""
    parts = (TextPart(question),) if clip is None else (AudioPart(str(clip)), TextPart(question))
    record = Record(
        id=f"{task}-{number}",
        messages=(Message("user", parts),),
        source=task,
        origin="f.jsonl:1",
        answer=expected,
    )
    return Answer(record, expected, ParsedReply(reasoning, reply, tuple(problems)))


def answers(task, *, n, correct, values=("a", "b"), malformed=0):
    """Returns `n` answers: the first `correct` are right, the last `malformed` have no form.

    Their expected values take turns.
    """
    made = []
    for index in range(n):
        expected = values[index % len(values)]
        problems = ("not_ended",) if index >= n - malformed else ()
        made.append(
            answer(
                expected,
                expected if index < correct else "?",
                task=task,
                problems=problems,
                number=index,
            )
        )
    return made
