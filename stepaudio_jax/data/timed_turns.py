"""Where a dialogue about a recording can be split: between its turns, or between its segments."""

import itertools
from collections.abc import Sequence

from stepaudio_jax.text.dialogue import Message
from stepaudio_jax.text.pieces import find_piece_ends

_OPENING_ROLES = ("system", "tool_json_schemas")


def num_opening_turns(messages: Sequence[Message]) -> int:
    """Returns how many turns open a dialogue (instructions, tools), and so each part of it."""
    return sum(1 for _ in itertools.takewhile(lambda turn: turn.role in _OPENING_ROLES, messages))


def turn_groups(messages: Sequence[Message]) -> list[range]:
    """Returns the turns behind the opening ones in groups between which a dialogue can be split.

    All of its clips must be parts of one file, in order. A group then begins with a user's turn
    that hears a later part than those before, just after a reply; and has a reply in the loss.
    """
    first = num_opening_turns(messages)
    clips = [clip for message in messages for clip in message.audio]
    starts = [clip.start_s for clip in clips]
    if len({clip.path for clip in clips}) > 1 or starts != sorted(starts):
        return [range(first, len(messages))]
    groups: list[range] = []
    heard_s: float | None = None
    for index in range(first, len(messages)):
        clips_of_turn = messages[index].audio
        if not clips_of_turn:
            continue
        is_later = heard_s is not None and clips_of_turn[0].start_s > heard_s
        asks = messages[index].role == "user" and messages[index - 1].role == "assistant"
        if is_later and asks and _has_loss(messages[first:index]):
            groups.append(range(first, index))
            first = index
        heard_s = clips_of_turn[-1].start_s
    if groups and not _has_loss(messages[first:]):
        first = groups.pop().start
    return [*groups, range(first, len(messages))]


def segments_obstacle(messages: Sequence[Message]) -> str | None:
    """Returns why a dialogue cannot be split between the segments of its clip; None if it can.

    It can where it has one clip and one reply, which is what the texts of the segments say.
    """
    clips = [clip for message in messages for clip in message.audio]
    replies = [message for message in messages if message.role == "assistant"]
    if not clips:
        return "it has no sound"
    if len(clips) > 1:
        return f"it has {len(clips)} clips, and nothing says where their times go on"
    if len(replies) != 1 or messages[-1].role != "assistant":
        return "it has other turns than one reply to its recording"
    (clip,), (reply,) = clips, replies
    if not clip.segments:
        return (
            "its audio part has no 'segments' with times; give it some, or a row for each part of"
            " the recording ('start_s' and 'end_s')"
        )
    if reply.reasoning:
        return "its reply has a reasoning, which is about all of it"
    for name, text in (("reply", reply.text), ("transcript", clip.transcript)):
        if (
            text is not None
            and find_piece_ends(text, [each.text for each in clip.segments]) is None
        ):
            return f"its {name} is not the texts of its 'segments', one after the other"
    return None


def _has_loss(messages: Sequence[Message]) -> bool:
    return any(message.role == "assistant" and message.in_loss for message in messages)
