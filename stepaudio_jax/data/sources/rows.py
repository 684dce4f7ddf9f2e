"""Puts a row in the project's form together from what an adapter has read of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources.base import answer_of
from stepaudio_jax.data.sources.json_values import format_json, is_empty
from stepaudio_jax.data.sources.preferences import preference_to_dialogue
from stepaudio_jax.errors import DataError

ANSWER_KEYS = ("solution", "ground_truth")
Messages = Sequence[dict[str, Any]]


def finish_preference(
    row: Mapping[str, Any], chosen: Messages, rejected: Messages, origin: str
) -> dict[str, Any]:
    """Returns the row of a dialogue and the two replies to it.

    Args:
        row: with `messages`, which end before the replies; without messages, both replies hold
            the whole dialogue.
        chosen: the better reply, a turn of the assistant's.
        rejected: the worse one.
        origin: the start of an error.

    Raises:
        DataError: as of `preferences.preference_to_dialogue`.
    """
    return preference_to_dialogue({**row, "chosen": chosen, "rejected": rejected}, origin)


def read_answer(value: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Returns `{"answer": ..}`, what a verifier compares with; {} where the row has none.

    Raises:
        DataError: it is neither a string nor a number, or several keys have one.
    """
    answers = {key: answer_of(value.get(key), f"{origin}: {key!r}") for key in ANSWER_KEYS}
    answers = {key: answer for key, answer in answers.items() if answer is not None}
    if len(answers) > 1 or (answers and not is_empty(value.get("answer"))):
        keys = [*answers, *(["answer"] if not is_empty(value.get("answer")) else [])]
        raise DataError(f"{origin}: has {' and '.join(map(repr, keys))}; keep one as 'answer'")
    return {"answer": next(iter(answers.values()))} if answers else {}


def read_label(value: Mapping[str, Any], keys: Sequence[str], origin: str) -> dict[str, bool]:
    """Returns `{"label": ..}`: whether the last reply is a good one (KTO); {} where it is not said.

    Raises:
        DataError: the label is neither true nor false.
    """
    for key in keys:
        label = value.get(key)
        if label is None or (is_empty(label) and label is not False):
            continue
        if isinstance(label, bool):
            return {"label": label}
        if isinstance(label, str) and label.strip().lower() in ("true", "false"):
            return {"label": label.strip().lower() == "true"}
        raise DataError(
            f"{origin}: {key!r} says whether the last reply is a good one, true or false, got"
            f" {format_json(label)}; write what a verifier compares with as 'answer'"
        )
    return {}
