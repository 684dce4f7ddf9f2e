"""What the columns of a Parquet table mean: which hold clips, labels, texts, and other values.

A clip is a struct {bytes, path}, as the Hugging Face feature Audio is stored, a struct
{array, sampling_rate}, or a column of bytes that begin as a sound file does. The features that
`datasets` writes into a file's metadata say more than the shape: which structs are images, and the
names of labels.
"""

import dataclasses
import datetime
import decimal
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from stepaudio_jax.data.containers.base import Samples
from stepaudio_jax.data.containers.places import clip_name, looks_like_sound

Kind = Literal["value", "struct", "list", "label", "file", "samples", "bytes", "image"]
_CLIP_KINDS = ("file", "samples", "bytes")
_FILE_FIELDS = {"bytes", "path", "sampling_rate", "format"}
_IMAGE_NAME = re.compile(r"(?:\w+_)?(?:image|video|picture|frame)s?(?:_\w+)?", re.I)


@dataclasses.dataclass(frozen=True)
class Column:
    """Describes a column, or a part of one.

    Attributes:
        kind: "file": a struct with the bytes or the path of a sound file; "samples": a struct with
            samples and their rate; "bytes": the bytes of a sound file; "label": a number that
            stands for a name.
        leaves: the numbers of the file's leaf columns that belong to it.
        data_leaves: those of them that hold sound.
        fields: of a struct, by name.
        element: of a list.
        names: of labels.
    """

    kind: Kind
    leaves: tuple[int, ...]
    data_leaves: tuple[int, ...] = ()
    fields: Mapping[str, "Column"] = dataclasses.field(default_factory=dict)
    element: "Column | None" = None
    names: tuple[str, ...] = ()

    @property
    def has_clips(self) -> bool:
        """Returns whether sound lies in the column."""
        return bool(self.data_leaves)

    @property
    def shows_clips(self) -> bool:
        """Returns whether leaves without sound tell where the clips of the column are."""
        if self.kind in ("file", "samples", "bytes"):
            return len(self.leaves) > len(self.data_leaves)
        parts = [*self.fields.values(), *([self.element] if self.element else [])]
        return all(part.shows_clips for part in parts)


def read_columns(schema: Any, first_value: Callable[[int], bytes | None]) -> dict[str, Column]:
    """Returns what each column of a table means.

    Args:
        schema: pyarrow's, with the file's metadata.
        first_value: returns the first value of a leaf column that is not null or empty.
    """
    leaf = iter(range(1 << 31))
    features = _features(schema)
    return {
        field.name: _column(field.type, features.get(field.name), field.name, leaf, first_value)
        for field in schema
    }


def to_json(column: Column, scalar: Any, path: str, place: str, *, has_data: bool) -> Any:
    """Returns a value as JSON would hold it, with names in the place of clips.

    Args:
        column: what the value means.
        scalar: pyarrow's. Where clips all have data, it may lack them.
        path: of the file.
        place: of the value in the file.
        has_data: whether all clips of the column are known to have data, so that none is looked at.
    """
    if not scalar.is_valid:
        return None
    if column.kind == "struct":
        return {
            name: to_json(
                field, scalar[name], path, f"{place}/{column_step(name)}", has_data=has_data
            )
            for name, field in column.fields.items()
        }
    if column.kind == "list" and column.element is not None:
        return [
            to_json(column.element, scalar[index], path, f"{place}/{index}", has_data=has_data)
            for index in range(len(scalar))
        ]
    if column.kind == "label":
        number = scalar.as_py()
        return column.names[number] if 0 <= number < len(column.names) else None
    if column.kind == "image":
        return str(clip_name(path, place))
    if column.kind == "file" and not has_data and not scalar["bytes"].is_valid:
        return scalar["path"].as_py() if "path" in column.fields else None
    if column.kind == "samples" and not has_data and not scalar["array"].is_valid:
        return None
    if column.kind in _CLIP_KINDS:
        return clip_name(path, place)
    return _plain(scalar.as_py(maps_as_pydicts="lossy"))


