"""Which part of its file the clip of a row is: the columns that say it, or may mean it.

Read are `start_s` and `end_s`, in seconds, and NeMo's `offset` with its `duration`. Other columns
that may mean a part of the file (`start` and `end`, `onset` and `offset`, `timestamp`) are refused
with what to write, since the clip would otherwise be heard from its beginning to its end.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources.foreign_keys import key_name
from stepaudio_jax.data.sources.json_values import (
    format_json,
    is_empty,
    is_json_list,
    parse_literal,
)
from stepaudio_jax.errors import DataError

# Columns that may say where a clip begins or ends, and in what unit.
_TIME_COLUMN = re.compile(
    r"(?:(?:segment|seg|utterance|utt|clip|audio|speech|event)_)?"
    r"(?:(?P<start>start|begin|onset)|(?P<end>end|stop))"
    r"(?:_?(?:times?|stamps?|offsets?))*"
    r"(?:_?(?:(?:in_)?(?:s|secs?|seconds?)|(?P<unit>ms|msecs?|millis|milliseconds?|samples?|frames?)))?"
)
# Columns that mean times only where both are there.
_TIME_PAIRS = (("tmin", "tmax"), ("xmin", "xmax"), ("t0", "t1"), ("from", "to"))
# Columns that may hold both times.
_SPAN_COLUMN = re.compile(
    r"(?:(?:audio|clip|utterance|speech)_)?"
    r"(?:time_?stamps?|time_?(?:range|span|interval)|segment|interval|span)"
)
# A time that is no plain number: 0:01.5, 00:00:01,500, 1.5 s.
_CLOCK = re.compile(r"(?:\d+:){0,2}\d+(?:[.,]\d+)?\s*(?:h|min|s|secs?|seconds?|ms)?", re.I)
_ADVICE = "or, where it is none, columns={'start_s': '', 'end_s': ''}"


def read_times(value: Mapping[str, Any], is_embedded: bool, origin: str) -> dict[str, float]:
    """Returns the part of the file that a row means, as keys of an audio part; {} for all of it.

    A `duration` alone is the length of the file.

    Args:
        value: the row.
        is_embedded: whether the clip lies inside the container.
        origin: the start of an error.

    Raises:
        DataError: the times are no part of a file; or other columns may mean one.
    """
    times = [value[key] for key in ("start_s", "end_s") if key in value]
    if times and all(map(is_empty, times)):
        return {}
    if times and not all(map(is_empty, times)):
        start = _seconds(value.get("start_s", 0.0), "start_s", origin)
        end = value.get("end_s")
        return _checked(start, None if end is None else _seconds(end, "end_s", origin), origin)
    if is_embedded:
        _check_embedded(value, origin)
        return {}
    _check_other_columns(value, origin)
    if is_empty(value.get("offset")):
        return {}
    start = _seconds(value["offset"], "offset", origin)
    if is_empty(value.get("duration")):
        return _checked(start, None, origin)
    return _checked(start, start + _seconds(value["duration"], "duration", origin), origin)


def part_of_file(start: float, end: float | None) -> dict[str, float]:
    """Returns the keys of an audio part that is a part of its file, in seconds."""
    # Sums of decimal fractions are off by a rounding error that nobody wrote.
    times = {"start_s": round(float(start), 9)}
    return times if end is None else {**times, "end_s": round(float(end), 9)}


def is_number(value: Any) -> bool:
    """Returns whether a value is a finite number, or the text of one (CSV has strings only)."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False


def _check_embedded(value: Mapping[str, Any], origin: str) -> None:
    """Checks the columns beside a clip inside a container.

    It has been cut already, and other columns say where it came from; but for NeMo's `offset`,
    since its tars hold whole files too.
    """
    offset: Any = value.get("offset")
    if is_number(offset) and float(offset) != 0 and is_number(value.get("duration")):
        raise DataError(
            f"{origin}: has 'offset' and 'duration' beside a clip in the container; where the"
            " clip is that part already, say so: columns={'start_s': '', 'end_s': ''}"
        )


