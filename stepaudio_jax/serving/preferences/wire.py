"""What the page and the server send each other about comparisons, in JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from stepaudio_jax.data.sources.json_values import format_json
from stepaudio_jax.data.sources.serialization import serialize_rubric
from stepaudio_jax.errors import AudioError, DataError
from stepaudio_jax.serving.clips import decode_clip_data
from stepaudio_jax.serving.preferences.comparisons import Comparison, Continuation, Side
from stepaudio_jax.serving.preferences.journals import Assignment
from stepaudio_jax.serving.preferences.store import PreferenceStore
from stepaudio_jax.text import AudioPart, Message, TextPart
from stepaudio_jax.text.dialogue import THINK_END_TAG, THINK_START_TAG

# Keeps the content of a clip, whose name says its kind; returns its path.
AddClip = Callable[[bytes, str], str]


def describe_study(store: PreferenceStore) -> dict[str, Any]:
    """Returns what the page needs to know of a study."""
    settings = store.settings
    return {
        "levels": settings.levels,
        "reasons": list(settings.reasons),
        "rubric": settings.to_json()["rubric"],
        "consent": settings.consent,
        "consent_hash": store.consent_hash,
        "listening": settings.listening,
        "pairs": len(store.study.pairs),
    }


def describe_assignment(store: PreferenceStore, assignment: Assignment) -> dict[str, Any]:
    """Returns a comparison as it is shown: which side is which continuation is not said.

    A clip is named by its index among all of the comparison's, see `Comparison.clips`.
    """
    comparison = store.study.comparison(assignment)
    order: tuple[Side, Side] = ("a", "b") if assignment.shown_first == "a" else ("b", "a")
    indices = _clip_indices(comparison)
    sides = {name: _turns(getattr(comparison, name).turns, indices, name) for name in order}
    kept = store.verdict_of(assignment)
    return {
        "assignment": assignment.id,
        "messages": _turns(comparison.messages, indices, "messages"),
        "first": sides[order[0]],
        "second": sides[order[1]],
        "rubric": serialize_rubric(comparison.rubric),
        "seconds": assignment.seconds * store.settings.listening,
        "is_same": comparison.is_same,
        "is_judged": kept is not None,
    }


def reveal(store: PreferenceStore, assignment: Assignment) -> dict[str, Any]:
    """Returns which model and settings wrote which side, for after the verdict."""
    comparison = store.study.comparison(assignment)
    sides = [comparison.a, comparison.b]
    if assignment.shown_first == "b":
        sides.reverse()
    return dict(zip(("first", "second"), map(_origin, sides), strict=True))


def take_comparison(
    value: Mapping[str, Any], add_clip: AddClip, *, max_clips: int
) -> dict[str, Any]:
    """Returns a comparison that a client sent, its clips kept as files.

    Args:
        value: messages, a and b ({turns, model, sampling}), rubric, source; turns in OpenAI's form.
        add_clip: keeps a clip.
        max_clips: that it may have.

    Raises:
        DataError: names the key and what is allowed.
    """
    allowed = ("annotator", "messages", "a", "b", "rubric", "source", "shown_first")
    for key in value:
        if key not in allowed:
            raise DataError(f"unknown key {format_json(key)} (allowed: {', '.join(allowed)})")
    count = 0

    def add_counted(content: bytes, name: str) -> str:
        nonlocal count
        count += 1
        if count > max_clips:
            raise DataError(f"there are more than {max_clips} clips; send fewer")
        return add_clip(content, name)

    taken = dict(value)
    for key in ("annotator", "shown_first"):
        taken.pop(key, None)
    taken["messages"] = _take_turns(value.get("messages"), "messages", add_counted)
    for name in ("a", "b"):
        side = value.get(name)
        if not isinstance(side, Mapping) or not set(side) <= {"turns", "model", "sampling"}:
            raise DataError(f"{name!r} must be an object with 'turns', 'model' and 'sampling'")
        taken[name] = {**side, "turns": _take_turns(side.get("turns"), name, add_counted)}
    return taken


def _take_turns(value: Any, where: str, add_clip: AddClip) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise DataError(f"{where!r} must be a list of turns, got {format_json(value)}")
    turns = []
    for number, turn in enumerate(value, 1):
        content = turn.get("content")
        if isinstance(content, list):
            content = [
                _take_part(part, f"{where!r}: turn {number}, part {index}", add_clip)
                for index, part in enumerate(content, 1)
            ]
        turns.append(_with_inline_thought({**turn, "content": content}))
    return turns


def _with_inline_thought(turn: dict[str, Any]) -> dict[str, Any]:
    """Returns a turn whose reply begins with a tag of thoughts so that the tag stays a word of it.

    The reader takes the first tag of a content for the reasoning, so that it is put before it.
    """
    content = turn["content"]
    if (
        turn.get("role") != "assistant"
        or not isinstance(content, str)
        or not content.lstrip().startswith(THINK_START_TAG)
    ):
        return turn
    reasoning = turn.pop("reasoning_content", None) or ""
    return {**turn, "content": f"{THINK_START_TAG}{reasoning}{THINK_END_TAG}{content}"}


def _take_part(part: Any, where: str, add_clip: AddClip) -> Any:
    if not isinstance(part, Mapping) or part.get("type") == "text":
        return part
    # Only sound that was sent becomes a clip: a path would make the server read its own files.
    sound = part.get("input_audio")
    if part.get("type") != "input_audio" or not isinstance(sound, Mapping):
        raise DataError(
            f"{where}: must be of type 'text' or 'input_audio', got {format_json(part.get('type'))}"
        )
    data, kind = sound.get("data"), sound.get("format", "wav")
    if not isinstance(data, str) or not isinstance(kind, str) or not kind.isalnum():
        raise DataError(f"{where}: 'input_audio' must have 'data' in base64, and a 'format'")
    try:
        content = decode_clip_data(data)
    except AudioError as error:
        raise DataError(f"{where}: {error.source} {error.reason}") from None
    clip = {"type": "audio", "audio": add_clip(content, f"clip.{kind[:8].lower()}")}
    transcript = part.get("transcript")
    return clip if transcript is None else {**clip, "transcript": transcript}


def _clip_indices(comparison: Comparison) -> dict[tuple[str, int, int], int]:
    """Returns the index of each clip, by (where its turn is, the turn's number, the part's)."""
    indices: dict[tuple[str, int, int], int] = {}
    firsts: dict[str, int] = {}
    groups = (
        ("messages", comparison.messages),
        ("a", comparison.a.turns),
        ("b", comparison.b.turns),
    )
    for name, turns in groups:
        for number, turn in enumerate(turns):
            for position, part in enumerate(turn.parts):
                if isinstance(part, AudioPart):
                    # A clip that both sides heard is one clip.
                    index = firsts.setdefault(part.name, len(firsts))
                    indices[name, number, position] = index
    return indices


def _turns(
    turns: tuple[Message, ...], indices: Mapping[tuple[str, int, int], int], name: str
) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            "reasoning": turn.reasoning,
            "parts": [
                {"type": "text", "text": part.text}
                if isinstance(part, TextPart)
                else {
                    "type": "audio",
                    "clip": indices[name, number, position],
                    "transcript": part.transcript,
                }
                for position, part in enumerate(turn.parts)
            ],
        }
        for number, turn in enumerate(turns)
    ]


def _origin(side: Continuation) -> dict[str, Any]:
    return {"model": side.model, "sampling": dict(side.sampling)}
