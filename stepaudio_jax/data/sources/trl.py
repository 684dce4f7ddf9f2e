"""Rows of TRL: messages, prompt and completion, prompt only, preference, tools, KTO's label.

{"messages": [..], "tools": [..]}
{"prompt": [..] or "..", "completion": [..] or ".."}, and with "label": true or false
{"prompt": [..] or ".."}, with "solution", "answer" or "ground_truth" for a verifier
{"prompt": [..], "chosen": [..], "rejected": [..]}, or the dialogue in both replies

A string is a turn of the user's or the assistant's. A row of `text` alone, which a language model
goes on with, is no dialogue and refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from stepaudio_jax.data.sources.base import FormOptions, text_of, without
from stepaudio_jax.data.sources.json_values import format_json, is_empty
from stepaudio_jax.data.sources.placeholders import Clips, take_clips
from stepaudio_jax.data.sources.rows import (
    ANSWER_KEYS,
    finish_preference,
    read_answer,
    read_label,
)
from stepaudio_jax.data.sources.tools import insert_schemas
from stepaudio_jax.data.sources.turns import read_replies, read_turns
from stepaudio_jax.errors import DataError

_READ_KEYS = (
    *("messages", "prompt", "completion", "chosen", "rejected", "label", "tools", "system"),
    *ANSWER_KEYS,
)
_ADVICE = 'write a part {"type": "audio"} or one <audio> where each clip is heard'


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of TRL in the project's form.

    Raises:
        DataError: it is plain text or steps to be rated one by one; a placeholder has no clip or
            stands in an assistant's turn; a clip has no placeholder.
    """
    del options
    _check_dialogue(value, origin)
    paths, row = take_clips(value, origin)
    rest: dict[str, Any] = without(row, *_READ_KEYS)
    rest |= read_label(row, ("label",), origin) | read_answer(row, origin)
    first = next((key for key in ("messages", "prompt") if not is_empty(row.get(key))), None)
    if not is_empty(row.get("chosen")) or not is_empty(row.get("rejected")):
        return _preference(row, rest, first, paths, origin)
    if first is None:
        raise DataError(
            f"{origin}: has no 'messages' and no 'prompt' (keys given: {format_json(list(value))})"
        )
    clips = _clips(paths, origin)
    messages = _dialogue(row, first, clips, origin)
    if not is_empty(row.get("completion")):
        messages += read_replies(row["completion"], f"{origin}: 'completion'", clips)
    clips.check_all_taken(_ADVICE)
    return {**rest, "messages": messages}


def _preference(
    row: Mapping[str, Any],
    rest: Mapping[str, Any],
    first: str | None,
    paths: Sequence[str],
    origin: str,
) -> dict[str, Any]:
    """Returns the row of two replies; without a `first` key, both hold the whole dialogue."""
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if is_empty(row.get(key)):
            raise DataError(f"{origin}: has {other!r} and no {key!r}")
    clips = _clips(paths, origin)
    if first is not None:
        messages = _dialogue(row, first, clips, origin)
        clips.check_all_taken(_ADVICE)
        chosen, rejected = (
            read_replies(row[key], f"{origin}: {key!r}", clips) for key in ("chosen", "rejected")
        )
        return finish_preference({**rest, "messages": messages}, chosen, rejected, origin)
    again = _clips(paths, origin)  # each of the two dialogues has all clips
    chosen, rejected = (
        _dialogue(row, key, its_clips, origin)
        for key, its_clips in (("chosen", clips), ("rejected", again))
    )
    for its_clips in (clips, again):
        its_clips.check_all_taken(_ADVICE)
    return finish_preference(rest, chosen, rejected, origin)


def _dialogue(row: Mapping[str, Any], key: str, clips: Clips, origin: str) -> list[dict[str, Any]]:
    """Returns the turns of a key, with the row's system turn and tools."""
    read = read_turns if key in ("messages", "prompt") else read_replies
    system = text_of(row, "system", origin)
    messages = read(row[key], f"{origin}: {key!r}", clips, system=system)
    return insert_schemas(messages, row.get("tools"), origin)


def _clips(paths: Sequence[str], origin: str) -> Clips:
    # `<video>` is a word in a text here: this form names pictures in parts.
    return Clips(paths, origin, forbids_images=False)


def _check_dialogue(value: Mapping[str, Any], origin: str) -> None:
    keys = [key for key in ("messages", "prompt", "chosen") if not is_empty(value.get(key))]
    if not keys and not is_empty(value.get("text")):
        raise DataError(
            f"{origin}: has plain 'text' without turns, which is no dialogue:"
            " write it as 'messages', or, where it is what a clip says, name the clip in 'audio'"
        )
    for other in ("prompt", "completion"):
        if "messages" in keys and not is_empty(value.get(other)):
            raise DataError(
                f"{origin}: has both 'messages' and {other!r}; keep one of these as the dialogue"
            )
    if not is_empty(value.get("completions")):
        raise DataError(
            f"{origin}: has 'completions', steps that are rated one by one, which no objective"
            " here reads; write one reply as 'completion'"
        )
