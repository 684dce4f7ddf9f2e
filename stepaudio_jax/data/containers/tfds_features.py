"""Features of a prepared TFDS folder: what `features.json` says of the Examples in its files.

TFDS flattens a nested example into one feature a leaf, `a/b/c`, and a list of examples into one
list a leaf. Here an example is put together again, as JSON would hold it: names of classes instead
of their numbers, text instead of bytes, and the name of a clip in the place of its sound.
"""

import dataclasses
import functools
import math
import os
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.data.containers.base import Samples
from stepaudio_jax.data.containers.example import Feature, parse_example
from stepaudio_jax.data.containers.example_rows import (
    ClipNamer,
    missing_feature,
    numbers_or_clip,
    samples_of_numbers,
    split_item,
    text_or_clip,
)
from stepaudio_jax.errors import DataError
from stepaudio_jax.storage import read_json, read_json_or_none, read_text, truncate

FEATURES_FILE = "features.json"

# By the kind of dtype, as NumPy names them.
_STORED_KINDS = {"i": "int64", "u": "int64", "b": "int64", "f": "float"}


class TfdsFeatures:
    """Reads the Examples of a prepared TFDS folder (a `RecordDecoder`).

    Args:
        folder: with `features.json`, and a file `NAME.labels.txt` for each feature with classes.

    Raises:
        DataError: a file is missing or damaged, or a feature is of a kind that cannot be read.
    """

    def __init__(self, folder: str):
        self._path = os.path.join(folder, FEATURES_FILE)
        self._leaves: dict[str, _Leaf] = {}
        description = read_json(self._path, DataError)
        try:
            self._root = self._parse(description, folder, (), 0)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self._path}: is not as TFDS writes it today ({type(error).__name__}: {error});"
                " prepare the data set with tensorflow_datasets 4.9"
            ) from None

    def row(self, record: bytes, name_clip: ClipNamer) -> Any:
        """Returns the row's value: see `RecordDecoder`."""
        features = parse_example(record)
        values = {
            name: self._leaf_values(leaf, features, name_clip)
            for name, leaf in self._leaves.items()
        }
        return _assemble(self._root, values, ())

    def clip(self, record: bytes, feature: str) -> bytes | Samples:
        """Returns the clip in a feature: see `RecordDecoder`."""
        name, item = split_item(feature, self._leaves)
        leaf = self._leaves.get(name)
        if leaf is None:
            raise DataError(missing_feature(feature, self._leaves))
        items, _ = _stored_items(leaf, parse_example(record))
        values = [value for group in items for value in group] if leaf.dtype is None else items
        if item >= len(values):
            raise DataError(f"the feature {name!r} has {len(values)} values, and no {item}")
        if leaf.dtype is None:
            return bytes(values[item])
        if leaf.rate is None:
            raise DataError(
                f"the feature {name!r} is an array and not an Audio feature, so that its sample"
                " rate is unknown; prepare the data set with tfds.features.Audio(sample_rate=..)"
            )
        return Samples(samples_of_numbers(values[item], name), leaf.rate)

    def _leaf_values(
        self, leaf: "_Leaf", features: Mapping[str, Feature], name_clip: ClipNamer
    ) -> Any:
        """Returns the values of a leaf, in as many lists as it lies in."""
        if leaf.optional and leaf.stored_name not in features:
            return None
        items, lengths = _stored_items(leaf, features)
        is_single = not leaf.ranks and leaf.shape == ()
        values: list[Any] = []
        first = 0
        for index, item in enumerate(items):
            if leaf.dtype is None:
                texts = [
                    text_or_clip(
                        content, leaf.name if is_single else f"{leaf.name}[{first + k}]", name_clip
                    )
                    for k, content in enumerate(item)
                ]
                first += len(item)
                values.append(_nest(texts, leaf.shape))
            elif leaf.rate is not None:
                values.append(name_clip(f"{leaf.name}[{index}]" if leaf.ranks else leaf.name))
            elif leaf.is_class:
                values.append(_class_name(leaf, int(item)))
            else:
                name = f"{leaf.name}[{index}]" if leaf.ranks else leaf.name
                values.append(numbers_or_clip(item, name, name_clip))
        if not leaf.ranks:
            return values[0]
        for row_lengths in reversed(lengths):
            values = _split(values, row_lengths, leaf.name)
        return values

    def _parse(self, value: Any, folder: str, path: tuple[str, ...], ranks: int) -> "_Node":
        """Parses the description of a feature; `path` are the keys above it."""
        parse = functools.partial(self._parse, folder=folder)
        if (children := value.get("featuresDict")) is not None:
            return {
                key: parse(child, path=(*path, key), ranks=ranks)
                for key, child in children["features"].items()
            }
        if (sequence := value.get("sequence")) is not None:
            return _List(parse(sequence["feature"], path=path, ranks=ranks + 1))
        if (translation := value.get("translation")) is not None:
            if translation.get("variableLanguagesPerExample"):
                keys, ranks = ["language", "translation"], ranks + 1
            else:
                keys = translation["languages"]
            texts = {key: self._add(_Leaf("/".join((*path, key)), ranks)) for key in keys}
            return _List(texts) if translation.get("variableLanguagesPerExample") else texts
        if "video" in value:
            return _List(self._add(_Leaf("/".join(path), ranks + 1)))
        return self._add(self._parse_leaf(value, folder, path, ranks))

    def _parse_leaf(self, value: Any, folder: str, path: tuple[str, ...], ranks: int) -> "_Leaf":
        leaf = _Leaf("/".join(path), ranks)
        if "text" in value:
            # Whether a Text may be absent, TFDS does not write down.
            return dataclasses.replace(leaf, optional=not ranks)
        if "image" in value:
            return leaf
        if (label := value.get("classLabel")) is not None:
            names = _read_class_names(folder, path, int(label.get("numClasses", 0)))
            return dataclasses.replace(
                leaf, dtype=np.dtype(np.int64), is_class=True, class_names=names
            )
        if "boundingBox" in value:
            return dataclasses.replace(leaf, dtype=np.dtype(np.float32), shape=(4,))
        if (audio := value.get("audio")) is not None:
            return self._parse_audio(audio, leaf)
        if (tensor := value.get("tensor")) is not None:
            return dataclasses.replace(
                _array(leaf, tensor), optional=bool(tensor.get("optional")) and not ranks
            )
        kind = str(value["pythonClassName"]).rpartition(".")[2]
        raise DataError(
            f"{self._path}: the feature {leaf.name!r} is of the kind {truncate(kind)}, which cannot"
            " be read; prepare the data set without it"
        )

    def _parse_audio(self, audio: Mapping[str, Any], leaf: "_Leaf") -> "_Leaf":
        array = _array(leaf, audio)
        if audio.get("lazyDecode"):  # the bytes of a sound file, which says its rate itself
            if array.encoding != "none":
                raise DataError(
                    f"{self._path}: the feature {leaf.name!r} stores encoded sound files, encoded"
                    f" once more as {array.encoding!r}; prepare it with lazy_decode or encoding,"
                    " not both"
                )
            return leaf
        rate = int(audio.get("sampleRate") or 0)
        if rate <= 0:
            raise DataError(
                f"{self._path}: the Audio feature {leaf.name!r} says no sampleRate, and its samples"
                f' do not either; add "sampleRate": "16000" (the rate in Hz) beside its "dtype"'
            )
        return dataclasses.replace(array, rate=rate)

    def _add(self, leaf: "_Leaf") -> "_Leaf":
        self._leaves[leaf.name] = leaf
        return leaf


