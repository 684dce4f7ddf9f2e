"""Turns a record, a `tf.train.Example` or a JSON object, into a row, and reads the clips in it.

An Example says of its bytes neither that they are text nor that they are sound. Here bytes are a
clip if they begin as a sound file does, or are not UTF-8; long lists of numbers are clips too.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.data.containers.base import EmbeddedClip, Samples
from stepaudio_jax.data.containers.example import Feature, parse_example, serialize_example
from stepaudio_jax.data.containers.places import looks_like_sound
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import did_you_mean, first_few, parse_json, truncate

ClipNamer = Callable[[str], EmbeddedClip]

# The feature that holds a row in the project's own form. Its clips are named `#FEATURE`.
RECORD_FEATURE = "record"

# Features that other tools write as JSON, where they hold objects.
_JSON_FEATURES = {
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "tools",
    "rubric",
    "annotations",
}
# More numbers than these are sound, or at least no part of a row.
_MAX_ROW_NUMBERS = 1000
_ITEM = re.compile(r"(?P<feature>.+)\[(?P<item>\d+)\]", re.DOTALL)
_RATE_FEATURES = (
    "{}/sample_rate",
    "{}_sample_rate",
    "{}/sampling_rate",
    "sample_rate",
    "sampling_rate",
)


class RecordDecoder(Protocol):
    """Says what the bytes of a record mean; the errors of both methods lack the record's place."""

    def row(self, record: bytes, name_clip: ClipNamer) -> Any:
        """Returns the row's value; `name_clip` gives the name of the clip in a feature.

        Raises:
            DataError: the record cannot be read.
        """
        ...

    def clip(self, record: bytes, feature: str) -> bytes | Samples:
        """Returns the clip that `row` has named by a feature.

        Raises:
            DataError: there is no such clip, or it cannot be read.
        """
        ...


class ExampleOrJson:
    """Reads records about which nothing is known: Examples, or JSON objects."""

    def row(self, record: bytes, name_clip: ClipNamer) -> Any:
        """Returns the row's value: see `RecordDecoder`."""
        # An Example whose features take 123 bytes begins with a line end and a brace too.
        if record.lstrip()[:1] == b"{" and not record.startswith(b"\n{"):
            try:
                return json.loads(record)
            except (ValueError, RecursionError) as error:
                raise DataError(f"is not JSON ({truncate(str(error))})") from None
        features = parse_example(record)
        if RECORD_FEATURE in features:
            value = _json_object(features[RECORD_FEATURE])
            if value is not None:
                return _name_clips(value, features, name_clip)
        return {name: _row_value(name, feature, name_clip) for name, feature in features.items()}

    def clip(self, record: bytes, feature: str) -> bytes | Samples:
        """Returns the clip in a feature: see `RecordDecoder`."""
        features = parse_example(record)
        name, item = split_item(feature, features)
        if name not in features:
            raise DataError(missing_feature(feature, features))
        values = features[name].values()
        if isinstance(values, list):
            if item >= len(values):
                raise DataError(f"the feature {name!r} has {len(values)} clips")
            return bytes(values[item])
        return Samples(samples_of_numbers(values, name), _find_rate(features, name))


def serialize_row(row: Mapping[str, Any]) -> bytes:
    """Returns the Example of a row in the project's own form, with its clips inside.

    Args:
        row: as JSON would hold it, but with the bytes of a sound file as the `audio` of each audio
            part. They become the features `audio/0`, `audio/1`, .., and `#audio/0` takes their
            place in the row, which the feature `record` holds as JSON. Equal clips are stored once.
    """
    names: dict[bytes, str] = {}
    record = json.dumps(_take_clips(row, names), ensure_ascii=False).encode()
    return serialize_example(
        {RECORD_FEATURE: [record], **{name: [content] for content, name in names.items()}}
    )


