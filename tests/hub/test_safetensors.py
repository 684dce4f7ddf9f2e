"""The reader and the writer against the safetensors library, and hostile files."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from stepaudio_jax.errors import CheckpointError
from stepaudio_jax.hub.safetensors import (
    SAFETENSORS_INDEX,
    ShardWriter,
    TensorSpec,
    read_header,
    read_tensor_headers,
)


def test_reads_what_the_library_writes(tmp_path):
    tensors = {
        "a.weight": torch.randn(7, 5),
        "b": torch.randn(11).to(torch.bfloat16),
        "c": torch.randn(2, 3, 4).to(torch.float16),
        "scalar": torch.tensor(3.5),
    }
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt", "odd": "ünicode"})
    stored = read_tensor_headers(tmp_path)
    assert set(stored) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(
            stored[name].read().astype(np.float32), tensor.float().numpy()
        )
    np.testing.assert_array_equal(
        stored["a.weight"].read(slice(2, 6)), tensors["a.weight"][2:6].numpy()
    )


def test_rows_are_read_by_the_reader_of_the_tensor(tmp_path):
    """A reader of remote files needs a tensor's file, offset, dtype and shape, and nothing else."""

    def read_range(tensor, start, stop):
        row_bytes = int(np.prod(tensor.shape[1:])) * tensor.dtype.itemsize
        begin = tensor.offset + start * row_bytes
        content = tensor.file.read_bytes()[begin : begin + (stop - start) * row_bytes]
        return np.frombuffer(content, tensor.dtype).reshape(stop - start, *tensor.shape[1:])

    save_file({"a": torch.randn(7, 5).to(torch.bfloat16)}, tmp_path / "model.safetensors")
    local = read_tensor_headers(tmp_path)["a"]
    other = dataclasses.replace(local, reader=read_range)
    for rows in (None, slice(2, 6), slice(6, 7)):
        np.testing.assert_array_equal(other.read(rows), local.read(rows))


