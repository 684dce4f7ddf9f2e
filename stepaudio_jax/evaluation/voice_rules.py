"""Decides whether an answer about a voice or a sound agrees with a label, as Step-SPQA's rules do.

Each of its tasks has a rule of its own; what is not clearly the same is not called so.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from stepaudio_jax.evaluation.voice_ages import age_middles
from stepaudio_jax.evaluation.voice_terms import find_terms, is_denied
from stepaudio_jax.text.answer_markup import normalize_answer, unify_characters

Concepts = Sequence[frozenset[str]]
Rule = Callable[[Concepts, Concepts], bool | None]

MAX_AGE_DIFFERENCE = 10.0  # years between the midpoints
_MAX_SPEED_DIFFERENCE = 1.0  # steps of five
_EMOTION_GROUPS: Mapping[str, str] = {
    "joy": "positive",
    "neutral": "neutral",
    **dict.fromkeys(("sad", "anger", "fear", "anxiety", "disgust", "shame", "sarcasm"), "negative"),
    "surprise": "surprise",
    "banter": "banter",
}
# Banter may go with a neutral or a negative mood.
_BESIDE_BANTER = {"banter", "neutral", "negative"}
_RHYTHM_GROUPS = {"fluent": "steady"}
_FAMILIES = {"laugh_loud": "laugh", "laugh_soft": "laugh", "cry_loud": "cry", "cry_soft": "cry"}
_LEAVES_OPEN = re.compile(
    r"无法(?:准确)?(?:判断|确定|识别)|判断不(?:了|出)|不(?:能|好)(?:判断|确定)|难以(?:判断|确定)"
    r"|不确定|听不(?:出|清)|不知道"
    r"|\b(?:cannot|can't|unable to) (?:tell|determine|judge|hear)\b|\bunclear\b"
)
# Around the label of a sound: "typing on a keyboard." and "雨声。"
_AROUND = re.compile(r"^[\W_]+|[\W_]+$")


def agrees(task_type: str, label: str, reference: str, answer: str) -> bool | None:
    """Returns whether an answer agrees with a label; None if the answer says nothing clear.

    Args:
        task_type: of Step-SPQA, as "age"; others are compared by words.
        label: short, perhaps with blanks around it.
        reference: the reference answer, a sentence.
        answer: without reasoning and markup.
    """
    if task_type == "age":
        return _same_age(label, reference, answer)
    dimension, rule = _RULES.get(task_type, ("", None))
    right = _asserted(dimension, label) or _asserted(dimension, reference) if dimension else []
    if rule is None or not right:
        return _says_label(label, answer)
    said = _asserted(dimension, answer)
    return rule(right, said) if said else None


def _same_age(label: str, reference: str, answer: str) -> bool | None:
    right = age_middles(label, bare=True) or age_middles(reference, bare=False)
    said = age_middles(answer, bare=True)
    if not right or not said:
        return None
    near = [min(abs(age - middle) for middle in right) <= MAX_AGE_DIFFERENCE for age in said]
    return near[0] if len(set(near)) == 1 else None


def _says_label(label: str, answer: str) -> bool | None:
    """Returns True where all of a label stands in an answer, not denied; else None."""
    text, plain = normalize_answer(_AROUND.sub("", label)), unify_characters(answer).casefold()
    start = plain.find(text) if len(text) > 1 else -1
    is_said = start >= 0 and not is_denied(plain, start) and not _LEAVES_OPEN.search(answer)
    return True if is_said else None


def _asserted(dimension: str, text: str) -> Concepts:
    """Returns what the words of a text stand for, in order, without alternatives left open."""
    mentions = find_terms(text, dimension)
    return [mention.concepts for mention in mentions if not mention.is_alternative]


def _same_gender(right: Concepts, said: Concepts) -> bool | None:
    return None if len(set(said)) != 1 or len(set(right)) != 1 else said[0] == right[0]


def _same_speed(right: Concepts, said: Concepts) -> bool | None:
    (label, *_), steps = _steps(right), _steps(said)
    near = {abs(step - label) <= _MAX_SPEED_DIFFERENCE for step in steps}
    return near.pop() if len(near) == 1 else None


def _same_pitch(right: Concepts, said: Concepts) -> bool | None:
    return None if len(set(said)) != 1 else set(_steps(said)) == set(_steps(right))


def _same_mood(right: Concepts, said: Concepts) -> bool | None:
    wanted = _groups(right, _EMOTION_GROUPS)
    first = _groups(said[:1], _EMOTION_GROUPS)  # the mood itself comes before its shades
    if "surprise" in wanted:
        return "surprise" in _groups(said, _EMOTION_GROUPS)
    if "banter" in first | wanted and not first & wanted:
        return len(wanted) == 1 and first | wanted <= _BESIDE_BANTER
    return bool(first & wanted)


def _share_group(groups: Mapping[str, str]) -> Rule:
    """Returns the rule that one concept in common, or one of the same group, is enough."""

    def rule(right: Concepts, said: Concepts) -> bool | None:
        return bool(_groups(right, groups) & _groups(said, groups))

    return rule


def _groups(concepts: Concepts, groups: Mapping[str, str]) -> set[str]:
    return {groups.get(name, name) for names in concepts for name in names}


def _steps(concepts: Concepts) -> list[float]:
    return [float(name) for names in concepts for name in names]


# {task: (dimension of its words, rule)}
_RULES: Mapping[str, tuple[str, Rule]] = {
    "gender": ("gender", _same_gender),
    "speed": ("speed", _same_speed),
    "pitch": ("pitch", _same_pitch),
    "emotions": ("emotion", _same_mood),
    "event": ("event", _share_group({})),
    "rhythm": ("rhythm", _share_group(_RHYTHM_GROUPS)),
    "scene": ("scene", _share_group({})),
    "vocalsound": ("sound", _share_group(_FAMILIES)),
    "voice_styles": ("style", _share_group({})),
    "voice_tone": ("timbre", _share_group({})),
}