def _check_other_columns(value: Mapping[str, Any], origin: str) -> None:
    """Checks that no column may mean a part of the file that is not read."""
    for key, item in value.items():
        if _SPAN_COLUMN.fullmatch(key_name(key)) and _is_span(item):
            raise DataError(
                f"{origin}: has {key!r} {format_json(item)}, which may be a part of the file;"
                f" write it in seconds, as 'start_s' and 'end_s', {_ADVICE}"
            )
    columns = _time_columns(value)
    # A start of 0 alone says nothing: the clip begins where its file does.
    if not columns or (columns.keys() == {"start_s"} and _is_zero(value[columns["start_s"]])):
        return
    named = ", ".join(f"'{name}': '{columns[name]}'" for name in sorted(columns, reverse=True))
    say = f"say so: columns={{{named}}}"
    if not all(is_number(value[key]) and _unit(key) is None for key in columns.values()):
        say = "write it in seconds, as 'start_s' and 'end_s'"
    elif "end_s" not in columns and not is_empty(value.get("duration")):
        say = f"write its end as 'end_s' too, or call {columns['start_s']!r} 'offset', as NeMo does"
    raise DataError(
        f"{origin}: has {' and '.join(map(repr, columns.values()))}, which may be a part of the"
        f" file; {say}, {_ADVICE}"
    )


def _time_columns(value: Mapping[str, Any]) -> dict[str, str]:
    """Returns the columns that may mean `start_s` and `end_s`."""
    columns: dict[str, str] = {}
    times = {key: key_name(key) for key, item in value.items() if _is_time(item)}
    for key, name in times.items():
        match = _TIME_COLUMN.fullmatch(name)
        if match is not None:
            columns.setdefault("start_s" if match["start"] else "end_s", key)
    # Files of sound events name beginning and end so; alone, `offset` is NeMo's beginning.
    start_name = times.get(columns.get("start_s", ""))
    if start_name == "onset" and "offset" in times and "end_s" not in columns:
        columns["end_s"] = "offset"
    by_name = {name.replace("_", ""): key for key, name in times.items()}
    for pair in _TIME_PAIRS:
        if not columns and all(name in by_name for name in pair):
            return dict(zip(("start_s", "end_s"), (by_name[name] for name in pair), strict=True))
    return columns


def _unit(key: str) -> str | None:
    """Returns the unit in a column's name that is not the second."""
    match = _TIME_COLUMN.fullmatch(key_name(key))
    return None if match is None else match["unit"]


def _is_time(value: Any) -> bool:
    return is_number(value) or (
        isinstance(value, str) and _CLOCK.fullmatch(value.strip()) is not None
    )


def _is_zero(value: Any) -> bool:
    return is_number(value) and float(value) == 0


def _is_span(value: Any) -> bool:
    """Returns whether a value is a beginning and an end: [1.0, 2.5], "1.0-2.5"."""
    value = parse_literal(value)
    if isinstance(value, str):
        value = re.split(r"\s*(?:-->|[-;~\u2013]|\bto\b)\s*", value.strip())
    if is_json_list(value) and len(value) == 1:
        value = value[0]
    return is_json_list(value) and len(value) == 2 and all(map(_is_time, value))


def _seconds(value: Any, key: str, origin: str) -> float:
    if not is_number(value):
        raise DataError(f"{origin}: {key!r} must be a number of seconds, got {format_json(value)}")
    return float(value)


def _checked(start: float, end: float | None, origin: str) -> dict[str, float]:
    if start < 0 or (end is not None and end <= start):
        raise DataError(
            f"{origin}: the part of the file from {start:g} s to"
            f" {'its end' if end is None else f'{end:g} s'} is empty or begins before the file"
        )
    return part_of_file(start, end)