def find_features(folder: str) -> TfdsFeatures | None:
    """Returns the features of a prepared TFDS folder; None for any other folder.

    Raises:
        DataError: as of `TfdsFeatures`.
    """
    description = read_json_or_none(os.path.join(folder, FEATURES_FILE))
    is_tfds = isinstance(description, dict) and "pythonClassName" in description
    return TfdsFeatures(folder) if is_tfds else None


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """Describes one stored feature.

    Attributes:
        name: in the Examples, `a/b/c`.
        ranks: in how many lists it lies.
        dtype: of its numbers; None for bytes, as text and encoded sound are.
        shape: of one value; None for a dimension that varies.
        encoding: "none", or "bytes" or "zlib" for arrays that are stored as bytes.
        optional: whether a record may lack it.
        rate: in Hz, of sound that is stored as numbers.
        is_class: whether it is the number of a class.
        class_names: of the classes; empty where they have no names.
    """

    name: str
    ranks: int
    dtype: np.dtype[Any] | None = None
    shape: tuple[int | None, ...] = ()
    encoding: str = "none"
    optional: bool = False
    rate: int | None = None
    is_class: bool = False
    class_names: tuple[str, ...] = ()

    @property
    def has_stored_shape(self) -> bool:
        """Whether its shape is stored beside it, since several dimensions vary."""
        return self.shape.count(None) > 1

    @property
    def stored_name(self) -> str:
        """Returns the name of the feature that holds its values."""
        if self.ranks > 1:
            return f"{self.name}/ragged_flat_values"
        return f"{self.name}/value" if self.has_stored_shape else self.name


