"""Rows of TRL: messages, prompt and completion, prompt only, preference, tools, KTO's label.

{"messages": [..], "tools": [..]}
{"prompt": [..] or "..", "completion": [..] or ".."}, and with "label": true or false
{"prompt": [..] or ".."}, with "solution", "answer" or "ground_truth" for a verifier
{"prompt": [..], "chosen": [..], "rejected": [..]}, or the dialogue in both replies

A string is a turn of the user's or the assistant's. A row of `text` alone, which a language model
goes on with, is no dialogue and refused.
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources.base import FormOptions, answer_of, text_of, without
from stepaudio_jax.data.sources.json_values import format_json, is_empty
from stepaudio_jax.data.sources.placeholders import Clips, take_clips
from stepaudio_jax.data.sources.rows import finish_dialogue, finish_preference, read_label
from stepaudio_jax.data.sources.turns import read_replies, read_turns
from stepaudio_jax.errors import DataError

_ANSWER_KEYS = ("solution", "ground_truth")
_READ_KEYS = (
    *("messages", "prompt", "completion", "chosen", "rejected", "label", "tools", "system"),
    *_ANSWER_KEYS,
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
    found, row = take_clips(value, origin)
    rest: dict[str, Any] = without(row, *_READ_KEYS)
    rest |= read_label(row, ("label",), origin) | _answer(row, origin)
    system, tools = text_of(row, "system", origin), row.get("tools")

    def read(key: str, clips: Clips) -> list[dict[str, Any]]:
        read_as = read_turns if key in ("messages", "prompt") else read_replies
        return read_as(row[key], f"{origin}: {key!r}", clips)

    def finish(messages: list[dict[str, Any]], clips: Clips, *, is_last: bool) -> dict[str, Any]:
        if is_last:
            clips.check_all_taken(_ADVICE)
        return finish_dialogue(rest, messages, origin, clips, system=system, tools=tools)

    clips = Clips(found, origin, forbids_images=False)
    has_preference = "chosen" in row or "rejected" in row
    first = next((key for key in ("messages", "prompt") if not is_empty(row.get(key))), None)
    if not has_preference:
        if first is None:
            raise DataError(
                f"{origin}: has no 'messages' and no 'prompt' (keys given:"
                f" {format_json(list(value))})"
            )
        messages = read(first, clips)
        if not is_empty(row.get("completion")):
            messages += read("completion", clips)
        return finish(messages, clips, is_last=True)
    for key, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if is_empty(row.get(key)):
            raise DataError(f"{origin}: has {other!r} and no {key!r}")
    if first is not None:
        result = finish(read(first, clips), clips, is_last=True)
        return finish_preference(result, read("chosen", clips), read("rejected", clips), origin)
    again = Clips(found, origin, forbids_images=False)  # both replies hold the whole dialogue
    chosen = finish(read("chosen", clips), clips, is_last=True)["messages"]
    rejected = finish(read("rejected", again), again, is_last=True)["messages"]
    return finish_preference(rest, chosen, rejected, origin)


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


def _answer(row: Mapping[str, Any], origin: str) -> dict[str, Any]:
    given = {key: answer_of(row.get(key), f"{origin}: {key!r}") for key in _ANSWER_KEYS}
    given = {key: answer for key, answer in given.items() if answer is not None}
    if len(given) > 1 or (given and not is_empty(row.get("answer"))):
        keys = [*given, *(["answer"] if not is_empty(row.get("answer")) else [])]
        raise DataError(f"{origin}: has {' and '.join(map(repr, keys))}; keep one as 'answer'")
    return {"answer": next(iter(given.values()))} if given else {}