def _take_clips(value: Any, names: dict[bytes, str]) -> Any:
    """Returns a JSON value with names in the place of the clips, which `names` collects."""
    if isinstance(value, bytes):
        return "#" + names.setdefault(value, f"audio/{len(names)}")
    if isinstance(value, Mapping):
        return {key: _take_clips(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_take_clips(item, names) for item in value]
    return value


def text_or_clip(content: memoryview, feature: str, name_clip: ClipNamer) -> str:
    """Returns text, or the name of a clip if bytes are not text."""
    if looks_like_sound(content):
        return name_clip(feature)
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError:
        return name_clip(feature)


def numbers_or_clip(
    values: NDArray[Any], feature: str, name_clip: ClipNamer
) -> list[Any] | EmbeddedClip:
    """Returns a list (of lists) of numbers, or the name of a clip if there are very many."""
    return values.tolist() if values.size <= _MAX_ROW_NUMBERS else name_clip(feature)


def samples_of_numbers(values: NDArray[Any], feature: str) -> NDArray[Any]:
    """Returns samples [...] as floats or i16.

    Raises:
        DataError: integers need more than 16 bits, so that their full scale is unknown.
    """
    if np.issubdtype(values.dtype, np.floating):
        return values
    narrow = values.astype(np.int16)
    if not np.array_equal(narrow, values):
        worst = max(int(values.max()), -int(values.min()))
        raise DataError(
            f"the samples in {feature!r} reach {worst}, and only integers of 16 bits are read;"
            " store them as floats of full scale -1 to 1"
        )
    return narrow


def split_item(feature: str, features: Mapping[str, Any]) -> tuple[str, int]:
    """Splits `FEATURE[ITEM]`, by which a clip is named in a feature with several values."""
    match = _ITEM.fullmatch(feature)
    if feature in features or match is None:
        return feature, 0
    return match["feature"], int(match["item"])


def missing_feature(feature: str, features: Mapping[str, Any]) -> str:
    """Returns the message of an error about a feature that is not there."""
    names = first_few([repr(name) for name in features]) or "none"
    hint = did_you_mean(feature, features)
    return f"has no feature {truncate(feature)!r}; it has {names}{hint}"


def _row_value(name: str, feature: Feature, name_clip: ClipNamer) -> Any:
    count = feature.count()
    if not count:
        return None
    if count > _MAX_ROW_NUMBERS and feature.kind != "bytes":
        return name_clip(name)
    if name in _JSON_FEATURES and (value := _json_objects(feature)) is not None:
        return value
    values = feature.values()
    if isinstance(values, list):
        if count == 1:
            return text_or_clip(values[0], name, name_clip)
        return [
            text_or_clip(value, f"{name}[{index}]", name_clip) for index, value in enumerate(values)
        ]
    return values.item() if count == 1 else values.tolist()


def _json_object(feature: Feature) -> dict[str, Any] | None:
    """Returns the JSON object that a feature holds, or None."""
    value = _json_objects(feature)
    return value if isinstance(value, dict) else None


def _json_objects(feature: Feature) -> dict[str, Any] | list[dict[str, Any]] | None:
    """Returns the JSON object, or list of objects, that a feature holds, or None."""
    if feature.kind != "bytes" or len(feature.items) != 1:
        return None
    content = bytes(feature.items[0])
    if content.lstrip()[:1] not in (b"[", b"{"):
        return None
    value = parse_json(content)
    is_list = isinstance(value, list) and all(isinstance(item, dict) for item in value)
    return value if is_list or isinstance(value, dict) else None


def _name_clips(value: Any, features: Mapping[str, Feature], name_clip: ClipNamer) -> Any:
    """Returns a JSON value with the names of clips in the place of `#FEATURE` in audio parts."""
    if isinstance(value, list):
        return [_name_clips(item, features, name_clip) for item in value]
    if not isinstance(value, dict):
        return value
    named = {key: _name_clips(item, features, name_clip) for key, item in value.items()}
    clip = named.get("audio")
    if isinstance(clip, str) and clip.startswith("#"):
        if clip[1:] not in features:
            raise DataError(missing_feature(clip[1:], features))
        named["audio"] = name_clip(clip[1:])
    return named


def _find_rate(features: Mapping[str, Feature], name: str) -> int:
    for pattern in _RATE_FEATURES:
        feature = features.get(pattern.format(name))
        if feature is not None and feature.kind == "int64" and feature.count() == 1:
            return int(np.asarray(feature.values())[0])
    names = ", ".join(repr(pattern.format(name)) for pattern in _RATE_FEATURES)
    raise DataError(
        f"the feature {name!r} holds samples as numbers, and none of the features {names} says"
        " at what rate; add one, or store the bytes of a sound file"
    )