def find_clip(column: Column, scalar: Any, steps: list[str]) -> bytes | Samples | None:
    """Returns a clip inside a value; None where there is none.

    Args:
        column: what the value means.
        scalar: pyarrow's value of one row.
        steps: the names and numbers that lead from the row's value to the clip.
    """
    for step in steps:
        if not scalar.is_valid:
            return None
        if column.kind == "struct":
            names = {column_step(name): name for name in column.fields}
            if step not in names:
                return None
            column, scalar = column.fields[names[step]], scalar[names[step]]
        elif column.kind == "list" and column.element is not None:
            if not step.isdecimal() or int(step) >= len(scalar):
                return None
            column, scalar = column.element, scalar[int(step)]
        else:
            return None
    if column.kind not in _CLIP_KINDS or not scalar.is_valid:
        return None
    if column.kind == "samples":
        values, rate = scalar["array"], scalar["sampling_rate"]
        if not values.is_valid or not rate.is_valid:
            return None
        return Samples(_array(values), int(rate.as_py()))
    content = scalar["bytes"] if column.kind == "file" else scalar
    return content.as_buffer().to_pybytes() if content.is_valid else None


def column_step(name: str) -> str:
    """Returns the name of a column or a field as a place has it."""
    return name.replace("/", "%2F")


def _array(scalar: Any) -> np.ndarray:
    """Returns [samples], or of a list for each channel [samples, channels]."""
    values = scalar.values
    if hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        return np.stack([_array(values[index]) for index in range(len(values))], axis=-1)
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _column(
    kind: Any,
    feature: Any,
    name: str,
    leaf: Iterator[int],
    first_value: Callable[[int], bytes | None],
) -> Column:
    """Describes a column of an Arrow type; takes its leaf columns' numbers from `leaf`."""
    import pyarrow as pa

    feature_kind = feature.get("_type") if isinstance(feature, Mapping) else None
    is_image = feature_kind in ("Image", "Video") or (
        feature_kind is None and _IMAGE_NAME.fullmatch(name) is not None
    )
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind):
        types = {field.name: field.type for field in kind}
        is_file = _is_bytes(types.get("bytes")) and types.keys() <= _FILE_FIELDS
        fields = {
            name: _column(
                kind,
                _feature_of_field(feature, name),
                name if feature_kind is None else "",
                leaf,
                _no_value if is_file else first_value,
            )
            for name, kind in types.items()
        }
        leaves = tuple(number for field in fields.values() for number in field.leaves)
        if is_file:
            data = fields["bytes"].leaves
            return Column("image" if is_image else "file", leaves, data, fields)
        if {"array", "sampling_rate"} <= types.keys() and _is_list(types["array"]):
            return Column("samples", leaves, fields["array"].leaves, fields)
        data = tuple(number for field in fields.values() for number in field.data_leaves)
        return Column("struct", leaves, data, fields)
    if _is_list(kind):
        element = _column(kind.value_type, _feature_of_element(feature), name, leaf, first_value)
        return Column("list", element.leaves, element.data_leaves, element=element)
    if pa.types.is_map(kind):
        key = _column(kind.key_type, None, "", leaf, _no_value)
        item = _column(kind.item_type, None, "", leaf, _no_value)
        return Column("value", (*key.leaves, *item.leaves))
    number = next(leaf)
    if feature_kind == "ClassLabel" and isinstance(feature.get("names"), list):
        return Column("label", (number,), names=tuple(feature["names"]))
    if _is_bytes(kind):
        if is_image:
            return Column("image", (number,), (number,))
        if feature_kind == "Audio" or looks_like_sound(first_value(number) or b""):
            return Column("bytes", (number,), (number,))
    return Column("value", (number,))


def _no_value(leaf: int) -> None:
    """Tells nothing of a leaf column's values."""


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or pa.types.is_fixed_size_list(kind)
        or pa.types.is_list_view(kind)
        or pa.types.is_large_list_view(kind)
    )


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return kind is not None and bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)  # of Polars
    )


def _features(schema: Any) -> Mapping[str, Any]:
    """Returns the features that `datasets` has written into a file's metadata."""
    try:
        values = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = values["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, Mapping) else {}


def _feature_of_field(feature: Any, name: str) -> Any:
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") in ("Sequence", "List") and isinstance(feature["feature"], Mapping):
        # A sequence of objects is stored as an object of lists.
        return {"_type": "List", "feature": feature["feature"].get(name)}
    return feature.get(name)


def _feature_of_element(feature: Any) -> Any:
    if isinstance(feature, list) and len(feature) == 1:
        return feature[0]
    return feature.get("feature") if isinstance(feature, Mapping) else None


def _plain(value: Any) -> Any:
    """Returns a Python value as JSON would hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
