"""Values of TFDS features: how leaves of an example are stored, and how they are put together."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepaudio_jax.data.containers.example import Feature
from stepaudio_jax.data.containers.example_rows import missing_feature
from stepaudio_jax.errors import DataError

FEATURES_FILE = "features.json"

# By the kind of dtype, as NumPy names them.
_STORED_KINDS = {"i": "int64", "u": "int64", "b": "int64", "f": "float"}


@dataclasses.dataclass(frozen=True)
class Leaf:
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
        """Returns whether its shape is stored beside it, since several dimensions vary."""
        return self.shape.count(None) > 1

    @property
    def stored_name(self) -> str:
        """Returns the name of the feature that holds its values."""
        if self.ranks > 1:
            return f"{self.name}/ragged_flat_values"
        return f"{self.name}/value" if self.has_stored_shape else self.name


@dataclasses.dataclass(frozen=True)
class ListOf:
    """Describes a list."""

    item: "Node"


Node = Leaf | ListOf | dict[str, Any]


def class_name(leaf: Leaf, number: int) -> str | int | None:
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


def stored_items(
    leaf: Leaf, features: Mapping[str, Feature]
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


def nest(values: list[Any], shape: tuple[int | None, ...]) -> Any:
    """Returns a flat list as nested lists of a shape; its only value for the shape ()."""
    if not shape:
        return values[0]
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape([-1 if size is None else size for size in shape]).tolist()


def split(values: list[Any], lengths: NDArray[np.int64], name: str) -> list[Any]:
    """Splits a list into lists of the given lengths."""
    if (lengths < 0).any() or lengths.sum() != len(values):
        raise DataError(f"the feature {name!r} has {len(values)} values, and lengths of others")
    stops = np.cumsum(lengths)
    return [values[stop - size : stop] for stop, size in zip(stops, lengths, strict=True)]


def assemble(node: Node, values: Mapping[str, Any], indices: tuple[int, ...]) -> Any:
    """Puts the values of the leaves together; `indices` say where in the lists above."""
    if isinstance(node, Leaf):
        return _lookup(values[node.name], indices)
    if isinstance(node, ListOf):
        lengths = {len(_lookup(values[leaf.name], indices)) for leaf in leaves(node)}
        if len(lengths) > 1:
            names = ", ".join(repr(leaf.name) for leaf in leaves(node))
            raise DataError(f"the lists {names} have different lengths")
        count = lengths.pop() if lengths else 0
        return [assemble(node.item, values, (*indices, index)) for index in range(count)]
    return {key: assemble(child, values, indices) for key, child in node.items()}


def leaves(node: Node) -> list[Leaf]:
    """Returns the leaves below a node."""
    if isinstance(node, Leaf):
        return [node]
    children = [node.item] if isinstance(node, ListOf) else list(node.values())
    return [leaf for child in children for leaf in leaves(child)]


def _split_flat(leaf: Leaf, values: Any) -> list[Any]:
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
    return values.view(np.uint64) if dtype == np.uint64 else values.astype(dtype, copy=False)


def _decode_array(leaf: Leaf, content: bytes, shape: tuple[int | None, ...]) -> NDArray[Any]:
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


def _shape_array(leaf: Leaf, values: NDArray[Any], shape: tuple[int | None, ...]) -> NDArray[Any]:
    try:
        return values.reshape([-1 if size is None else size for size in shape])
    except ValueError:
        raise DataError(_wrong_size(leaf, values.size)) from None


def _stored_shape(leaf: Leaf, features: Mapping[str, Feature]) -> tuple[int | None, ...]:
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


def _wrong_size(leaf: Leaf, size: int) -> str:
    return f"the feature {leaf.name!r} has {size} values, which do not fill its shape {leaf.shape}"


def _lookup(value: Any, indices: tuple[int, ...]) -> Any:
    for index in indices:
        value = value[index]
    return value