@dataclasses.dataclass(frozen=True)
class _List:
    """Describes a list."""

    item: "_Node"


_Node = _Leaf | _List | dict[str, Any]


def _array(leaf: _Leaf, value: Mapping[str, Any]) -> _Leaf:
    """Returns a leaf with the dtype, shape and encoding of a description."""
    dimensions = [int(size) for size in value.get("shape", {}).get("dimensions", [])]
    return dataclasses.replace(
        leaf,
        dtype=None if value["dtype"] == "string" else np.dtype(value["dtype"]),
        shape=tuple(None if size < 0 else size for size in dimensions),
        encoding=str(value.get("encoding") or "none").lower(),
    )


def _read_class_names(folder: str, path: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Reads the names of classes; none where TFDS wrote no file of them."""
    file = os.path.join(folder, "-".join(key.replace("/", ".") for key in path) + ".labels.txt")
    try:
        lines = read_text(file).split("\n")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error})") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != count:
        raise DataError(
            f"{file}: has {len(names)} names, and {FEATURES_FILE} says {count}; copy the folder"
            " again"
        )
    return names


def _class_name(leaf: _Leaf, number: int) -> str | int | None:
    """Returns the name of a class; None for -1, by which TFDS says that it is not known."""
    if number == -1:
        return None
    if not leaf.class_names:
        return number
    if not 0 <= number < len(leaf.class_names):
        raise DataError(
            f"the class {number} in {leaf.name!r} has no name; there are {len(leaf.class_names)}"
        )
    return leaf.class_names[number]


def _stored_items(
    leaf: _Leaf, features: Mapping[str, Feature]
) -> tuple[list[Any], list[NDArray[np.int64]]]:
    """Returns the values of a leaf, one after the other, and the lengths of the lists inside.

    A value is a list of bytes, or an array in its own dtype and shape.
    """
    feature = features.get(leaf.stored_name)
    if feature is None:
        raise DataError(missing_feature(leaf.stored_name, features))
    is_bytes = leaf.dtype is None or leaf.encoding != "none"
    kind = "bytes" if is_bytes else _STORED_KINDS.get(leaf.dtype.kind if leaf.dtype else "")
    if feature.kind not in (kind, None):
        raise DataError(
            f"the feature {leaf.name!r} holds {feature.kind} values, and by {FEATURES_FILE}"
            f" {kind} values"
        )
    values = feature.values() if feature.kind or is_bytes else np.zeros(0, np.int64)
    if is_bytes and leaf.dtype is not None:
        shape = _stored_shape(leaf, features)
        items = [_decode_array(leaf, bytes(value), shape) for value in values]
    else:
        items = _split_flat(leaf, values)
    if not leaf.ranks and len(items) != 1:
        raise DataError(f"the feature {leaf.name!r} has {len(items)} values, and must have one")
    lengths = [
        _numbers(features, f"{leaf.name}/ragged_row_lengths_{rank}")
        for rank in range(leaf.ranks - 1)
    ]
    return items, lengths


def _split_flat(leaf: _Leaf, values: Any) -> list[Any]:
    """Splits numbers or bytes that are stored one after the other into the values of a leaf."""
    if None in leaf.shape:
        if leaf.ranks or leaf.has_stored_shape:
            raise DataError(
                f"the feature {leaf.name!r} is a list of arrays whose shape {leaf.shape} varies,"
                " which cannot be read; prepare it with encoding='zlib', or as sound files"
                " (lazy_decode)"
            )
        groups = [values]
    else:
        size = math.prod(size for size in leaf.shape if size is not None)
        if size == 0 or len(values) % size:
            raise DataError(_wrong_size(leaf, len(values)))
        groups = [values[start : start + size] for start in range(0, len(values), size)]
    if leaf.dtype is None:
        return groups
    return [_shape_array(leaf, _restore_dtype(group, leaf.dtype), leaf.shape) for group in groups]


def _restore_dtype(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    # An Example has 64 bits with a sign, into which TFDS writes the bits of uint64.
    return values.view(np.uint64) if dtype == np.uint64 else values.astype(dtype)


def _decode_array(leaf: _Leaf, content: bytes, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """Returns an array that is stored as its bytes, or as their zlib compression."""
    assert leaf.dtype is not None
    if leaf.encoding == "zlib":
        try:
            content = zlib.decompress(content)
        except zlib.error as error:
            raise DataError(f"the feature {leaf.name!r} is damaged ({error})") from None
    if len(content) % leaf.dtype.itemsize:
        raise DataError(f"the feature {leaf.name!r} is damaged: it has {len(content)} bytes")
    return _shape_array(leaf, np.frombuffer(content, leaf.dtype.newbyteorder("<")), shape)


def _shape_array(leaf: _Leaf, values: NDArray[Any], shape: tuple[int | None, ...]) -> NDArray[Any]:
    try:
        return values.reshape([-1 if size is None else size for size in shape])
    except ValueError:
        raise DataError(_wrong_size(leaf, values.size)) from None


def _stored_shape(leaf: _Leaf, features: Mapping[str, Feature]) -> tuple[int | None, ...]:
    if not leaf.has_stored_shape:
        return leaf.shape
    if leaf.ranks:
        raise DataError(f"the feature {leaf.name!r} is a list of arrays whose shapes all vary")
    return tuple(int(size) for size in _numbers(features, f"{leaf.name}/shape"))


def _numbers(features: Mapping[str, Feature], name: str) -> NDArray[np.int64]:
    feature = features.get(name)
    if feature is None or feature.kind not in ("int64", None):
        raise DataError(missing_feature(name, features))
    return np.asarray(feature.values(), np.int64)


def _wrong_size(leaf: _Leaf, size: int) -> str:
    return f"the feature {leaf.name!r} has {size} values, which do not fill its shape {leaf.shape}"


def _nest(values: list[Any], shape: tuple[int | None, ...]) -> Any:
    """Returns a flat list as nested lists of a shape; its only value for the shape ()."""
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        assert size is not None
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _split(values: list[Any], lengths: NDArray[np.int64], name: str) -> list[Any]:
    """Splits a list into lists of the given lengths."""
    if (lengths < 0).any() or lengths.sum() != len(values):
        raise DataError(f"the feature {name!r} has {len(values)} values, and lengths of others")
    stops = np.cumsum(lengths)
    return [values[stop - size : stop] for stop, size in zip(stops, lengths, strict=True)]


def _assemble(node: _Node, values: Mapping[str, Any], indices: tuple[int, ...]) -> Any:
    """Puts the values of the leaves together; `indices` say where in the lists above."""
    if isinstance(node, _Leaf):
        return _lookup(values[node.name], indices)
    if isinstance(node, _List):
        lengths = {len(_lookup(values[leaf.name], indices)) for leaf in _leaves(node)}
        if len(lengths) > 1:
            names = ", ".join(repr(leaf.name) for leaf in _leaves(node))
            raise DataError(f"the lists {names} have different lengths")
        count = lengths.pop() if lengths else 0
        return [_assemble(node.item, values, (*indices, index)) for index in range(count)]
    return {key: _assemble(child, values, indices) for key, child in node.items()}


def _lookup(value: Any, indices: tuple[int, ...]) -> Any:
    for index in indices:
        value = value[index]
    return value


def _leaves(node: _Node) -> list[_Leaf]:
    if isinstance(node, _Leaf):
        return [node]
    children = [node.item] if isinstance(node, _List) else list(node.values())
    return [leaf for child in children for leaf in _leaves(child)]