def test_the_library_reads_what_is_written(tmp_path):
    generator = np.random.default_rng(0)
    values = {
        "one": generator.standard_normal((6, 10)).astype(np.float32),
        "two": generator.standard_normal(25).astype(ml_dtypes.bfloat16),
        "three": generator.standard_normal((3, 4, 2)).astype(np.float16),
        "four": generator.standard_normal((50, 2)),
    }
    planned = [TensorSpec(name, value.shape, value.dtype) for name, value in values.items()]
    with ShardWriter(tmp_path, planned, max_shard_bytes=400) as writer:
        for value in values.values():
            for rows in np.array_split(value, 3):
                writer.append(rows)
    index = json.loads((tmp_path / SAFETENSORS_INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in values.values())
    # 240 + 50 + 48 bytes fit the first shard of 400; the last tensor, 800 bytes, gets its own.
    assert index["weight_map"] == {
        **dict.fromkeys(("one", "two", "three"), "model-00001-of-00002.safetensors"),
        "four": "model-00002-of-00002.safetensors",
    }
    for file in set(
        index["weight_map"].values()
    ):  # data that are not aligned are slow, or refused, elsewhere
        assert int.from_bytes((tmp_path / file).read_bytes()[:8], "little") % 8 == 0
    for name, value in values.items():
        with safe_open(tmp_path / index["weight_map"][name], "pt") as file:
            assert file.metadata() == {"format": "pt"}
            read = file.get_tensor(name)
        assert str(read.dtype).removeprefix("torch.") == str(value.dtype)
        np.testing.assert_array_equal(read.double().numpy(), value.astype(np.float64))


def test_the_writer_notices_missing_and_surplus_rows(tmp_path):
    planned = [
        TensorSpec("a", (4, 2), np.dtype(np.float32)),
        TensorSpec("b", (3,), np.dtype(np.float32)),
    ]
    with (
        pytest.raises(CheckpointError, match=r"not written, the first .*'b'"),
        ShardWriter(tmp_path, planned, 10**6) as writer,
    ):
        writer.append(np.zeros((4, 2), np.float32))
    with (
        pytest.raises(CheckpointError, match="are not the next 32"),
        ShardWriter(tmp_path, planned, 10**6) as writer,
    ):
        writer.append(np.zeros((5, 2), np.float32))
    with (
        pytest.raises(CheckpointError, match="float64"),
        ShardWriter(tmp_path, planned, 10**6) as writer,
    ):
        writer.append(np.zeros((2, 2), np.float64))


def valid_file(path):
    save_file({"x": torch.arange(6.0).reshape(2, 3), "y": torch.ones(4)}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda data: b"", "truncated"),
        (lambda data: data[:5], "truncated"),
        (lambda data: data[:20], "truncated"),
        (lambda data: data[:-1], "truncated: tensor '[xy]' ends at byte"),
        (lambda data: b"\xff" * 8 + data[8:], "truncated"),
        (lambda data: data[:8] + b"!" + data[9:], "not JSON"),
        (lambda data: b"text, not weights" * 40, "not a safetensors file"),
        (lambda data: data.replace(b"[2,3]", b"[2,4]"), "malformed: tensor 'x' of shape"),
        (lambda data: data.replace(b"[2,3]", b"[-2,]"), "not JSON|malformed"),
        (
            lambda data: data.replace(b'"shape"', b'"shove"'),
            "malformed: the header's entry of tensor",
        ),
        (lambda data: (4).to_bytes(8, "little") + b"[1] " + data, "not a mapping"),
    ],
)
def test_corrupt_files_are_refused(tmp_path, corrupt, message):
    file = tmp_path / "model.safetensors"
    data = valid_file(file)
    changed = corrupt(data)
    assert changed != data
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match=message) as error:
        read_header(file)
    assert str(file) in str(error.value)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    file = tmp_path / "model.safetensors"
    data = valid_file(file)
    stored = read_tensor_headers(tmp_path)
    file.write_bytes(data[:-20])
    with pytest.raises(CheckpointError, match="changed meanwhile"):
        stored["y"].read(), stored["x"].read()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not JSON"),
        ("[]", "weight_map"),
        ('{"weight_map": {}}', "must map"),
        (
            '{"weight_map": {"x": "gone-1.safetensors", "y": "gone-2.safetensors"}}',
            "do not exist, 2 of 2: gone-1.*gone-2",
        ),
        ('{"weight_map": {"x": "../model.safetensors"}}', "must be in a file of the folder"),
        ('{"weight_map": {"x": 3}}', "must be in a file of the folder"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, index, message):
    valid_file(tmp_path / "model.safetensors")
    (tmp_path / SAFETENSORS_INDEX).write_text(index)
    with pytest.raises(CheckpointError, match=message):
        read_tensor_headers(tmp_path)


def test_shards_without_an_index(tmp_path):
    with pytest.raises(CheckpointError, match="holds no safetensors files"):
        read_tensor_headers(tmp_path)
    save_file({"x": torch.ones(2)}, tmp_path / "model-00001.safetensors")
    save_file({"y": torch.ones(3)}, tmp_path / "model-00002.safetensors")
    assert set(read_tensor_headers(tmp_path)) == {"x", "y"}
    save_file({"x": torch.ones(2)}, tmp_path / "model-00003.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'x' is both in .*model-00001.safetensors and in model-00003"
    ):
        read_tensor_headers(tmp_path)


def test_a_lost_shard_is_named_where_its_number_tells(tmp_path):
    for number in (1, 3):
        save_file(
            {f"x{number}": torch.ones(2)}, tmp_path / f"model-0000{number}-of-00004.safetensors"
        )
    with pytest.raises(
        CheckpointError,
        match=r"lacks 2 of 4 shards: model-00002-of-00004.safetensors, model-00004-of-00004",
    ):
        read_tensor_headers(tmp_path)
