"""Example messages: the same as Google's protocol buffers read and write, and nothing else."""

import functools
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.data.containers.example import parse_example, serialize_example
from stepaudio_jax.errors import DataError

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32, allow_nan=False)
FEATURES = st.dictionaries(
    st.text(max_size=8),
    st.one_of(
        st.lists(st.binary(max_size=20), max_size=4),
        st.lists(INT64 | st.integers(-40000, 40000), min_size=1).map(
            lambda values: np.array(values, np.int64)
        ),
        st.lists(FLOAT32, min_size=1).map(lambda values: np.array(values, np.float32)),
    ),
    max_size=5,
)


@functools.cache
def message_class() -> Any:
    """Builds `Example` from a description of its messages, with Google's own library."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="e.proto", package="e", syntax="proto3")

    def add(name: str, *fields: tuple[str, int, int, str, bool]) -> Any:
        added = file.message_type.add(name=name)
        for field_name, number, kind, type_name, repeated in fields:
            label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            added.field.add(
                name=field_name, number=number, type=kind, type_name=type_name or None, label=label
            )
        return added

    add("BytesList", ("value", 1, field.TYPE_BYTES, "", True))
    add("FloatList", ("value", 1, field.TYPE_FLOAT, "", True))
    add("Int64List", ("value", 1, field.TYPE_INT64, "", True))
    feature = add(
        "Feature",
        ("bytes_list", 1, field.TYPE_MESSAGE, ".e.BytesList", False),
        ("float_list", 2, field.TYPE_MESSAGE, ".e.FloatList", False),
        ("int64_list", 3, field.TYPE_MESSAGE, ".e.Int64List", False),
    )
    feature.oneof_decl.add(name="kind")
    for one in feature.field:
        one.oneof_index = 0
    features = add("Features", ("feature", 1, field.TYPE_MESSAGE, ".e.Features.Entry", True))
    entry = features.nested_type.add(name="Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value",
        number=2,
        type=field.TYPE_MESSAGE,
        type_name=".e.Feature",
        label=field.LABEL_OPTIONAL,
    )
    add("Example", ("features", 1, field.TYPE_MESSAGE, ".e.Features", False))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("e.Example"))


def read_with_oracle(content: bytes) -> dict[str, tuple[str, list[Any]]]:
    features = message_class().FromString(content).features.feature
    result = {}
    for name in features:
        kind = features[name].WhichOneof("kind")
        values = list(getattr(features[name], kind).value) if kind else []
        result[name] = (kind.removesuffix("_list") if kind else None, values)
    return result


def write_with_oracle(features: dict[str, Any]) -> bytes:
    written = message_class()()
    for name, values in features.items():
        feature = written.features.feature[name]
        if isinstance(values, list):
            feature.bytes_list.value.extend(values)
            feature.bytes_list.SetInParent()
        elif values.dtype == np.int64:
            feature.int64_list.value.extend(values.tolist())
        else:
            feature.float_list.value.extend(values.tolist())
    return written.SerializeToString()


def read(content: bytes) -> dict[str, tuple[str, list[Any]]]:
    result = {}
    for name, feature in parse_example(content).items():
        values = feature.values()
        assert len(values) == feature.count()
        as_list = (
            values.tolist()
            if isinstance(values, np.ndarray)
            else [bytes(value) for value in values]
        )
        result[name] = (feature.kind, as_list)
    return result


@settings(deadline=None)
@given(FEATURES)
def test_what_google_writes_is_read(features):
    content = write_with_oracle(features)
    assert read(content) == read_with_oracle(content)


@settings(deadline=None)
@given(FEATURES)
def test_what_is_written_google_reads(features):
    content = serialize_example(features)
    assert read_with_oracle(content) == read_with_oracle(write_with_oracle(features))
    assert list(parse_example(content)) == list(features)


@settings(deadline=None, max_examples=300)
@given(FEATURES, st.data())
def test_of_damaged_bytes_nothing_is_read_that_google_does_not_read(features, data):
    content = bytearray(serialize_example(features))
    if content:
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        values = read(damaged)
    except DataError:
        return
    try:
        expected = read_with_oracle(damaged)
    except message.DecodeError:
        pytest.fail(f"{damaged!r} is no message")
    assert repr(values) == repr({name: expected[name] for name in values})
    assert len(values) == len(expected)


def test_integers_of_all_lengths():
    values = [
        sign * (1 << bit) + delta for bit in range(63) for sign in (1, -1) for delta in (0, 1)
    ]
    array = np.array([*values, -(2**63), 2**63 - 1, 0], np.int64)
    feature = parse_example(serialize_example({"x": array}))["x"]
    np.testing.assert_array_equal(feature.values(), array)


def test_unpacked_numbers_are_read():
    # Field 1 repeated: integers 5 and -1, floats 1.0 and -2.0.
    integers = b"\x08\x05" + b"\x08" + b"\xff" * 9 + b"\x01"
    floats = b"\x0d\x00\x00\x80\x3f" + b"\x0d\x00\x00\x00\xc0"
    content = bytes([len(integers)]) + integers
    entry = b"\x0a\x01i" + b"\x12" + bytes([len(content) + 1]) + b"\x1a" + content
    other = b"\x0a\x01f" + b"\x12" + bytes([len(floats) + 2, 0x12, len(floats)]) + floats
    features = b"\x0a" + bytes([len(entry)]) + entry + b"\x0a" + bytes([len(other)]) + other
    content = b"\x0a" + bytes([len(features)]) + features
    assert read(content) == read_with_oracle(content)
    assert read(content) == {"i": ("int64", [5, -1]), "f": ("float", [1.0, -2.0])}


def test_bytes_are_views_of_the_record():
    content = serialize_example({"a": [b"sound"]})
    assert parse_example(content)["a"].items[0].obj is content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x0a\x05abc", "ends 2 bytes too late"),
        (b"\x0a", "cut or too long"),
        (b"{}", "unexpected"),
        (b"\x0a\x00\x12\x00", "an Example has the unexpected field 2"),  # a SequenceExample
        (serialize_example({"a": [b"x"]}) * 2, "an Example has the unexpected field 1"),
        (b"\x0a\x18" + serialize_example({"a": [b"x"]})[2:] * 2, "'a' twice"),
        (b"\x0a\x07\x0a\x05\x0a\x01\xff\x12\x00", "not UTF-8"),
    ],
)
def test_what_is_no_example_is_refused_with_the_reason(content, reason):
    with pytest.raises(DataError, match=reason):
        parse_example(content)


def test_other_dtypes_are_not_written():
    with pytest.raises(TypeError, match="complex"):
        serialize_example({"a": np.zeros(1, np.complex64)})
