"""Conversational preference files, as TRL and others have them -> the form of a dialogue with a reference reply.

{"prompt": [{"role": "user", "content": ".."}], "chosen": [{"role": "assistant", "content": ".."}], "rejected": [..]}
{"chosen": [{"role": "user", ..}, {"role": "assistant", ..}], "rejected": [the same user's turn, another reply]}
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.record import DataError

_KEYS = ("prompt", "chosen", "rejected")


def is_preference(value: Mapping[str, Any]) -> bool:
    """Whether a record has the keys of a preference and none of a dialogue."""
    return "messages" not in value and "chosen" in value


def as_dialogue(value: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The record with `messages` up to the turn to be answered, `reference_reply` (the chosen one) and `rejected_reply`.

    Raises:
        DataError: naming the origin and what does not fit.
    """
    for key in ("reference_reply", "rejected_reply"):
        if key in value:
            raise DataError(f"{origin}: has both 'chosen' and {key!r}; keep one of the two forms")
    if "rejected" not in value:
        raise DataError(f"{origin}: has 'chosen' and no 'rejected'")
    prompt = _messages(value, "prompt", origin) if "prompt" in value else None
    before, reference = _split(value, "chosen", prompt, origin)
    before_rejected, rejected = _split(value, "rejected", prompt, origin)
    if before != before_rejected:
        raise DataError(f"{origin}: 'chosen' and 'rejected' do not answer the same dialogue; give it once, as 'prompt'")
    rest = {key: item for key, item in value.items() if key not in _KEYS}
    return {**rest, "messages": before, "reference_reply": reference, "rejected_reply": rejected}


def _split(value: Mapping[str, Any], key: str, prompt: list[Any] | None, origin: str) -> tuple[list[Any], str]:
    """The dialogue before the last turn of `value[key]`, and the text of that turn."""
    turns = _messages(value, key, origin)
    last = turns[-1]
    content = last.get("content") if isinstance(last, Mapping) and last.get("role") == "assistant" else last
    if not isinstance(content, str) or (isinstance(last, str) and prompt is None):
        raise DataError(f"{origin}: {key!r} must end in an assistant's turn whose content is a string")
    before = turns[:-1]
    if prompt is None:
        return before, content
    if before:
        raise DataError(f"{origin}: {key!r} must be one turn of the assistant's, for the dialogue is in 'prompt'")
    return prompt, content


def _messages(value: Mapping[str, Any], key: str, origin: str) -> list[Any]:
    turns = value[key]
    if isinstance(turns, str) and turns:
        return [{"role": "user", "content": turns}] if key == "prompt" else [turns]
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{origin}: {key!r} must be a list of messages, or a string")
    return turns
